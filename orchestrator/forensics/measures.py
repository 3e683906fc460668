"""One function per measure, and the table of them all. Definitions: SCIENCE §1.

A function returns None where its need is missing (no optimizer state, no reference, no probe, no such norm)
or where the value is undefined (a zero matrix has no effective rank).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from orchestrator.forensics.anatomy import ATTENTION, FFN, KINDS
from orchestrator.forensics.reading import Reading
from orchestrator.forensics.saturation import literal_threshold, robust_threshold
from orchestrator.forensics.spectrum import perplexity

Value = float | None


# Spectra, per tensor


def effective_rank(r: Reading, kind: str) -> Value:
    """exp(entropy of σ/Σσ), 1…min(m, n) (SCIENCE §1; Roy & Vetterli 2007)."""
    return perplexity(r.spectrum(kind))


def effective_rank_fraction(r: Reading, kind: str) -> Value:
    """`effective_rank` over min(m, n) (SCIENCE §1)."""
    rank = effective_rank(r, kind)
    return None if rank is None else rank / len(r.spectrum(kind))


def stable_rank(r: Reading, kind: str) -> Value:
    """‖W‖²/‖W‖₂² (SCIENCE §1)."""
    return _ratio(float(np.square(r.spectrum(kind)).sum()), float(r.spectrum(kind)[-1]) ** 2)


def spectral_norm(r: Reading, kind: str) -> Value:
    """σ₁ (SCIENCE §1)."""
    return float(r.spectrum(kind)[-1])


# FFN co-magnitude


def cv(r: Reading) -> Value:
    """std/mean of the co-magnitude, population std (SCIENCE §1)."""
    return _ratio(float(r.co_magnitude.std()), float(r.co_magnitude.mean()))


def saturated(r: Reading) -> Value:
    """Positions above mean + 3·std, at most a tenth of them (SCIENCE §1)."""
    return _above(r.co_magnitude, literal_threshold(r.co_magnitude))


def saturated_robust(r: Reading) -> Value:
    """Positions above median + 3·1.4826·MAD (SCIENCE §1)."""
    return _above(r.co_magnitude, robust_threshold(r.co_magnitude))


def saturated_robust_fraction(r: Reading) -> Value:
    """`saturated_robust` over the number of positions, as roles are scored on it (SCIENCE §2)."""
    return _above(r.co_magnitude, robust_threshold(r.co_magnitude)) / len(r.co_magnitude)


def saturated_fixed(r: Reading) -> Value:
    """Positions above the threshold of the reference checkpoint's same layer (SCIENCE §1)."""
    return None if r.fixed_threshold is None else _above(r.co_magnitude, r.fixed_threshold)


def saturated_expected(r: Reading) -> float:
    """Mean of `saturated` over the resampled layer: the count that chance gives (SCIENCE §1, §3)."""
    return _mean([_above(c, literal_threshold(c)) for c in r.resampled_co_magnitudes])


def saturated_robust_expected(r: Reading) -> Value:
    """Mean of `saturated_robust` over the resampled layer (SCIENCE §1, §3)."""
    return _mean([_above(c, robust_threshold(c)) for c in r.resampled_co_magnitudes])


def saturated_fixed_expected(r: Reading) -> Value:
    """Mean of `saturated_fixed` over the resampled layer, at the same threshold (SCIENCE §1, §3)."""
    threshold = r.fixed_threshold
    return None if threshold is None else _mean([_above(c, threshold) for c in r.resampled_co_magnitudes])


def saturated_excess(r: Reading) -> Value:
    """`saturated` − `saturated_expected` (SCIENCE §1)."""
    return _above(r.co_magnitude, literal_threshold(r.co_magnitude)) - saturated_expected(r)


def depletion_fraction(r: Reading) -> Value:
    """Share of neurons that write against what they read: cos(up_p, down_p) < −3/√d, with the sign of
    cos(gate_p, up_p) (SCIENCE §1, after 2505.17936)."""
    gate, up, down = r.layer.weight("gate"), r.layer.weight("up"), r.layer.weight("down").T  # each [f, d]
    aligned = np.sign(np.einsum("pd,pd->p", gate, up)) * np.einsum("pd,pd->p", up, down)
    norms = np.linalg.norm(up, axis=1) * np.linalg.norm(down, axis=1)
    return float((aligned < -3 / math.sqrt(up.shape[1]) * norms).mean())


# Shares of energy


def attention_share(r: Reading) -> Value:
    """Squared entries of q,k,v,o over those of all seven matrices (SCIENCE §1)."""
    attention = sum(r.energy(kind) for kind in ATTENTION)
    return _ratio(attention, attention + sum(r.energy(kind) for kind in FFN))


def balance(r: Reading) -> Value:
    """−|attention_share − 0.4|: 0 where the paper sees hubs (SCIENCE §1)."""
    share = attention_share(r)
    return None if share is None else -abs(share - 0.4)


def head_evenness(r: Reading) -> Value:
    """exp(entropy of the heads' shares of energy)/heads, 1/heads…1 (SCIENCE §1).

    A key/value head that several query heads share counts for each of them in equal parts.
    """
    h = r.layer.heads
    energy = np.square(r.layer.weight("q")).reshape(h.heads, -1).sum(axis=1)  # [heads]
    energy += np.square(r.layer.weight("o")).sum(axis=0).reshape(h.heads, -1).sum(axis=1)
    group = h.heads // h.kv_heads
    for kind in ("k", "v"):
        energy += np.repeat(np.square(r.layer.weight(kind)).reshape(h.kv_heads, -1).sum(axis=1) / group, group)
    even = perplexity(energy)
    return None if even is None else even / h.heads


def down_ratio(r: Reading) -> Value:
    """RMS of down over the geometric mean of the RMS of gate and up (SCIENCE §1)."""
    rms = {kind: math.sqrt(r.energy(kind) / r.layer.weight(kind).size) for kind in FFN}
    return _ratio(rms["down"], math.sqrt(rms["gate"] * rms["up"]))


# Norm scales


def gamma_concentration(r: Reading) -> Value:
    """1 − exp(entropy of |γ|/Σ|γ|)/d of the FFN's post-norm, else of its pre-norm (SCIENCE §1)."""
    gamma = r.layer.norm("post_ffn")
    gamma = r.layer.norm("pre_ffn") if gamma is None else gamma
    even = None if gamma is None else perplexity(np.abs(gamma))
    return None if gamma is None or even is None else 1 - even / len(gamma)


def post_norm_damped_fraction(r: Reading) -> Value:
    """Share of the FFN post-norm's |γ| below half the stack's median (SCIENCE §1)."""
    gamma, median = r.layer.norm("post_ffn"), r.stack.median_gamma
    return None if gamma is None or median is None else float((np.abs(gamma) < median / 2).mean())


# Optimizer state


def momentum_alignment(r: Reading, kind: str) -> Value:
    """cos(−exp_avg, w), positive where the update grows the weight (SCIENCE §1).

    The mean over the trace's steps; without a trace, of the checkpoint's own step.
    """
    if trace := r.layer.trace(kind):
        return _mean(trace)
    momentum = r.layer.moment(kind, "exp_avg")
    if momentum is None:
        return None
    product = float((momentum * r.layer.weight(kind)).sum())
    return _ratio(-product, math.sqrt(float(np.square(momentum).sum()) * r.energy(kind)))


def momentum_alignment_chance(r: Reading, kind: str) -> Value:
    """1/√n, the standard deviation of that cosine between random directions (SCIENCE §1)."""
    return None if momentum_alignment(r, kind) is None else 1 / math.sqrt(r.layer.weight(kind).size)


def stuck_fraction(r: Reading) -> Value:
    """Share of the matrices' entries with |m̂| and √v̂ both within 1 % of their kind's median (SCIENCE §1).

    Bias correction multiplies an entry and its median alike, so the raw moments give the same share.
    """
    medians = r.stack.moment_medians
    if medians is None:
        return None
    stuck = size = 0
    for kind, (first, second) in medians.items():
        momentum, square = r.layer.moment(kind, "exp_avg"), r.layer.moment(kind, "exp_avg_sq")
        assert momentum is not None  # the medians are over these very tensors
        assert square is not None
        stuck += int(((np.abs(momentum) <= 0.01 * first) & (np.sqrt(square) <= 0.01 * second)).sum())
        size += momentum.size
    return stuck / size


# Activation probe


def total_write(r: Reading) -> Value:
    """Mean over tokens of ‖x_{l+1} − x_l‖/‖x_l‖ (SCIENCE §1)."""
    return None if r.stack.probe is None else r.stack.probe[r.index]["total_write"]


def adjacent_alignment(r: Reading) -> Value:
    """Mean over tokens of cos(x_l, x_{l+1}) (SCIENCE §1; 1 − Block Influence of ShortGPT)."""
    return None if r.stack.probe is None else r.stack.probe[r.index]["adjacent_alignment"]


NEEDS = {
    "W": "weights",
    "P": "a norm after the branch",
    "R": "a reference checkpoint (step 0 of the same run)",
    "O": "the optimizer state",
    "A": "an activation probe (tokens to run)",
}


@dataclass(frozen=True)
class Measure:
    """A function of a reading, and what the reading must hold for it."""

    function: Callable[..., Value]
    needs: str = "W"  # a key of NEEDS


# `*` stands for each of q, k, v, o, gate, up, down: such a function takes the kind as well.
MEASURES = {
    "effective_rank.*": Measure(effective_rank),
    "effective_rank.*_fraction": Measure(effective_rank_fraction),
    "stable_rank.*": Measure(stable_rank),
    "spectral_norm.*": Measure(spectral_norm),
    "cv": Measure(cv),
    "saturated": Measure(saturated),
    "saturated_expected": Measure(saturated_expected),
    "saturated_excess": Measure(saturated_excess),
    "saturated_robust": Measure(saturated_robust),
    "saturated_robust_fraction": Measure(saturated_robust_fraction),
    "saturated_robust_expected": Measure(saturated_robust_expected),
    "saturated_fixed": Measure(saturated_fixed, "R"),
    "saturated_fixed_expected": Measure(saturated_fixed_expected, "R"),
    "depletion_fraction": Measure(depletion_fraction),
    "attention_share": Measure(attention_share),
    "balance": Measure(balance),
    "head_evenness": Measure(head_evenness),
    "down_ratio": Measure(down_ratio),
    "gamma_concentration": Measure(gamma_concentration),
    "post_norm_damped_fraction": Measure(post_norm_damped_fraction, "P"),
    "momentum_alignment.*": Measure(momentum_alignment, "O"),
    "momentum_alignment.*_chance": Measure(momentum_alignment_chance, "O"),
    "stuck_fraction": Measure(stuck_fraction, "O"),
    "total_write": Measure(total_write, "A"),
    "adjacent_alignment": Measure(adjacent_alignment, "A"),
}


def measure(reading: Reading) -> dict[str, Value]:
    """Every measure of one layer, `*` spelt out; None where it is absent."""
    values: dict[str, Value] = {}
    for key, entry in MEASURES.items():
        if "*" in key:
            values |= {key.replace("*", kind): entry.function(reading, kind) for kind in KINDS}
        else:
            values[key] = entry.function(reading)
    return {key: value if value is not None and math.isfinite(value) else None for key, value in values.items()}


def _ratio(numerator: float, denominator: float) -> Value:
    return numerator / denominator if denominator else None


def _mean(values: list[float] | list[int]) -> float:
    return float(np.mean(values))


def _above(c: np.ndarray, threshold: float) -> int:
    return int((c > threshold).sum())
