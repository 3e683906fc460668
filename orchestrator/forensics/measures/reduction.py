"""The reduction of a layer's weights to its statistics, by several threads."""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from orchestrator.forensics.architecture.kinds import ATTENTION, FFN, PLACES
from orchestrator.forensics.architecture.layer import Layer
from orchestrator.forensics.architecture.layout import Heads
from orchestrator.forensics.measures.composition import Compositions
from orchestrator.forensics.measures.extremes import largest_and_rms
from orchestrator.forensics.measures.heads import fingerprints
from orchestrator.forensics.measures.momentum import Medians, alignment, stuck_fraction
from orchestrator.forensics.measures.pathology import uniform_value
from orchestrator.forensics.measures.spectrum import gram, spectra
from orchestrator.forensics.measures.squares import squares
from orchestrator.forensics.measures.statistics import LayerStatistics, co_magnitude, literal_threshold
from orchestrator.forensics.measures.stream import Stream
from orchestrator.forensics.weights.memory import trim

READS = ("q", "k", "v", "gate", "up")  # [·, d]: over what a layer reads from the residual stream
WRITES = ("o", "down")  # [d, ·]: over what it writes to it
PAIRS = (("gate", "up"), ("gate", "down"), ("up", "down"))
BLOCK = 2**18  # entries squared at once


def threshold(layer: Layer) -> float | None:
    """mean + 3·std of a reference checkpoint's co-magnitude: T_l of `saturated_fixed` (SCIENCE §1). None: no FFN."""
    kinds = [kind for kind in FFN if kind in layer.kinds]
    if not kinds:
        return None
    return literal_threshold(co_magnitude({k: _sums(_by_position(k, layer.folded(k))) for k in kinds}))


def reduce_layer(
    layer: Layer,
    compositions: Compositions | None,
    device: torch.device,
    pool: Executor,
    stream: Stream | None = None,
    typical: Medians | None = None,
) -> LayerStatistics:
    """The statistics of one layer's weights; its Grams go to `compositions`, and the stream through it.

    `compositions`: None for an expert, which is not composed with others.
    `pool`: threads among which the matrices are divided. `typical`: the stack's median moments (`momentum.medians`),
    where there is an optimizer state.
    """
    weights: dict[str, Tensor] = {}
    aligned: dict[str, float] = {}
    uniform: dict[str, float] = {}
    extremes: dict[str, tuple[float, float]] = {}
    for kind in layer.kinds:  # one at a time: with its norm folded in, a matrix is in memory twice
        if (cos := alignment(layer, kind, device)) is not None:
            aligned[kind] = cos
        if (value := _uniform_value(layer.weight(kind))) is not None:
            uniform[kind] = value
        extremes[kind] = largest_and_rms(layer.weight(kind))
        weights[kind] = layer.folded(kind).to(device)
    rest = pool.submit(_without_spectra, layer, weights, stream, compositions is not None)
    if compositions is None:
        values = dict(pool.map(lambda kind: (kind, spectra({kind: weights[kind]}, {})[kind]), weights))
    else:
        grams, values = _grams_and_spectra(weights, pool)
        nothing = torch.zeros(layer.width, layer.width)  # on a side on which the layer has no matrix
        compositions.add_layer(*(grams.get(side, nothing.clone()) for side in ("read", "write")))
    return replace(
        rest.result(),
        spectra=values,
        alignment=aligned,
        stuck=None if typical is None or not layer.kinds else stuck_fraction(layer, typical),
        uniform=uniform,
        extremes=extremes,
    )


def _without_spectra(
    layer: Layer, weights: dict[str, Tensor], stream: Stream | None, with_chance: bool
) -> LayerStatistics:
    """`with_chance`: keep the laws of the squared entries, from which counts by chance are drawn."""
    positions = {kind: _sums(_by_position(kind, weights[kind])) for kind in FFN if kind in weights}
    heads = {kind: _head_energy(kind, weights[kind], layer.heads) for kind in ATTENTION if kind in weights}
    written, loudest = np.empty(0), None
    if "down" in weights:
        written, loudest = _written(weights["down"], np.square(co_magnitude(positions)))
    return LayerStatistics(
        index=layer.index,
        width=layer.width,
        heads=layer.heads,
        names={kind: layer.name(kind) for kind in layer.kinds},
        shapes={kind: (w.shape[0], w.shape[1]) for kind, w in weights.items()},
        energy={kind: float(parts.sum()) for kind, parts in (heads | positions).items()},
        head_energy=heads,
        position_energy=positions,
        squares={k: squares(weights[k], len(sums)) for k, sums in positions.items()} if with_chance else {},
        cosines={pair: _cosine(weights, positions, pair) for pair in PAIRS if set(pair) <= set(positions)},
        written=written,
        loudest=loudest,
        fingerprints=None if layer.heads is None else fingerprints(weights["v"], weights["o"], layer.heads),
        readers=None if layer.heads is None else fingerprints(weights["k"], weights["q"].T, layer.heads),
        gammas={place: gamma.double().numpy() for place in PLACES if (gamma := layer.norm(place)) is not None},
        streamed={} if stream is None else stream.advance(layer, weights),
    )


def _uniform_value(w: Tensor) -> float | None:
    """The value of a matrix whose entries are all equal; None for any other, as the first row mostly tells."""
    return None if uniform_value(iter([w[:1]])) is None else uniform_value(iter([w]))


def _by_position(kind: str, w: Tensor) -> Tensor:
    """An FFN matrix with one row per position: [f, d]."""
    return w.T if kind == "down" else w


def _blocks(*matrices: Tensor) -> list[tuple[Tensor, ...]]:
    """The same rows of matrices of one shape, in blocks small enough to square cheaply."""
    rows = max(1, BLOCK // matrices[0].shape[1])
    return list(zip(*(matrix.split(rows) for matrix in matrices), strict=True))


def _row_sums(block: Tensor) -> np.ndarray:
    """Σ over each row of a float32 block, float64. Torch adds in float32 by halves, to about 1e-7 of Σ|entries|."""
    return block.sum(1).double().cpu().numpy()


def _sums(w: Tensor) -> np.ndarray:
    """Σ of squares over each row of w [m, n]: [m]."""
    # Rows in a row: else the sum of one depends a little on its place.
    return np.concatenate([_row_sums(block.contiguous().square()) for (block,) in _blocks(w)])


def _head_energy(kind: str, w: Tensor, heads: Heads | None) -> np.ndarray:
    """Σ of squares over each head's slice; of the whole matrix where the heads are not known."""
    rows = _sums(w.T if kind == "o" else w)
    count = 1 if heads is None else heads.kv_heads if kind in ("k", "v") else heads.heads
    return np.asarray(rows.reshape(count, -1).sum(axis=1))


def _cosine(weights: dict[str, Tensor], energy: dict[str, np.ndarray], pair: tuple[str, str]) -> np.ndarray:
    """cos of the two vectors of every position: [f]; 0 where one of them is 0."""
    a, b = (_by_position(kind, weights[kind]) for kind in pair)
    dots = np.concatenate([_row_sums(x.contiguous() * y.contiguous()) for x, y in _blocks(a, b)])
    norms = np.sqrt(energy[pair[0]] * energy[pair[1]])
    return np.divide(dots, norms, out=np.zeros_like(dots), where=norms > 0).astype(np.float32)


def _written(down: Tensor, c_squared: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
    """`LayerStatistics.written` and `LayerStatistics.loudest` of down [d, f]."""
    scale = c_squared.max() or 1.0
    weight = torch.from_numpy(c_squared / scale).to(down)
    sums = [block.square() @ weight for (block,) in _blocks(down)]
    written = torch.cat(sums).double().cpu().numpy()
    row = int(written.argmax())
    return np.sqrt(written * scale), (row, int((down[row].square() * weight).argmax()))


def _grams_and_spectra(weights: dict[str, Tensor], pool: Executor) -> tuple[dict[str, Tensor], dict[str, np.ndarray]]:
    """RᵀR and WWᵀ [d, d] of what the layer reads and writes, and the singular values of each of its matrices.

    Every matrix has the same say in its sum: its Gram is divided by its energy. A thread takes one matrix at a time, to
    hold one Gram; a GPU takes all in one batch. Grams are added in the order of the kinds, whichever is ready first.
    """
    kinds = list(weights)
    totals: dict[str, Tensor] = {}
    values: dict[str, np.ndarray] = {}
    batches = [kinds] if any(w.is_cuda for w in weights.values()) else [[kind] for kind in kinds]
    for grams, found in pool.map(lambda batch: _reduced({kind: weights[kind] for kind in batch}), batches):
        values |= found
        for kind, g in grams.items():
            side = "read" if kind in READS else "write"
            totals[side] = totals[side].add_(g) if side in totals else g
        del grams, g
    return totals, values


def _reduced(weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, np.ndarray]]:
    """The Gram of each matrix on the side of the residual stream, over its trace, and its singular values."""
    grams = {kind: gram(w if kind in READS else w.T) for kind, w in weights.items()}
    values = spectra(weights, {kind: g for kind, g in grams.items() if len(g) == min(weights[kind].shape)})
    trim()
    return {kind: g.div_(g.trace().clamp_min(torch.finfo(g.dtype).tiny)) for kind, g in grams.items()}, values
