"""Measures of norm scales."""

from __future__ import annotations

import numpy as np

from orchestrator.forensics.measures.entry import Value, entry
from orchestrator.forensics.measures.spectrum import perplexity
from orchestrator.forensics.measures.statistics import LayerStatistics


@entry("gamma_concentration", "N")
def gamma_concentration(layer: LayerStatistics) -> Value:
    """1 − exp(entropy of |γ|/Σ|γ|)/d of the FFN's post-norm, else of its pre-norm."""
    gamma = layer.gammas.get("post_ffn", layer.gammas.get("pre_ffn"))
    even = None if gamma is None else perplexity(np.abs(gamma))
    return None if gamma is None or even is None else 1 - even / len(gamma)


@entry("post_norm_concentration", "P")
def post_norm_concentration(layer: LayerStatistics) -> Value:
    """`gamma_concentration` of the FFN's post-norm alone: a pre-norm's scale belongs to the matrices that read it."""
    return gamma_concentration(layer) if "post_ffn" in layer.gammas else None


@entry("post_norm_damped_fraction", "P")
def post_norm_damped_fraction(layer: LayerStatistics) -> Value:
    """Share of the FFN post-norm's |γ| below half the stack's median."""
    gamma, median = layer.gammas.get("post_ffn"), layer.stack.median_gamma
    return None if gamma is None or median is None else float((np.abs(gamma) < median / 2).mean())
