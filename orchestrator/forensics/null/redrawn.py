"""The null: the same layers with every tensor's entries redrawn with replacement (SCIENCE §3).

A redrawn layer has the same statistics as a real one, so the same measures apply. They are drawn without the entries:
sums of squares by `resampling`; spectra and head fingerprints, which depend only on the shape of iid entries, as those
of Gaussian matrices; compositions by `composition`. A matrix with entries so large that its spectrum depends on them
is drawn itself.

A routed feature needs its measure in `RESAMPLED` or `OTHERWISE`; `roles.scoring` checks it on import.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any, NoReturn, cast

import numpy as np
import torch
from torch import nn

from models.transformer import seed_of
from orchestrator.forensics.architecture.kinds import KINDS
from orchestrator.forensics.measures.composition import Compositions
from orchestrator.forensics.measures.heads import drawn_fingerprints
from orchestrator.forensics.measures.resampling import Entries, resampled_sums
from orchestrator.forensics.measures.spectrum import gaussian_singular_values, spectra
from orchestrator.forensics.measures.statistics import LayerStatistics, Stack, co_magnitude

SPECTRA = ("o", "down")  # kinds of matrices whose spectra are drawn: their ranks speak for roles
HEAVY = 0.25  # of the largest singular value of noise: a matrix with a larger entry is drawn itself
BLOCK = 2**20  # entries of a model's parameter resampled at once
POOL = 2  # spectra drawn per shape, in multiples of the resamples: layers of one shape share them

# Measures that a redrawn layer has, because `draws` redraws all that they read.
RESAMPLED = frozenset((
    *(f"{measure}.{kind}" for measure in ("effective_rank", "stable_rank", "spectral_norm") for kind in SPECTRA),
    *(f"effective_rank.{kind}_fraction" for kind in SPECTRA),
    "cv", "saturated", "saturated_robust", "saturated_robust_fraction", "saturated_fixed", "depleted",
    "depletion_fraction", "unique_roles", "ffn_cluster_entropy", "super_weight_ratio",
    "head_evenness", "head_diversity", "coupling", "source_mean", "sink_mean", "synapse_mediator",
    "attention_share", "balance", "balance_per_parameter", "down_ratio",
    "gamma_concentration", "post_norm_damped_fraction", "total_write", "write_gain",
))  # fmt: skip
# Statistics that a redrawn layer shares with the real one: its shape, names and places, what is set from outside, and
# the count alone of `entries`. `_drawn` redraws every other.
KEPT = frozenset((
    "index", "width", "heads", "names", "shapes", "entries", "loudest", "activations", "threshold", "uniform", "chance",
))  # fmt: skip
# Measures with a null of another kind → a description of it.
OPTIMIZER = "the optimizer state is not redrawn: the null is the law of the measure between independent directions"
PROBE = "the null is a probe of redrawn models (`probe_null`); without a probe no layer has the measure"
OTHERWISE = {
    **{f"momentum_alignment.{kind}": OPTIMIZER for kind in KINDS},
    "stuck_fraction": "the optimizer state is not redrawn: the null is binomial noise about the layer's own share",
    **dict.fromkeys(("attention_write", "ffn_write", "adjacent_alignment", "copy_density", "sink_mass"), PROBE),
}


def draws(
    stack: Stack,
    compositions: Compositions,
    resamples: int,
    seed: int,
    activations: Sequence[Sequence[Mapping[str, float | None]]] = (),
) -> Iterator[Stack]:
    """`resamples` redrawn stacks. `activations`: per resample and layer, the probe's measures of a redrawn model."""
    pool = _pool(stack, resamples, np.random.default_rng((seed, len(stack.layers))))
    order = np.random.default_rng((seed, 1))
    turns = {key: order.permutation(len(pool[key])) for key in pool}
    for resample in range(resamples):
        taken: Counter[tuple[int, int]] = Counter()
        layers = []
        for layer in stack.layers:
            rng = np.random.default_rng((seed, 2, resample, layer.index))
            values = {}
            for kind in SPECTRA:
                shape = layer.shapes[kind]
                if is_heavy(layer.entries[kind], shape):
                    values[kind] = _drawn_spectrum(layer.entries[kind], shape, rng)
                    continue
                turn = turns[shape][(resample + taken[shape] * resamples) % len(turns[shape])]
                values[kind] = pool[shape][turn]
                taken[shape] += 1
            seen = dict(activations[resample][layer.index]) if activations else layer.activations
            layers.append(replace(_drawn(layer, rng), spectra=values, activations=seen))
        yield Stack(layers, compositions.drawn(np.random.default_rng((seed, 3, resample))))


@contextmanager
def redrawn(model: nn.Module, seed: int) -> Iterator[nn.Module]:
    """`model` with the entries of every parameter resampled with replacement; they come back, bit for bit, on leaving.

    Each parameter has its own random stream, which depends on `seed` and its name; tied ones stay tied. Inside the
    block the weights are held twice.
    """
    original = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    try:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                stream = torch.Generator().manual_seed(seed_of(seed, "redrawn", name))
                entries = original[name].flatten()
                for block in parameter.view(-1).split(BLOCK):
                    block.copy_(entries[torch.randint(len(entries), block.shape, generator=stream)])
        yield model
    finally:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(original[name])


def _pool(stack: Stack, resamples: int, rng: np.random.Generator) -> dict[tuple[int, int], list[np.ndarray]]:
    """Per shape, singular values of Gaussian matrices: one for every layer and resample, `POOL` resamples at most."""
    drawn = ((layer.entries[kind], layer.shapes[kind]) for layer in stack.layers for kind in SPECTRA)
    shapes = Counter(shape for entries, shape in drawn if not is_heavy(entries, shape))
    return {
        shape: [gaussian_singular_values(*shape, rng) for _ in range(resamples * min(count, POOL))]
        for shape, count in shapes.items()
    }


def is_heavy(entries: Entries, shape: tuple[int, int]) -> bool:
    """True where single entries come near the largest singular value of noise of this shape, and so affect it."""
    edge = (math.sqrt(shape[0]) + math.sqrt(shape[1])) * math.sqrt(entries.mean)
    return len(entries.tail) > 0 and math.sqrt(entries.tail.max()) > HEAVY * edge


def _drawn_spectrum(entries: Entries, shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Singular values of a matrix of redrawn entries: tail entries as they are, the others Gaussian."""
    matrix = rng.normal(0, math.sqrt(entries.bulk[0]), size=shape[0] * shape[1])
    large = np.flatnonzero(rng.random(len(matrix)) < entries.tail_share)
    matrix[large] = np.sqrt(rng.choice(entries.tail, len(large))) * rng.choice((-1, 1), len(large))
    return spectra({"": torch.from_numpy(matrix.astype(np.float32).reshape(shape))}, {})[""]


class Resampled:
    """The entries of a redrawn matrix: their number is all that a measure may read.

    Resampling leaves their distribution as it is, so a measure of it would be the same in every redrawn layer.
    """

    def __init__(self, count: int) -> None:
        self.count = count

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(
            f"a redrawn layer has no `entries[…].{name}`, which resampling leaves as it is: the measure that reads it "
            "has no null. Take it out of RESAMPLED in orchestrator/forensics/null/redrawn.py, and out of ROUTING."
        )


def _drawn(r: LayerStatistics, rng: np.random.Generator) -> LayerStatistics:
    """The layer's statistics with its entries redrawn, without spectra.

    Raises `ValueError` for a field of `LayerStatistics` that is neither redrawn here nor one of `KEPT`.
    """
    width, ffn = r.width, len(r.position_energy["up"])
    positions = {kind: resampled_sums(r.entries[kind], ffn, width, rng) for kind in r.position_energy}
    c_squared = np.square(co_magnitude(positions))
    heads = {
        kind: resampled_sums(r.entries[kind], len(sums), r.entries[kind].count // len(sums), rng)
        for kind, sums in r.head_energy.items()
    }
    size = sum(entries.count for entries in r.entries.values())
    drawn: dict[str, Any] = {
        "energy": {kind: float(sums.sum()) for kind, sums in (heads | positions).items()},
        "head_energy": heads,
        "position_energy": positions,
        "cosines": {pair: _random_cosines(ffn, width, rng) for pair in r.cosines},
        "written": np.sqrt(resampled_sums(r.entries["down"], width, c_squared, rng)),
        "spectra": {},
        "fingerprints": None if r.heads is None else drawn_fingerprints(r.heads, width, rng),
        "gammas": {place: rng.choice(gamma, len(gamma)) for place, gamma in r.gammas.items()},
        "alignment": {kind: rng.normal() / np.sqrt(r.entries[kind].count) for kind in r.alignment},
        "stuck": None if r.stuck is None else rng.binomial(size, r.stuck) / size,
    }
    if left := {field.name for field in fields(r) if field.init} - set(drawn) - KEPT:
        raise ValueError(
            f"the null does not redraw LayerStatistics.{min(left)}, so no measure of it has one: redraw it in `_drawn` "
            "of orchestrator/forensics/null/redrawn.py, or name it in KEPT there if resampling leaves it as it is."
        )
    counts = {kind: cast(Entries, Resampled(entries.count)) for kind, entries in r.entries.items()}
    return replace(r, entries=counts, **drawn)


def _random_cosines(count: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """cos between random directions in `width` dimensions: [count]."""
    along = rng.normal(size=count)
    across = rng.chisquare(width - 1, size=count) if width > 1 else np.zeros(count)
    return np.asarray(along / np.sqrt(np.square(along) + across))
