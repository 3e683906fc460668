"""Partners of a layer: those with which it composes, or shares heads, more than pairs of layers do (SCIENCE §1)."""

from __future__ import annotations

import numpy as np

from orchestrator.forensics.measures.composition import expected
from orchestrator.forensics.measures.heads import expected_match
from orchestrator.forensics.measures.statistics import Stack
from orchestrator.forensics.null.peers import FEWEST, limit, spread

SAMPLED = 1024  # pairs whose spread is taken, evenly spaced in their order
# Distance from the median that one maximum in a thousand exceeds over that of a Gaussian, both in units of `spread`:
# of the Gumbel law, ln ln 2 − ln(−ln 0.999) = 6.54 over 1.135, against 3.09.
MAXIMA = 1.86


def partners(stack: Stack) -> list[dict[str, int]]:
    """Per layer, the number of its partners by composition and by coupling; without those that are not known."""
    layers = stack.layers
    composed = [[expected(a.width, b.width) for b in layers] for a in layers]
    coupled = [
        [
            expected_match(a.heads.heads, b.heads.heads, min(a.width, b.width)) if a.heads and b.heads else np.nan
            for b in layers
        ]
        for a in layers
    ]
    found = {
        "composition": above_peers(stack.compositions[1:, : len(layers)], np.array(composed)),
        "coupling": above_peers(stack.matches, np.array(coupled), maxima=True),
    }
    counts = {name: pairs.sum(axis=1).tolist() for name, pairs in found.items() if pairs is not None}
    return [{name: of[index] for name, of in counts.items()} for index in range(len(layers))]


def above_peers(values: np.ndarray, expected: np.ndarray, maxima: bool = False) -> np.ndarray | None:
    """True for the pairs (l, m), l < m, whose value is above what chance gives and beyond the spread of all pairs.

    `values`, `expected` [L, L]: only above the diagonal, NaN where a pair has none. `maxima`: a value is the largest of
    many and follows a Gumbel law, where the logarithm of others is nearly Gaussian. The result is symmetric. None with
    too few pairs for a spread.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.triu(values / expected, 1)
    y = ratios if maxima else np.log(np.where(ratios > 0, ratios, np.nan))
    known = np.triu(np.isfinite(y), 1)
    if known.sum() < FEWEST:
        return None
    pairs = np.sort(y[known])
    sample = pairs[np.linspace(0, len(pairs) - 1, min(len(pairs), SAMPLED)).astype(int)]
    bar = np.median(pairs) + limit(len(pairs)) * (MAXIMA if maxima else 1.0) * spread(sample)
    found = known & (y > bar) & (ratios > 1)
    return np.asarray(found | found.T)
