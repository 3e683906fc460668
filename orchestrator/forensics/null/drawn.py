"""Layers by chance: of the shapes and scales of real ones, with independent entries (SCIENCE §3).

Drawn without the entries: sums of squares from the gamma law of their mean and variance, spectra and fingerprints from
the exact laws of Gaussian matrices, compositions by their expected value.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import replace

import numpy as np

from orchestrator.forensics.measures.composition import expected
from orchestrator.forensics.measures.heads import drawn_fingerprints
from orchestrator.forensics.measures.spectrum import gaussian_singular_values
from orchestrator.forensics.measures.statistics import LayerStatistics, Stack, co_magnitude
from orchestrator.forensics.measures.table import Value, measure

SPECTRA = ("o", "down")  # kinds of matrices whose spectra are drawn: their ranks speak for roles

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
    positions = {
        kind: _sums(real, kind, np.ones(real.width), len(sums), rng) for kind, sums in real.position_energy.items()
    }
    squares = np.square(co_magnitude(positions))
    null = replace(real, position_energy=positions, written=np.sqrt(_sums(real, "down", squares, real.width, rng)))
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


def _sums(layer: LayerStatistics, kind: str, weights: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Σ_p weights[p]·s_p for `count` independent draws of squared entries s of a matrix: [count]."""
    mean = layer.energy[kind] / math.prod(layer.shapes[kind])
    total, of_one = mean * float(weights.sum()), layer.fourth[kind] - mean**2  # variance of one square
    if of_one <= 1e-6 * mean**2 or not total:  # entries that are all equal, up to rounding
        return np.full(count, total)
    variance = of_one * float(np.square(weights).sum())
    return rng.gamma(total**2 / variance, variance / total, count)


def _cosines(count: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """cos between random directions in `width` dimensions: [count]."""
    along = rng.normal(size=count)
    across = rng.chisquare(width - 1, size=count) if width > 1 else np.zeros(count)
    return np.asarray(along / np.sqrt(np.square(along) + across))
