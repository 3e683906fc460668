"""The table of measures, one decorated function each. Definitions: SCIENCE §1, or the section that a docstring names.

A function takes a layer's statistics and, where its name has a `*`, one of the kinds q, k, v, o, gate, up, down. It
returns None where its need is missing or the value is undefined (a zero matrix has no effective rank).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from orchestrator.forensics.architecture.kinds import ATTENTION, KINDS
from orchestrator.forensics.measures.clusters import SMALLEST
from orchestrator.forensics.measures.composition import sink, source
from orchestrator.forensics.measures.extremes import expected_largest
from orchestrator.forensics.measures.head_pairs import clusters, top_pair_share
from orchestrator.forensics.measures.heads import diversity
from orchestrator.forensics.measures.probe import MEASURES as PROBED
from orchestrator.forensics.measures.spectrum import perplexity
from orchestrator.forensics.measures.statistics import LayerStatistics, literal_threshold, robust_threshold

Value = float | None
Function = Callable[..., Value]
F = TypeVar("F", bound=Function)

NEEDS = {
    "W": "weights",
    "P": "a norm after the branch",
    "H": "the number of heads",
    "L": "4 layers or more, whose matrices and heads are known",
    "R": "a reference checkpoint (step 0 of the same run)",
    "O": "the optimizer state",
    "G": "gradients (tokens to run backwards)",
    "A": "an activation probe (tokens to run)",
}


@dataclass(frozen=True)
class Measure:
    """A function of a layer's statistics, and what these must hold for it."""

    function: Function
    needs: str  # a key of NEEDS


MEASURES: dict[str, Measure] = {}  # name → measure, in the order of a reading's JSON


def entry(name: str, needs: str = "W") -> Callable[[F], F]:
    """Add the decorated function to the table as the measure `name`."""

    def add(function: F) -> F:
        MEASURES[name] = Measure(function, needs)
        return function

    return add


def by_chance(name: str) -> Function:
    """The measure of what chance alone gives for the measure `name` (SCIENCE §3)."""

    def expected(layer: LayerStatistics) -> Value:
        return float(np.mean(layer.chance[name])) if name in layer.chance else None

    expected.__doc__ = f"Mean of `{name}` over drawn layers, as chance alone gives it (SCIENCE §3)."
    return expected


# Spectra, per tensor


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
    return _ratio(layer.energy[kind], float(layer.spectra[kind][-1]) ** 2) if kind in layer.spectra else None


@entry("spectral_norm.*")
def spectral_norm(layer: LayerStatistics, kind: str) -> Value:
    """Largest singular value."""
    return float(layer.spectra[kind][-1]) if kind in layer.spectra else None


# Largest entries, of the matrices as they are stored


@entry("max_abs")
def max_abs(layer: LayerStatistics) -> Value:
    """Largest absolute entry of all the layer's matrices."""
    return max((largest for largest, _ in layer.extremes.values()), default=None)


@entry("max_abs.*")
def max_abs_of(layer: LayerStatistics, kind: str) -> Value:
    """Largest absolute entry."""
    return layer.extremes[kind][0] if kind in layer.extremes else None


@entry("max_abs.*_ratio")
def max_abs_ratio(layer: LayerStatistics, kind: str) -> Value:
    """`max_abs` over the median of the same kind's in the other layers."""
    return layer.stack.max_abs_ratios.get((kind, layer.index))


@entry("max_abs.*_expected")
def max_abs_expected(layer: LayerStatistics, kind: str) -> Value:
    """Expected largest of as many Gaussian entries of the matrix's RMS."""
    if kind not in layer.extremes:
        return None
    return layer.extremes[kind][1] * expected_largest(math.prod(layer.shapes[kind]))


# FFN positions


@entry("cv")
def cv(layer: LayerStatistics) -> Value:
    """Standard deviation (population) of the co-magnitude over its mean."""
    return _ratio(float(layer.co_magnitude.std()), float(layer.co_magnitude.mean()))


@entry("saturated")
def saturated(layer: LayerStatistics) -> int:
    """Number of positions whose co-magnitude is above mean + 3·std, as at most a tenth can be (Cantelli)."""
    return _above(layer.co_magnitude, literal_threshold(layer.co_magnitude))


entry("saturated_expected")(by_chance("saturated"))


@entry("saturated_excess")
def saturated_excess(layer: LayerStatistics) -> Value:
    """`saturated` − `saturated_expected`."""
    expected = by_chance("saturated")(layer)
    return None if expected is None else saturated(layer) - expected


@entry("saturated_robust")
def saturated_robust(layer: LayerStatistics) -> int:
    """Number of positions whose co-magnitude is above median + 3·1.4826·MAD."""
    return _above(layer.co_magnitude, robust_threshold(layer.co_magnitude))


@entry("saturated_robust_fraction")
def saturated_robust_fraction(layer: LayerStatistics) -> Value:
    """`saturated_robust` over the number of positions, as roles are scored on it (SCIENCE §2)."""
    return saturated_robust(layer) / len(layer.co_magnitude)


entry("saturated_robust_expected")(by_chance("saturated_robust"))


@entry("saturated_fixed", "R")
def saturated_fixed(layer: LayerStatistics) -> Value:
    """Number of positions above the threshold of the same layer in the reference checkpoint."""
    return None if layer.threshold is None else _above(layer.co_magnitude, layer.threshold)


entry("saturated_fixed_expected", "R")(by_chance("saturated_fixed"))


@entry("depleted")
def depleted(layer: LayerStatistics) -> int:
    """Number of positions that write against what they read: cos(up_p, down_p) < −3/√d (after 2505.17936).

    Turning both up_p and down_p round changes neither the function nor the cosine, so the gate has no say.
    """
    return int((layer.cosines["up", "down"] < -3 / math.sqrt(layer.width)).sum())


@entry("depletion_fraction")
def depletion_fraction(layer: LayerStatistics) -> Value:
    """`depleted` over the number of positions."""
    return depleted(layer) / len(layer.co_magnitude)


@entry("unique_roles")
def unique_roles(layer: LayerStatistics) -> Value:
    """Number of clusters of FFN positions that hold at least 0.5 % of them."""
    return None if layer.clusters is None else int((layer.clusters.masses >= SMALLEST).sum())


@entry("ffn_cluster_entropy")
def ffn_cluster_entropy(layer: LayerStatistics) -> Value:
    """Entropy of the clusters' masses, in nats; 0 where all positions are of one kind."""
    even = None if layer.clusters is None else perplexity(layer.clusters.masses)
    return None if even is None else math.log(even)


@entry("ffn_cluster_evidence")
def ffn_cluster_evidence(layer: LayerStatistics) -> Value:
    """Root of the fall of BIC from one Gaussian to the clusters: 0 where one is enough, with noise of about 1.

    Unlike their number it does not jump where weights change a little (SCIENCE §3).
    """
    return None if layer.clusters is None else math.sqrt(layer.clusters.evidence)


@entry("gain_cv")
def gain_cv(layer: LayerStatistics) -> Value:
    """`cv` of the positions' gain ‖gate‖·‖up‖·‖down‖, which no exchange of scale between up and down changes."""
    return _ratio(float(layer.gain.std()), float(layer.gain.mean()))


@entry("gain_saturated")
def gain_saturated(layer: LayerStatistics) -> int:
    """Number of positions whose gain is above median + 3·1.4826·MAD."""
    return _above(layer.gain, robust_threshold(layer.gain))


@entry("loudest_gain")
def loudest_gain(layer: LayerStatistics) -> Value:
    """Largest gain of a position over the layer's median: a super weight, in whatever basis the stream is written."""
    return _ratio(float(layer.gain.max()), float(np.median(layer.gain)))


@entry("super_weight_ratio")
def super_weight_ratio(layer: LayerStatistics) -> Value:
    """max over k of sqrt(Σ_p down[k, p]²·c_p²), over the stack's median of the same (after 2411.07191)."""
    return _ratio(float(layer.written.max()), layer.stack.median_written)


# Attention heads


@entry("head_evenness", "H")
def head_evenness(layer: LayerStatistics) -> Value:
    """exp of the entropy of the heads' shares of energy, over the number of heads: 1/heads…1.

    A key/value head that several query heads share counts for each of them in equal parts.
    """
    if layer.heads is None:
        return None
    group = layer.heads.heads // layer.heads.kv_heads
    shared = sum(np.repeat(layer.head_energy[kind] / group, group) for kind in ("k", "v"))
    even = perplexity(layer.head_energy["q"] + layer.head_energy["o"] + shared)
    return None if even is None else even / layer.heads.heads


@entry("head_diversity", "H")
def head_diversity(layer: LayerStatistics) -> Value:
    """1 − mean |cos| between the fingerprints of the layer's heads."""
    return None if layer.fingerprints is None else diversity(layer.fingerprints)


@entry("coupling", "H")
def coupling(layer: LayerStatistics) -> Value:
    """Mean over the other layers of the best match between a head here and a head there."""
    return float(layer.stack.couplings[layer.index])


@entry("coupling_partners", "L")
def coupling_partners(layer: LayerStatistics) -> Value:
    """Number of layers whose heads match this layer's more than the spread of all pairs of layers."""
    return layer.partners.get("coupling")


@entry("head_clusters", "H")
def head_clusters(layer: LayerStatistics) -> Value:
    """Number of groups of heads that are linked by fingerprints more alike than chance gives: 1…heads."""
    return None if layer.fingerprints is None or layer.heads is None else clusters(layer.fingerprints, layer.heads)


@entry("head_composition_top", "H")
def head_composition_top(layer: LayerStatistics) -> Value:
    """Share of the squared cosines between what heads write and later heads read that the top 1 % of pairs hold.

    Of the pairs with a head of this layer. Chance gives 0.084, the share of the top 1 % of χ² variables.
    """
    return top_pair_share(layer.index, layer.stack.head_writes, layer.stack.head_reads)


# Composition with other layers


@entry("source_mean")
def source_mean(layer: LayerStatistics) -> Value:
    """Mean composition C(l→m) into the layers above and the head; absent in the last where no head is known."""
    return source(layer.stack.compositions, layer.index)


@entry("sink_mean")
def sink_mean(layer: LayerStatistics) -> Value:
    """Mean composition C(m→l) out of the embedding and the layers below."""
    return sink(layer.stack.compositions, layer.index)


@entry("synapse_mediator")
def synapse_mediator(layer: LayerStatistics) -> Value:
    """Geometric mean of `source_mean` and `sink_mean`; absent where either is."""
    out, into = source_mean(layer), sink_mean(layer)
    return None if out is None or into is None else math.sqrt(out * into)


@entry("composition_partners", "L")
def composition_partners(layer: LayerStatistics) -> Value:
    """Number of layers that this layer reads, or that read it, more than the spread of all pairs of layers."""
    return layer.partners.get("composition")


# Shares of energy


@entry("attention_share")
def attention_share(layer: LayerStatistics) -> Value:
    """Squared entries of q,k,v,o over those of all matrices."""
    attention = sum(layer.energy[kind] for kind in ATTENTION)
    return _ratio(attention, sum(layer.energy.values()))


@entry("balance")
def balance(layer: LayerStatistics) -> Value:
    """−|attention_share − 0.4|: 0 where the paper sees hubs."""
    share = attention_share(layer)
    return None if share is None else -abs(share - 0.4)


@entry("branch_balance")
def branch_balance(layer: LayerStatistics) -> Value:
    """−|share − 0.4| of attention in the two branches' typical squared entries.

    Typical is the geometric mean over a branch's matrices, and for the FFN the median of it over the positions: then
    an exchange of scale between a branch's matrices, which leaves the function as it is, leaves this too, and it does
    not restate the shape.
    """
    squares = [_mean_square(layer, [kind]) for kind in ATTENTION if kind in layer.energy]
    attention = math.prod(squares) ** (1 / len(squares)) if squares else 0.0
    ffn = float(np.median(np.square(layer.gain) ** (1 / len(layer.position_energy)))) / layer.width
    share = _ratio(attention, attention + ffn)
    return None if share is None else -abs(share - 0.4)


@entry("write_ratio")
def write_ratio(layer: LayerStatistics) -> Value:
    """Median over the positions of √(‖up‖·‖down‖)/‖gate‖; where there is no gate, `down_ratio`.

    `down_ratio` changes when up is multiplied and down divided by a number; this does not.
    """
    energy = layer.position_energy
    if "gate" not in energy:
        return down_ratio(layer)
    ratios = np.sqrt(energy["up"] * energy["down"])[energy["gate"] > 0] / energy["gate"][energy["gate"] > 0]
    return float(np.median(np.sqrt(ratios))) if len(ratios) else None


@entry("down_ratio")
def down_ratio(layer: LayerStatistics) -> Value:
    """RMS of down over the geometric mean of the RMS of gate and up, or the RMS of up."""
    into = [_mean_square(layer, [kind]) for kind in ("gate", "up") if kind in layer.energy]
    return _ratio(math.sqrt(_mean_square(layer, ["down"])), math.prod(into) ** (0.5 / len(into)))


# Norm scales


@entry("gamma_concentration")
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


# Optimizer state


@entry("momentum_alignment.*", "O")
def momentum_alignment(layer: LayerStatistics, kind: str) -> Value:
    """cos(−exp_avg, w), positive where the update grows the weight.

    The mean over the trace's steps; without a trace, of the checkpoint's own step.
    """
    return layer.alignment.get(kind)


@entry("momentum_alignment.*_chance", "O")
def momentum_alignment_chance(layer: LayerStatistics, kind: str) -> Value:
    """1/√n, the standard deviation of that cosine between random directions."""
    return 1 / math.sqrt(math.prod(layer.shapes[kind])) if kind in layer.alignment else None


@entry("gradient_alignment.*", "G")
def gradient_alignment(layer: LayerStatistics, kind: str) -> Value:
    """cos(−gradient, w) of the next-token loss on a text, positive where descent grows the weight.

    The mean over a few backward passes on the finished checkpoint, not the optimizer's own momentum.
    """
    return layer.gradients.get(kind)


@entry("gradient_alignment.*_chance", "G")
def gradient_alignment_chance(layer: LayerStatistics, kind: str) -> Value:
    """1/√n, the standard deviation of that cosine between random directions."""
    return 1 / math.sqrt(math.prod(layer.shapes[kind])) if kind in layer.gradients else None


@entry("stuck_fraction", "O")
def stuck_fraction(layer: LayerStatistics) -> Value:
    """Share of the matrices' entries with |m̂| and √v̂ both within 1 % of their kind's median."""
    return layer.stuck


# Activation probe; for the writes and the alignment, else the stream of random tokens


def activation(name: str) -> Function:
    """The measure that the probe takes of the running model; without a probe, of the stream of random tokens."""
    return lambda layer: layer.activations.get(name, layer.streamed.get(name))


for _name in PROBED:
    if _name != "stream_norm":  # `stream_rms` is shown
        entry(_name, "A")(activation(_name))


@entry("stream_rms", "A")
def stream_rms(layer: LayerStatistics) -> Value:
    """Mean norm of the stream before the layer, over the root of the coordinates that the layer reads and writes."""
    norm = activation("stream_norm")(layer)
    return None if norm is None else norm / math.sqrt(layer.width)


@entry("write_share", "A")
def write_share(layer: LayerStatistics) -> Value:
    """Attention's share of what the two branches write, by their relative writes."""
    attention, ffn = (activation(name)(layer) for name in ("attention_write", "ffn_write"))
    return None if attention is None or ffn is None else _ratio(attention, attention + ffn)


def measure(layer: LayerStatistics, only: Collection[str] | None = None) -> dict[str, Value]:
    """Every measure of a layer, or those named, one for each kind where a name has a `*`; None where it is absent."""
    values: dict[str, Value] = {}
    for pattern, found in MEASURES.items():
        calls = {pattern.replace("*", kind): (layer, kind) for kind in KINDS} if "*" in pattern else {pattern: (layer,)}
        values |= {name: found.function(*call) for name, call in calls.items() if only is None or name in only}
    return {name: value if value is not None and math.isfinite(value) else None for name, value in values.items()}


def _ratio(numerator: float, denominator: float) -> Value:
    return numerator / denominator if denominator else None


def _mean_square(layer: LayerStatistics, kinds: Collection[str]) -> float:
    """Mean of the squared entries of all matrices of these kinds."""
    present = [kind for kind in kinds if kind in layer.energy]
    return sum(layer.energy[kind] for kind in present) / sum(math.prod(layer.shapes[kind]) for kind in present)


def _above(c: np.ndarray, threshold: float) -> int:
    return int((c > threshold).sum())
