"""The treatment of each routed feature in the calibrated scoring (SCIENCE §3)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from orchestrator.forensics.roles.routing import FEATURES

Array = np.ndarray


@dataclass(frozen=True)
class Treatment:
    """The comparison of the layers' values of one feature."""

    measure: str | None = None  # used instead: one that no rewriting of the same function changes, or a count
    transform: Callable[[Array], Array] = np.asarray  # to values whose chance is nearly Gaussian
    shaped: bool = False  # depends on the layer's shape: where shapes differ, its value by chance is subtracted
    noise: float = 0.0  # least standard deviation by chance, after the transform
    whole: bool = False  # over all matrices of a layer: only layers that have the same kinds of them are peers
    growth: float = 0.0  # power of the stream's RMS with which it grows from layer to layer where all are alike
    # Number of layers, and whether the head reads the last → relative spread of each layer by chance, [L].
    unevenness: Callable[[int, bool], Array] = lambda layers, head: np.ones(layers)


def logarithm(values: Array) -> Array:
    """ln, for ratios."""
    return np.asarray(np.log(np.maximum(values, np.finfo(float).tiny)))


def anscombe(values: Array) -> Array:
    """Anscombe's transform of counts: their noise becomes nearly normal, of variance 1."""
    return np.asarray(2 * np.sqrt(values + 3 / 8))


def concentration(evenness: Array) -> Array:
    """−ln(1 − evenness): what evenness lacks to 1 is a sum of squares, by chance far from Gaussian."""
    return -logarithm(1 - evenness)


def steadiness(alignment: Array) -> Array:
    """−ln(1 − cos): the stream's turn is a squared distance."""
    return -logarithm(1 - alignment)


def sources(layers: int, head: bool) -> Array:
    """A mean over the layers above, and the head where it is known: its chance shrinks with their number."""
    return 1 / np.sqrt(np.maximum(np.arange(layers)[::-1] + head, 1))


def sinks(layers: int, head: bool) -> Array:
    """A mean over the layers below and the embedding."""
    return 1 / np.sqrt(1 + np.arange(layers))


def mediators(layers: int, head: bool) -> Array:
    """The geometric mean of a source and a sink."""
    return np.hypot(sources(layers, head), sinks(layers, head)) / 2


STRUCTURAL = Treatment(shaped=True)
GIVEN = {
    "effective_rank.o_fraction": STRUCTURAL,
    "balance": Treatment("branch_balance"),
    "head_evenness": Treatment(transform=concentration, shaped=True),
    "coupling": STRUCTURAL,
    "sink_mean": Treatment(transform=logarithm, shaped=True, whole=True, unevenness=sinks),
    "synapse_mediator": Treatment(transform=logarithm, shaped=True, whole=True, unevenness=mediators),
    "source_mean": Treatment(transform=logarithm, shaped=True, whole=True, unevenness=sources),
    "stuck_fraction": Treatment(whole=True),
    "down_ratio": Treatment("write_ratio", logarithm),
    "depletion_fraction": Treatment("depleted", anscombe, shaped=True, noise=1.0),
    "effective_rank.down_fraction": STRUCTURAL,
    "cv": Treatment("gain_cv", logarithm, shaped=True),
    "saturated_robust_fraction": Treatment("gain_saturated", anscombe, shaped=True, noise=1.0),
    "total_write": Treatment(transform=logarithm, growth=-1.0),  # relative to a stream that grows as layers write
    "adjacent_alignment": Treatment(transform=steadiness, growth=2.0),
    "head_diversity": STRUCTURAL,
    "unique_roles": Treatment("ffn_cluster_evidence", noise=1.0),
    "super_weight_ratio": Treatment("loudest_gain", logarithm, shaped=True),
    "gamma_concentration": Treatment("post_norm_concentration"),
}
TREATMENTS = {feature: GIVEN.get(feature, Treatment()) for feature in FEATURES}
SHAPED = frozenset(t.measure or feature for feature, t in TREATMENTS.items() if t.shaped)
