"""The definitions in the pages: one entry per term, one click away from every column that it explains."""

from __future__ import annotations

import inspect
from dataclasses import dataclass

from orchestrator.analysis.sections.section import Section
from orchestrator.analysis.statistics import EXACT_PAIRS, MAX_PATTERNS
from orchestrator.forensics.measures.table import MEASURES

EXCHANGED = MAX_PATTERNS.bit_length()  # pairs; half of the patterns suffice, the others give the same distances
SIGN_FLIP = (
    "Two-sided sign-flip test of the paired differences: the share of patterns of signs whose mean is as far from 0, "
    f"exact (all 2ⁿ of them) up to {EXACT_PAIRS} pairs, with more by patterns drawn at random. With fewer than six "
    "pairs p cannot reach 0.05."
)


@dataclass(frozen=True)
class Term:
    """A term as it is printed, and its definition."""

    title: str
    text: str


OWN = {
    "experiment": Term(
        "arm, seed, pair",
        "An arm is one list of settings; the first is the baseline. One arm at one seed is one training run. A pair is "
        "the runs of two arms at one seed: they saw the same batches, started from the same streams of random numbers, "
        "and differ in the declared keys only. The replicate of every statistic is the pair (SCIENCE §8).",
    ),
    "heldout": Term(
        "test, validation and best validation loss",
        "Mean cross-entropy in nats per token on text that was not trained on. Validation rows are read during "
        "training, test rows once at its end; the rows that reward a sidecar are a third, disjoint split. The mean is "
        "unweighted over the domains.",
    ),
    "delta": Term(
        "Δ = b − a",
        "Mean over the pairs of arm b's value minus the baseline's. Of a loss, negative is better.",
    ),
    "interval": Term(
        "95 % and 90 % interval",
        "Confidence interval of the mean paired difference: Student's t; from six pairs each end is the further one of "
        "it and a BCa bootstrap whose level is widened for few values. By simulation it covers 95 % of symmetric "
        "differences and 86 to 94 % of very skewed ones. The 90 % interval decides equivalence.",
    ),
    "band": Term(
        "band around Δ",
        "Pointwise 95 % interval (Student's t over the pairs) of the difference at every evaluation. It is not a test: "
        "one of twenty points lies outside by chance.",
    ),
    "p": Term(
        "p",
        f"{SIGN_FLIP} Primary outcomes are tested as a sequence, secondary ones share a Holm correction.",
    ),
    "p_alone": Term("p of a test by itself", f"{SIGN_FLIP} It is not corrected for other tests."),
    "p_contrast": Term(
        "p of a contrast",
        f"{SIGN_FLIP} Contrasts are tested in order, each at 0.05, until one is not significant; p of later ones is "
        "in parentheses.",
    ),
    "holm": Term(
        "p by Holm",
        "p of the first primary outcome, corrected by Holm for the number of arms: if no arm differs, the chance that "
        "any is called better or worse is 5 % at most.",
    ),
    "q": Term(
        "q",
        "p adjusted by Benjamini and Hochberg over all arms with enough pairs to be called: of the arms with q ≤ 0.05 "
        "at most 5 % are expected to be false. It holds approximately, because tests are two-sided and arms share "
        "baselines.",
    ),
    "expect": Term(
        "lines of expect",
        "Each line says what the layers of an arm should become. Delivered: the number of lines that hold, of all.",
    ),
    "expect_mean": Term(
        "number of a line of expect",
        "Mean over the seeds of the share of layers with the role, or of the quantity. It is a value of one arm, not a "
        "difference. Beside it: its mean at step 0, and that of the baseline.",
    ),
    "expect_interval": Term(
        "95 % interval of a line of expect",
        "Confidence interval of the mean over the seeds, computed as for paired differences and cut at the number's "
        "smallest and largest possible value.",
    ),
    "expect_seeds": Term(
        "seeds of a line of expect", "Seeds whose number lies inside the wanted bounds, of those that have the number."
    ),
    "expect_verdict": Term(
        "delivered, not delivered, inconclusive",
        "Delivered: the 95 % interval of the mean lies inside the wanted bounds, and so do more seeds than even odds "
        "explain at 0.05 (exact one-sided sign test). Not delivered: both lie outside. Otherwise inconclusive.",
    ),
    "contrast": Term(
        "value of a contrast",
        "Weighted sum of the arms' losses at one seed, mean over the seeds in which all of these arms are complete.",
    ),
    "contrast_verdict": Term(
        "verdict on a contrast",
        "Of two arms: the arm of positive weight is better or worse. Of more: the sum is negative or positive. Both "
        "need p ≤ 0.05, significance of all contrasts before it, and a 95 % interval that excludes 0. Equivalent: the "
        "90 % interval lies within ±1 % of the loss of the arms with negative weight. Otherwise inconclusive, or not "
        "tested.",
    ),
    "verdict": Term(
        "better, worse, equivalent, inconclusive",
        "Better or worse: p ≤ 0.05 and the 95 % interval excludes 0. Equivalent: the 90 % interval lies within ±1 % of "
        "the baseline's loss. Otherwise inconclusive.",
    ),
    "correlation": Term("r", "Pearson's correlation of the arms over the seeds; the higher, the more pairing gains."),
    "role": Term(
        "role and margin",
        "Every layer is scored as hub (routes information), damper (holds the residual stream down), passthrough "
        "(changes little) and specialist (few loud FFN positions): the mean of z-scored measures through a sigmoid. "
        "The highest score gives the role if it leads by more than 0.05; the lead is the margin (SCIENCE §2).",
    ),
    "tie": Term("· and H/S", "No role leads by more than 0.05. Two letters name the two leaders."),
    "null": Term(
        "calibrated scoring",
        "A z-score has a winner even on noise. So a measure counts only where it exceeds what the same weights give "
        "with their entries resampled; then at most 2 % of the layers of untrained models have a role (SCIENCE §3).",
    ),
    "transition": Term(
        "transitions, and what chance gives",
        "Layers × intervals between successive readings, by state before and after. By chance: the count expected if "
        "every reading dealt its own states to its layers at random. Cohen's κ: 1 = nothing changed, 0 = as by chance.",
    ),
    "role_shift": Term(
        "p of a role shift",
        "Distance between the arms' shares of seeds in each state, summed over the layers, against exchanges of the "
        f"arms' labels within pairs: all of them up to {EXCHANGED} pairs, with more at random. A layer's p compares it "
        "with the largest distance of any layer (max-T), so it is corrected for their number.",
    ),
    "coincidence": Term(
        "transitions and loss drops",
        "State changes of layers in the intervals in which validation loss falls further than predicted from its "
        "neighbours (more than 3 robust σ). By chance: the same with the transitions shifted circularly within "
        "stretches of the run that double in length, so that the trends of the two series cannot make them coincide "
        "(SCIENCE §4).",
    ),
    "p_coincidence": Term(
        "p of a coincidence",
        "One-sided: the share of all circular shifts, in all cells at once, under which at least as many transitions "
        "fall into the intervals of a drop. It is not corrected for other tests.",
    ),
    "centre": Term(
        "centre of the budget",
        "Mean depth of the saturated positions, 0 = first layer, 1 = last. The distance between two budgets is "
        "Wasserstein-1 along the same scale.",
    ),
    "conservation": Term(
        "conserved",
        "Verdict on the ratio of the arms' budgets b / a: conserved where its 90 % interval lies within 0.80 … 1.25, "
        "not conserved where it lies outside, otherwise inconclusive. Always inconclusive: where a seed's budget is "
        "empty or all ratios are equal; instead of conserved, where chance gives one of the budgets or most of it; "
        "instead of not conserved, where the counts by chance differ as much. No larger than chance: both budgets are "
        "what the layers' own entries give when resampled. Not claimed: for mean + 3 std (SCIENCE §1, §4).",
    ),
    "flattening": Term(
        "CV a / b",
        "Ratio of the two arms' CV in a layer, geometric mean over the pairs: above 1, b is flatter. Its p: "
        "exact sign-flip of the mean log ratio, corrected for the layers by step-down max-T.",
    ),
    "symmetry": Term(
        "spread",
        "Standard deviation and range of attention's share of the energy over the layers. The paper has 0.014 for its "
        "vanilla model and 0.13 for its reward-driven one (§7).",
    ),
    "sidecar": Term(
        "multipliers",
        "The sidecar's factor on one unit's weight decay, learning rate or branch gain; 1 leaves it as configured. "
        "Geometric means; ▲ above the mean of its own run in every seed, ▼ below it (SCIENCE §6).",
    ),
    "width": Term("width", "Residual coordinates that a layer reads and writes; the others bypass it (SCIENCE §7)."),
    "parameters": Term(
        "parameters", "Trained parameters of one model; Δ: how many more than the baseline's, per cent."
    ),
    "flops": Term(
        "FLOPs",
        "Floating-point operations of one run, forward and backward, from the shapes. At equal FLOPs the more "
        "expensive run is read where the cheaper one ends; the sidecar's held-out passes count.",
    ),
    "pathology": Term(
        "× its peers",
        "A tensor's spectral norm over the median of the same kind in the other layers. From 10 × a warning, from "
        "30 × critical: the paper's diverging runs had 30 to 100 × (§8).",
    ),
}  # fmt: skip


def _of_measures() -> dict[str, Term]:
    """Every measure, defined by the docstring of its function."""
    found = {}
    for name, measure in MEASURES.items():
        text = inspect.getdoc(measure.function)
        if text and measure.function.__name__ != "<lambda>":
            found[name.replace(".*", "").replace("*", "")] = Term(name, " ".join(text.split()))
    return found


PROBED = {
    "attention_write": Term("attention_write", "`total_write` of the attention branch alone (SCIENCE §1)."),
    "ffn_write": Term("ffn_write", "`total_write` of the FFN branch alone (SCIENCE §1)."),
    "adjacent_alignment": Term(
        "adjacent_alignment", "Mean cos(x_l, x_{l+1}) over tokens: 1 − Block Influence (ShortGPT)."
    ),
    "copy_density": Term(
        "copy_density",
        "Attention on earlier positions whose token equals the current one, or follows an earlier copy of it, over "
        "its chance level (SCIENCE §1).",
    ),
    "sink_mass": Term("sink_mass", "Attention on the first position and on register tokens (SCIENCE §1)."),
    "co_magnitude": Term("co-magnitude", "‖gate[p,:]‖·‖up[p,:]‖ of every FFN position p of a layer (SCIENCE §1)."),
}
GLOSSARY = OWN | _of_measures() | PROBED

HEADS = {  # the first line of a table's column head → its term
    "Δ": "delta", "Δ = b − a": "delta", "value": "delta", "95 % interval": "interval", "90 % interval": "interval",
    "p": "p", "Holm": "holm", "p, corrected": "p", "verdict": "verdict", "n": "experiment", "r": "correlation",
    "metric": "heldout", "domain": "heldout", "loss": "heldout", "equal": "flops", "FLOPs": "flops",
    "width": "width", "parameters": "parameters", "CV": "cv", "satur.": "saturated_robust",
    "robust": "saturated_robust", "fixed": "saturated_fixed", "mean + 3 std": "saturated",
    "std": "symmetry", "range": "symmetry", "distance": "role_shift", "changed": "transition",
    "κ": "transition", "drops": "coincidence",
    "together": "coincidence", "× its peers": "pathology", "budget b / a": "conservation", "centre shift": "centre",
    "q": "q", "lines": "expect",
}  # fmt: skip


def term_of(section: Section, name: str) -> str | None:
    """The glossary's key for a column head (or a row's name) of the section, or null."""
    first = name.split("\n")[0].strip()
    return section.terms.get(name, "role" if first.startswith("roles") else HEADS.get(first))
