"""Measures of single matrices: spectra, and largest entries as they are stored."""

from __future__ import annotations

import math

from orchestrator.forensics.measures.entry import Value, entry, ratio
from orchestrator.forensics.measures.extremes import expected_largest
from orchestrator.forensics.measures.spectrum import perplexity
from orchestrator.forensics.measures.statistics import LayerStatistics


@entry("effective_rank.*")
def effective_rank(layer: LayerStatistics, kind: str) -> Value:
    """exp of the entropy of σ/Σσ, 1…min(m, n) (Roy & Vetterli 2007)."""
    return perplexity(layer.spectra[kind]) if kind in layer.spectra else None


@entry("effective_rank.*_fraction")
def effective_rank_fraction(layer: LayerStatistics, kind: str) -> Value:
    """`effective_rank` over min(m, n)."""
    rank = effective_rank(layer, kind)
    return None if rank is None else rank / len(layer.spectra[kind])


@entry("stable_rank.*")
def stable_rank(layer: LayerStatistics, kind: str) -> Value:
    """Squared Frobenius norm over the squared spectral norm."""
    return ratio(layer.energy[kind], float(layer.spectra[kind][-1]) ** 2) if kind in layer.spectra else None


@entry("spectral_norm.*")
def spectral_norm(layer: LayerStatistics, kind: str) -> Value:
    """Largest singular value."""
    return float(layer.spectra[kind][-1]) if kind in layer.spectra else None


@entry("max_abs")
def max_abs(layer: LayerStatistics) -> Value:
    """Largest absolute entry of all the layer's matrices."""
    return max((largest for largest, _ in layer.extremes.values()), default=None)


@entry("max_abs.*")
def max_abs_of(layer: LayerStatistics, kind: str) -> Value:
    """Largest absolute entry."""
    return layer.extremes[kind][0] if kind in layer.extremes else None


@entry("max_abs.*_ratio")
def max_absratio(layer: LayerStatistics, kind: str) -> Value:
    """`max_abs` over the median of the same kind's in the other layers."""
    return layer.stack.max_abs_ratios.get((kind, layer.index))


@entry("max_abs.*_expected")
def max_abs_expected(layer: LayerStatistics, kind: str) -> Value:
    """Expected largest of as many Gaussian entries of the matrix's RMS."""
    if kind not in layer.extremes:
        return None
    return layer.extremes[kind][1] * expected_largest(math.prod(layer.shapes[kind]))
