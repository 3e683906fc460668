"""The statistics of a layer that the measures need, small enough to keep once its weights are freed."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from orchestrator.forensics.architecture.kinds import ATTENTION, FFN, KINDS, PLACES
from orchestrator.forensics.architecture.layer import Layer
from orchestrator.forensics.architecture.layout import Heads
from orchestrator.forensics.measures.clusters import Clusters, clusters
from orchestrator.forensics.measures.composition import Compositions
from orchestrator.forensics.measures.extremes import largest_and_rms
from orchestrator.forensics.measures.heads import couplings, fingerprints, matches_of
from orchestrator.forensics.measures.momentum import Medians, alignment, stuck_fraction
from orchestrator.forensics.measures.pathology import ratios, uniform_value
from orchestrator.forensics.measures.spectrum import gram, spectra
from orchestrator.forensics.measures.squares import Squares, squares
from orchestrator.forensics.measures.stream import Stream
from orchestrator.forensics.weights.memory import trim

READS = ("q", "k", "v", "gate", "up")  # [·, d]: over what a layer reads from the residual stream
WRITES = ("o", "down")  # [d, ·]: over what it writes to it
MAD_TO_STD = 1.4826  # a Gaussian's standard deviation over its MAD
PAIRS = (("gate", "up"), ("gate", "down"), ("up", "down"))
BLOCK = 2**18  # entries squared at once


@dataclass
class LayerStatistics:
    """Statistics of one layer's weights, norms folded into what reads them. Arrays are float64, unless a comment says
    otherwise."""

    index: int
    width: int  # residual coordinates d
    heads: Heads | None
    names: dict[str, str]  # kind → tensor name
    shapes: dict[str, tuple[int, int]]  # kind → shape of its matrix
    energy: dict[str, float]  # kind → Σ of squared entries
    head_energy: dict[str, np.ndarray]  # q, k, v, o → Σ of squared entries per head, [heads] or [kv_heads]
    position_energy: dict[str, np.ndarray]  # gate, up, down → Σ of squared entries per FFN position, [f]
    squares: dict[str, Squares]  # gate, up, down → the law of its squared entries
    cosines: dict[tuple[str, str], np.ndarray]  # pair of gate, up, down → cos of each position's vectors, float32 [f]
    written: np.ndarray  # sqrt(Σ_p down[k, p]²·c_p²) of every residual coordinate k, [d]; [0] without an FFN
    loudest: tuple[int, int] | None  # the coordinate k of its maximum, and the position p that contributes most
    fingerprints: np.ndarray | None  # float32 [heads, 2·d]
    readers: np.ndarray | None  # what each head's query and key read, of q_hᵀk_h as fingerprints; float32 [heads, 2·d]
    gammas: dict[str, np.ndarray]  # position of a norm → its scale [d]
    spectra: dict[str, np.ndarray] = field(default_factory=dict)  # kind → singular values, ascending
    alignment: dict[str, float] = field(default_factory=dict)  # kind → cos(−exp_avg, w)
    stuck: float | None = None  # share of entries whose moments have vanished
    streamed: dict[str, float] = field(default_factory=dict)  # measures of the stream of random tokens
    activations: dict[str, float | None] = field(default_factory=dict)  # measures of the activation probe
    gradients: dict[str, float] = field(default_factory=dict)  # kind → cos(−gradient, w)
    threshold: float | None = None  # of `saturated_fixed`, from the reference checkpoint
    uniform: dict[str, float] = field(default_factory=dict)  # kind → the value of a matrix whose entries are all equal
    extremes: dict[str, tuple[float, float]] = field(default_factory=dict)  # kind → max |w| and RMS, as it is stored
    partners: dict[str, int] = field(default_factory=dict)  # "composition", "coupling" → number of partner layers
    chance: dict[str, np.ndarray] = field(default_factory=dict)  # measure → its values by chance alone, [R]

    # A strong reference would keep every drawn stack alive.
    _stack: weakref.ref[Stack] = field(init=False, repr=False)

    @property
    def stack(self) -> Stack:
        """The checkpoint's layers, this one among them."""
        stack = self._stack()
        assert stack is not None, "a layer is measured while its stack is held"
        return stack

    @cached_property
    def co_magnitude(self) -> np.ndarray:
        """`co_magnitude` of every FFN position: [f]."""
        return co_magnitude(self.position_energy)

    @cached_property
    def gain(self) -> np.ndarray:
        """‖gate[p,:]‖·‖up[p,:]‖·‖down[:,p]‖ of every FFN position p, without the gate where there is none: [f]."""
        return np.sqrt(np.prod(list(self.position_energy.values()), axis=0))

    @cached_property
    def clusters(self) -> Clusters | None:
        """The clusters of the FFN positions."""
        energies = list(self.position_energy.values())
        logs = [np.log(np.maximum(energy, np.finfo(float).tiny)) / 2 for energy in energies]
        return clusters(np.stack([*logs, *self.cosines.values()], axis=1), self.gain)


def co_magnitude(position_energy: Mapping[str, np.ndarray]) -> np.ndarray:
    """‖gate[p,:]‖·‖up[p,:]‖ of every FFN position p, or ‖up[p,:]‖·‖down[:,p]‖ where there is no gate: [f]."""
    other = "gate" if "gate" in position_energy else "down"
    return np.asarray(np.sqrt(position_energy[other] * position_energy["up"]))


def literal_threshold(c: np.ndarray) -> float:
    """mean + 3·std of the co-magnitude, as in the paper. At most a tenth of the positions can exceed it (Cantelli)."""
    return float(c.mean() + 3 * c.std())


def robust_threshold(c: np.ndarray) -> float:
    """median + 3·1.4826·MAD of the co-magnitude: outliers do not raise it."""
    median = np.median(c)
    return float(median + 3 * MAD_TO_STD * np.median(np.abs(c - median)))


class Stack:
    """All layers of a checkpoint, and the statistics that compare them."""

    def __init__(self, layers: Sequence[LayerStatistics], compositions: np.ndarray) -> None:
        """`compositions` [L+1, L or L+1]: C(l→m), writers (embedding first) by readers (any head last)."""
        self.layers = list(layers)
        self.compositions = compositions
        for layer in layers:
            layer._stack = weakref.ref(self)

    @cached_property
    def median_gamma(self) -> float | None:
        """Median |γ| of the FFN post-norms of all layers; None where blocks have none."""
        scales = [layer.gammas["post_ffn"] for layer in self.layers if "post_ffn" in layer.gammas]
        return float(np.median(np.abs(np.concatenate(scales)))) if scales else None

    @cached_property
    def median_written(self) -> float:
        """Median of `LayerStatistics.written` over all coordinates of all layers that have an FFN."""
        return float(np.median(np.concatenate([layer.written for layer in self.layers])))

    @cached_property
    def max_abs_ratios(self) -> dict[tuple[str, int], float | None]:
        """Kind and layer → its max |w| over the median of the others'; None where that is 0 or there are none."""
        found: dict[tuple[str, int], float | None] = {}
        for kind in KINDS:
            held = [layer for layer in self.layers if kind in layer.extremes]
            of_kind = ratios([layer.extremes[kind][0] for layer in held])
            found |= {(kind, layer.index): ratio for layer, ratio in zip(held, of_kind, strict=True)}
        return found

    @cached_property
    def matches(self) -> np.ndarray:
        """The best match of a head in one layer with a head in another (`heads.matches_of`): [L, L], NaN if absent."""
        return matches_of([layer.fingerprints for layer in self.layers])

    @cached_property
    def head_writes(self) -> list[np.ndarray | None]:
        """Per layer, the direction that each head writes: [heads, d]."""
        return [None if x is None else x[:, : x.shape[1] // 2] for x in (layer.fingerprints for layer in self.layers)]

    @cached_property
    def head_reads(self) -> list[np.ndarray | None]:
        """Per layer, the directions that each head's query, key and value read: [3·heads, d]."""
        return [
            None
            if layer.fingerprints is None or layer.readers is None
            else np.concatenate([*np.split(layer.readers, 2, axis=1), np.split(layer.fingerprints, 2, axis=1)[1]])
            for layer in self.layers
        ]

    @cached_property
    def couplings(self) -> np.ndarray:
        """Per layer, the mean over the others of their best head match (`heads.couplings`): [L], NaN where absent."""
        return couplings(self.matches)


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
    rest = pool.submit(_without_spectra, layer, weights, stream)
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


def _without_spectra(layer: Layer, weights: dict[str, Tensor], stream: Stream | None) -> LayerStatistics:
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
        squares={kind: squares(weights[kind], len(sums)) for kind, sums in positions.items()},
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
