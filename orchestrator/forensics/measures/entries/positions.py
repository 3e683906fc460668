"""Measures of the positions of an FFN: their magnitudes, gains and kinds."""

from __future__ import annotations

import math

import numpy as np

from orchestrator.forensics.measures.clusters import SMALLEST
from orchestrator.forensics.measures.entry import Function, Value, entry, ratio
from orchestrator.forensics.measures.spectrum import perplexity
from orchestrator.forensics.measures.statistics import LayerStatistics, literal_threshold, robust_threshold


def by_chance(name: str) -> Function:
    """The measure of what chance alone gives for the measure `name` (SCIENCE §3)."""

    def expected(layer: LayerStatistics) -> Value:
        return float(np.mean(layer.chance[name])) if name in layer.chance else None

    expected.__doc__ = f"Mean of `{name}` over drawn layers, as chance alone gives it (SCIENCE §3)."
    return expected


@entry("cv", of="ffn")
def cv(layer: LayerStatistics) -> Value:
    """Standard deviation (population) of the co-magnitude over its mean."""
    return ratio(float(layer.co_magnitude.std()), float(layer.co_magnitude.mean()))


@entry("saturated", of="ffn")
def saturated(layer: LayerStatistics) -> int:
    """Number of positions whose co-magnitude is above mean + 3·std, as at most a tenth can be (Cantelli)."""
    return _above(layer.co_magnitude, literal_threshold(layer.co_magnitude))


entry("saturated_expected", of="ffn")(by_chance("saturated"))


@entry("saturated_excess", of="ffn")
def saturated_excess(layer: LayerStatistics) -> Value:
    """`saturated` − `saturated_expected`."""
    expected = by_chance("saturated")(layer)
    return None if expected is None else saturated(layer) - expected


@entry("saturated_robust", of="ffn")
def saturated_robust(layer: LayerStatistics) -> int:
    """Number of positions whose co-magnitude is above median + 3·1.4826·MAD."""
    return _above(layer.co_magnitude, robust_threshold(layer.co_magnitude))


@entry("saturated_robust_fraction", of="ffn")
def saturated_robust_fraction(layer: LayerStatistics) -> Value:
    """`saturated_robust` over the number of positions, as roles are scored on it (SCIENCE §2)."""
    return saturated_robust(layer) / len(layer.co_magnitude)


entry("saturated_robust_expected", of="ffn")(by_chance("saturated_robust"))


@entry("saturated_fixed", "R", of="ffn")
def saturated_fixed(layer: LayerStatistics) -> Value:
    """Number of positions above the threshold of the same layer in the reference checkpoint."""
    return None if layer.threshold is None else _above(layer.co_magnitude, layer.threshold)


entry("saturated_fixed_expected", "R", of="ffn")(by_chance("saturated_fixed"))


@entry("depleted", of="ffn")
def depleted(layer: LayerStatistics) -> int:
    """Number of positions that write against what they read: cos(up_p, down_p) < −3/√d (after 2505.17936).

    Turning both up_p and down_p round changes neither the function nor the cosine, so the gate has no say.
    """
    return int((layer.cosines["up", "down"] < -3 / math.sqrt(layer.width)).sum())


@entry("depletion_fraction", of="ffn")
def depletion_fraction(layer: LayerStatistics) -> Value:
    """`depleted` over the number of positions."""
    return depleted(layer) / len(layer.co_magnitude)


@entry("unique_roles", of="ffn")
def unique_roles(layer: LayerStatistics) -> Value:
    """Number of clusters of FFN positions that hold at least 0.5 % of them."""
    return None if layer.clusters is None else int((layer.clusters.masses >= SMALLEST).sum())


@entry("ffn_cluster_entropy", of="ffn")
def ffn_cluster_entropy(layer: LayerStatistics) -> Value:
    """Entropy of the clusters' masses, in nats; 0 where all positions are of one kind."""
    even = None if layer.clusters is None else perplexity(layer.clusters.masses)
    return None if even is None else math.log(even)


@entry("ffn_cluster_evidence", of="ffn")
def ffn_cluster_evidence(layer: LayerStatistics) -> Value:
    """Root of the fall of BIC from one Gaussian to the clusters: 0 where one is enough, with noise of about 1.

    Unlike their number it does not jump where weights change a little (SCIENCE §3).
    """
    return None if layer.clusters is None else math.sqrt(layer.clusters.evidence)


@entry("gain_cv", of="ffn")
def gain_cv(layer: LayerStatistics) -> Value:
    """`cv` of the positions' gain ‖gate‖·‖up‖·‖down‖, which no exchange of scale between up and down changes."""
    return ratio(float(layer.gain.std()), float(layer.gain.mean()))


@entry("gain_saturated", of="ffn")
def gain_saturated(layer: LayerStatistics) -> int:
    """Number of positions whose gain is above median + 3·1.4826·MAD."""
    return _above(layer.gain, robust_threshold(layer.gain))


@entry("loudest_gain", of="ffn")
def loudest_gain(layer: LayerStatistics) -> Value:
    """Largest gain of a position over the layer's median: a super weight, in whatever basis the stream is written."""
    return ratio(float(layer.gain.max()), float(np.median(layer.gain)))


@entry("super_weight_ratio", of="ffn")
def super_weightratio(layer: LayerStatistics) -> Value:
    """max over k of sqrt(Σ_p down[k, p]²·c_p²), over the stack's median of the same (after 2411.07191)."""
    return ratio(float(layer.written.max()), layer.stack.median_written)


def _above(c: np.ndarray, threshold: float) -> int:
    return int((c > threshold).sum())
