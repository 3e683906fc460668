"""Layers by chance: of the shapes and scales of real ones, with independent entries (SCIENCE §3).

Drawn without the entries: sums of squares from the law of the real squared entries, spectra and fingerprints from the
exact laws of Gaussian matrices, compositions by their expected value.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import replace

import numpy as np

from orchestrator.forensics.measures.composition import expected
from orchestrator.forensics.measures.entry import Value
from orchestrator.forensics.measures.heads import drawn_fingerprints
from orchestrator.forensics.measures.spectrum import gaussian_singular_values
from orchestrator.forensics.measures.squares import Squares
from orchestrator.forensics.measures.statistics import LayerStatistics, Stack, co_magnitude
from orchestrator.forensics.measures.table import measure

SPECTRA = ("o", "down")  # kinds of matrices whose spectra are drawn: their ranks speak for roles
STEEPEST = 2.0  # skewness that the cube of a normal variable reaches with its mean still right

Chance = list[dict[str, np.ndarray]]  # per layer: measure → its values by chance, [R]


def by_chance(stack: Stack, measures: Collection[str], draws: int, seed: int, whole: bool) -> Chance:
    """Values of `measures` in `draws` drawn layers for each layer of the stack; without undefined ones.

    `whole`: spectra, heads and compositions are drawn too. Otherwise only what is read from the FFN positions is by
    chance, and much cheaper.
    """
    values: list[dict[str, list[Value]]] = [{} for _ in stack.layers]
    for null in drawn(stack, draws, seed, whole):
        for layer, of_layer in zip(null.layers, values, strict=True):
            for key, value in measure(layer, measures).items():
                of_layer.setdefault(key, []).append(value)
    return [{key: np.array(v, dtype=np.float64) for key, v in layer.items() if None not in v} for layer in values]


def drawn(stack: Stack, draws: int, seed: int, whole: bool) -> Iterator[Stack]:
    """`draws` stacks by chance. Of one layer's, the stream depends on `seed`, the draw and the layer alone."""
    widths = [layer.width for layer in stack.layers]
    head = widths[-1:] * (stack.compositions.shape[1] - len(widths))
    between = np.array([[expected(writer, reader) for reader in widths + head] for writer in (widths[0], *widths)])
    for draw in range(draws):
        streams = (np.random.default_rng((seed, draw, layer.index)) for layer in stack.layers)
        layers = [_layer(layer, rng, whole) for layer, rng in zip(stack.layers, streams, strict=True)]
        yield Stack(layers, between if whole else stack.compositions)


def _layer(real: LayerStatistics, rng: np.random.Generator, whole: bool) -> LayerStatistics:
    if not real.position_energy:  # no FFN
        return _whole(real, rng) if whole else replace(real)
    each = np.ones(real.width)
    positions = {kind: _sums(law, each, len(real.position_energy[kind]), rng) for kind, law in real.squares.items()}
    written = _sums(real.squares["down"], np.square(co_magnitude(positions)), real.width, rng)
    null = replace(real, position_energy=positions, written=np.sqrt(written))
    return _whole(null, rng) if whole else null


def _whole(null: LayerStatistics, rng: np.random.Generator) -> LayerStatistics:
    heads = {
        kind: rng.chisquare(math.prod(null.shapes[kind]) // len(sums), len(sums)) * null.energy[kind]
        for kind, sums in null.head_energy.items()
    }
    return replace(
        null,
        head_energy=heads,
        cosines={pair: _cosines(len(of), null.width, rng) for pair, of in null.cosines.items()},
        spectra={kind: gaussian_singular_values(*null.shapes[kind], rng) for kind in SPECTRA if kind in null.shapes},
        fingerprints=None if null.heads is None else drawn_fingerprints(null.heads, null.width, rng),
    )


def _sums(law: Squares, weights: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Σ_p weights[p]·s_p for `count` independent draws of squared entries s of the law: [count].

    The largest entries are drawn one by one, the others by the three moments of their weighted sum.
    """
    draws = rng.binomial(len(weights), law.share, count)  # of the largest, in each sum
    where = np.repeat(np.arange(count), draws)
    taken = weights[rng.integers(len(weights), size=len(where))]
    largest = np.bincount(where, taken * law.largest[rng.integers(len(law.largest), size=len(where))], count)
    mean, variance, third = (
        moment * np.maximum((weights**n).sum() - np.bincount(where, taken**n, count), 0)
        for n, moment in enumerate((law.mean, law.variance, law.third), start=1)
    )
    return np.asarray(np.maximum(largest + _cubes(mean, variance, third, rng), 0))


def _cubes(mean: np.ndarray, variance: np.ndarray, third: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Cubes of normal variables, of these means, variances and third central moments (Wilson & Hilferty 1931)."""
    spread, z = np.sqrt(variance), rng.normal(size=len(mean))
    skew = np.divide(third, spread**3, out=np.zeros_like(spread), where=spread > 0).clip(-STEEPEST, STEEPEST)
    a = skew * z / 6 - np.square(skew) / 36
    return np.asarray(mean + spread * (z / 3 - skew / 18) * (3 + 3 * a + np.square(a)))


def _cosines(count: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """cos between random directions in `width` dimensions: [count]."""
    along = rng.normal(size=count)
    across = rng.chisquare(width - 1, size=count) if width > 1 else np.zeros(count)
    return np.asarray(along / np.sqrt(np.square(along) + across))
