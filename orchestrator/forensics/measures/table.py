"""One function per measure, and the table of them all. Definitions: SCIENCE §1.

A function returns None where its need is missing (no optimizer state, no reference, no probe, no such norm, no
gate) or where the value is undefined (a zero matrix has no effective rank).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np

from orchestrator.forensics.architecture.kinds import ATTENTION, FFN, KINDS
from orchestrator.forensics.measures.clusters import SMALLEST
from orchestrator.forensics.measures.composition import sink, source
from orchestrator.forensics.measures.heads import diversity
from orchestrator.forensics.measures.saturation import literal_threshold, robust_threshold
from orchestrator.forensics.measures.spectrum import perplexity
from orchestrator.forensics.measures.statistics import LayerStatistics

Value = float | None


# Spectra, per tensor


def effective_rank(r: LayerStatistics, kind: str) -> Value:
    """exp(entropy of σ/Σσ), 1…min(m, n) (SCIENCE §1; Roy & Vetterli 2007)."""
    return perplexity(r.spectra[kind]) if kind in r.spectra else None


def effective_rank_fraction(r: LayerStatistics, kind: str) -> Value:
    """`effective_rank` over min(m, n) (SCIENCE §1)."""
    rank = effective_rank(r, kind)
    return None if rank is None else rank / len(r.spectra[kind])


def stable_rank(r: LayerStatistics, kind: str) -> Value:
    """‖W‖²/‖W‖₂² (SCIENCE §1)."""
    return _ratio(r.energy[kind], float(r.spectra[kind][-1]) ** 2) if kind in r.spectra else None


def spectral_norm(r: LayerStatistics, kind: str) -> Value:
    """σ₁ (SCIENCE §1)."""
    return float(r.spectra[kind][-1]) if kind in r.spectra else None


# FFN positions


def cv(r: LayerStatistics) -> Value:
    """std/mean of the co-magnitude, population std (SCIENCE §1)."""
    return _ratio(float(r.co_magnitude.std()), float(r.co_magnitude.mean()))


def saturated(r: LayerStatistics) -> Value:
    """Positions above mean + 3·std, at most a tenth of them (SCIENCE §1)."""
    return _above(r.co_magnitude, literal_threshold(r.co_magnitude))


def saturated_robust(r: LayerStatistics) -> Value:
    """Positions above median + 3·1.4826·MAD (SCIENCE §1)."""
    return _above(r.co_magnitude, robust_threshold(r.co_magnitude))


def saturated_robust_fraction(r: LayerStatistics) -> Value:
    """`saturated_robust` over the number of positions, as roles are scored on it (SCIENCE §2)."""
    return _above(r.co_magnitude, robust_threshold(r.co_magnitude)) / len(r.co_magnitude)


def saturated_fixed(r: LayerStatistics) -> Value:
    """Positions above the threshold of the reference checkpoint's same layer (SCIENCE §1)."""
    return None if r.threshold is None else _above(r.co_magnitude, r.threshold)


def saturated_expected(r: LayerStatistics) -> Value:
    """Mean of `saturated` over the resampled layer: the count that chance gives (SCIENCE §1, §3)."""
    return _by_chance(r, "saturated")


def saturated_robust_expected(r: LayerStatistics) -> Value:
    """Mean of `saturated_robust` over the resampled layer (SCIENCE §1, §3)."""
    return _by_chance(r, "saturated_robust")


def saturated_fixed_expected(r: LayerStatistics) -> Value:
    """Mean of `saturated_fixed` over the resampled layer, at the same threshold (SCIENCE §1, §3)."""
    return None if r.threshold is None else _by_chance(r, "saturated_fixed")


def saturated_excess(r: LayerStatistics) -> Value:
    """`saturated` − `saturated_expected` (SCIENCE §1)."""
    count, expected = saturated(r), saturated_expected(r)
    return None if count is None or expected is None else count - expected


def depleted(r: LayerStatistics) -> Value:
    """Positions that write against what they read: cos(up_p, down_p) < −3/√d, with the sign of
    cos(gate_p, up_p) where there is a gate (SCIENCE §1, after 2505.17936)."""
    sign = np.sign(r.cosines["gate", "up"]) if ("gate", "up") in r.cosines else 1.0
    return int((sign * r.cosines["up", "down"] < -3 / math.sqrt(r.width)).sum())


def depletion_fraction(r: LayerStatistics) -> Value:
    """`depleted` over the number of positions (SCIENCE §1)."""
    count = depleted(r)
    return None if count is None else count / len(r.co_magnitude)


def unique_roles(r: LayerStatistics) -> Value:
    """Clusters of FFN positions that hold at least 0.5 % of them (SCIENCE §1)."""
    return None if r.clusters is None else int((r.clusters >= SMALLEST).sum())


def ffn_cluster_entropy(r: LayerStatistics) -> Value:
    """Entropy of the clusters' masses, in nats; 0 where all positions are of one kind (SCIENCE §1)."""
    even = None if r.clusters is None else perplexity(r.clusters)
    return None if even is None else math.log(even)


def super_weight_ratio(r: LayerStatistics) -> Value:
    """max over k of sqrt(Σ_p down[k, p]²·c_p²), over the stack's median of the same (SCIENCE §1, after 2411.07191)."""
    return _ratio(float(r.written.max()), r.stack.median_written)


# Attention heads


def head_evenness(r: LayerStatistics) -> Value:
    """exp(entropy of the heads' shares of energy)/heads, 1/heads…1 (SCIENCE §1).

    A key/value head that several query heads share counts for each of them in equal parts.
    """
    if r.heads is None:
        return None
    group = r.heads.heads // r.heads.kv_heads
    shared = sum(np.repeat(r.head_energy[kind] / group, group) for kind in ("k", "v"))
    even = perplexity(r.head_energy["q"] + r.head_energy["o"] + shared)
    return None if even is None else even / r.heads.heads


def head_diversity(r: LayerStatistics) -> Value:
    """1 − mean |cos| between the fingerprints of the layer's heads (SCIENCE §1)."""
    return None if r.fingerprints is None else diversity(r.fingerprints)


def coupling(r: LayerStatistics) -> Value:
    """Mean over the other layers of the best match between a head here and a head there (SCIENCE §1)."""
    return _known(r.stack.couplings[r.index])


# Composition with other layers


def source_mean(r: LayerStatistics) -> Value:
    """Mean composition C(l→m) into the layers above; absent in the last (SCIENCE §1)."""
    return source(r.stack.compositions, r.index)


def sink_mean(r: LayerStatistics) -> Value:
    """Mean composition C(m→l) out of the embedding and the layers below (SCIENCE §1)."""
    return sink(r.stack.compositions, r.index)


def synapse_mediator(r: LayerStatistics) -> Value:
    """Geometric mean of `source_mean` and `sink_mean`; absent in the last layer (SCIENCE §1)."""
    out, into = source_mean(r), sink_mean(r)
    return None if out is None or into is None else math.sqrt(out * into)


# Shares of energy


def attention_share(r: LayerStatistics) -> Value:
    """Squared entries of q,k,v,o over those of all matrices (SCIENCE §1)."""
    attention = sum(r.energy[kind] for kind in ATTENTION)
    return _ratio(attention, sum(r.energy.values()))


def balance(r: LayerStatistics) -> Value:
    """−|attention_share − 0.4|: 0 where the paper sees hubs (SCIENCE §1)."""
    share = attention_share(r)
    return None if share is None else -abs(share - 0.4)


def balance_per_parameter(r: LayerStatistics) -> Value:
    """`balance` with mean squares for sums, so that it does not restate the layer's shape (SCIENCE §3)."""
    attention, ffn = (_mean_square(r, kinds) for kinds in (ATTENTION, FFN))
    share = _ratio(attention, attention + ffn)
    return None if share is None else -abs(share - 0.4)


def down_ratio(r: LayerStatistics) -> Value:
    """RMS of down over the geometric mean of the RMS of gate and up, or the RMS of up (SCIENCE §1)."""
    into = [_mean_square(r, [kind]) for kind in ("gate", "up") if kind in r.energy]
    return _ratio(math.sqrt(_mean_square(r, ["down"])), math.prod(into) ** (0.5 / len(into)))


# Norm scales


def gamma_concentration(r: LayerStatistics) -> Value:
    """1 − exp(entropy of |γ|/Σ|γ|)/d of the FFN's post-norm, else of its pre-norm (SCIENCE §1)."""
    gamma = r.gammas.get("post_ffn", r.gammas.get("pre_ffn"))
    even = None if gamma is None else perplexity(np.abs(gamma))
    return None if gamma is None or even is None else 1 - even / len(gamma)


def post_norm_damped_fraction(r: LayerStatistics) -> Value:
    """Share of the FFN post-norm's |γ| below half the stack's median (SCIENCE §1)."""
    gamma, median = r.gammas.get("post_ffn"), r.stack.median_gamma
    return None if gamma is None or median is None else float((np.abs(gamma) < median / 2).mean())


# Optimizer state


def momentum_alignment(r: LayerStatistics, kind: str) -> Value:
    """cos(−exp_avg, w), positive where the update grows the weight (SCIENCE §1).

    The mean over the trace's steps; without a trace, of the checkpoint's own step.
    """
    return r.alignment.get(kind)


def momentum_alignment_chance(r: LayerStatistics, kind: str) -> Value:
    """1/√n, the standard deviation of that cosine between random directions (SCIENCE §1)."""
    return 1 / math.sqrt(r.entries[kind].count) if kind in r.alignment else None


def stuck_fraction(r: LayerStatistics) -> Value:
    """Share of the matrices' entries with |m̂| and √v̂ both within 1 % of their kind's median (SCIENCE §1)."""
    return r.stuck


# Activation probe


def total_write(r: LayerStatistics) -> Value:
    """Mean over tokens of ‖x_{l+1} − x_l‖/‖x_l‖; without a probe ‖o‖‖v‖/a + ‖down‖·rms(c)/√f (SCIENCE §1)."""
    if r.activations:
        return r.activations.get("total_write")
    inner, ffn = r.shapes["o"][1], r.shapes["down"][1]
    attention = math.sqrt(r.energy["o"] * r.energy["v"]) / inner
    return attention + math.sqrt(r.energy["down"] * float(np.square(r.co_magnitude).mean()) / ffn)


def write_gain(r: LayerStatistics) -> Value:
    """RMS of what the layer's entries, were they independent, write for an input of RMS 1.

    The proxy of `total_write` with fan-ins for its constants: at an initialisation of 1/√fan-in it is the same for
    layers of any shape, and so does not restate the shape (SCIENCE §3).
    """
    attention = math.sqrt(r.energy["o"] * r.energy["v"] / r.shapes["v"][0])
    return (attention + math.sqrt(r.energy["down"] * float(np.square(r.co_magnitude).mean()))) / math.sqrt(r.width)


def activation(name: str) -> Callable[[LayerStatistics], Value]:
    """The measure that the probe took of the running model under this name (SCIENCE §1, need A)."""
    return lambda r: r.activations.get(name)


NEEDS = {
    "W": "weights",
    "P": "a norm after the branch",
    "G": "a gate",
    "H": "the number of heads",
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
    "depleted": Measure(depleted),
    "depletion_fraction": Measure(depletion_fraction),
    "unique_roles": Measure(unique_roles),
    "ffn_cluster_entropy": Measure(ffn_cluster_entropy),
    "super_weight_ratio": Measure(super_weight_ratio),
    "head_evenness": Measure(head_evenness, "H"),
    "head_diversity": Measure(head_diversity, "H"),
    "coupling": Measure(coupling, "H"),
    "source_mean": Measure(source_mean),
    "sink_mean": Measure(sink_mean),
    "synapse_mediator": Measure(synapse_mediator),
    "attention_share": Measure(attention_share),
    "balance": Measure(balance),
    "balance_per_parameter": Measure(balance_per_parameter),
    "down_ratio": Measure(down_ratio),
    "gamma_concentration": Measure(gamma_concentration),
    "post_norm_damped_fraction": Measure(post_norm_damped_fraction, "P"),
    "momentum_alignment.*": Measure(momentum_alignment, "O"),
    "momentum_alignment.*_chance": Measure(momentum_alignment_chance, "O"),
    "stuck_fraction": Measure(stuck_fraction, "O"),
    "total_write": Measure(total_write),
    "write_gain": Measure(write_gain),
    "attention_write": Measure(activation("attention_write"), "A"),
    "ffn_write": Measure(activation("ffn_write"), "A"),
    "adjacent_alignment": Measure(activation("adjacent_alignment"), "A"),
    "copy_density": Measure(activation("copy_density"), "A"),
    "sink_mass": Measure(activation("sink_mass"), "A"),
}


def measure(reading: LayerStatistics, only: Collection[str] | None = None) -> dict[str, Value]:
    """Every measure of one layer, or those named, `*` spelt out; None where it is absent."""
    values: dict[str, Value] = {}
    for key, entry in MEASURES.items():
        if "*" in key:
            spelt = {key.replace("*", kind): kind for kind in KINDS}
            values |= {
                name: entry.function(reading, kind) for name, kind in spelt.items() if only is None or name in only
            }
        elif only is None or key in only:
            values[key] = entry.function(reading)
    return {key: value if value is not None and math.isfinite(value) else None for key, value in values.items()}


def _ratio(numerator: float, denominator: float) -> Value:
    return numerator / denominator if denominator else None


def _known(value: float) -> Value:
    return float(value) if math.isfinite(value) else None


def _mean_square(r: LayerStatistics, kinds: Collection[str]) -> float:
    """Mean of the squared entries of all matrices of these kinds."""
    present = [kind for kind in kinds if kind in r.energy]
    return sum(r.energy[kind] for kind in present) / sum(r.entries[kind].count for kind in present)


def _by_chance(r: LayerStatistics, key: str) -> Value:
    return float(np.mean(r.chance[key])) if key in r.chance else None


def _above(c: np.ndarray, threshold: float) -> int:
    return int((c > threshold).sum())
