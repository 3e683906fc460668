"""Define the terms of the pages, each a click away from the columns that it explains."""

from __future__ import annotations

import inspect

from orchestrator.analysis.sections.section import Section
from orchestrator.analysis.sign_flip import EXACT_PAIRS
from orchestrator.common.web.pages import Term
from orchestrator.experiments.decision import ALPHA, FEWEST_PAIRS
from orchestrator.forensics.measures.table import MEASURES

SIGN_FLIP = (
    "Two-sided sign-flip test of the paired differences: the share of sign patterns whose mean is at least as far "
    f"from 0. Exact (all 2ⁿ patterns) up to {EXACT_PAIRS} pairs, beyond by random patterns. With fewer than "
    f"{FEWEST_PAIRS} pairs p cannot reach {ALPHA}."
)
LOOKS = "Where pairs were added until the losses were decided, p covers all looks."
FIXED = "This p is that of a fixed number of pairs, even where pairs were added until the losses were decided."

OWN = {
    "experiment": Term("arm, seed, pair",
        "An arm is a list of settings; the first arm is the baseline. One arm at one seed is one training run. A "
        "pair is the runs of two arms at one seed: they see the same batches, use the same streams of random "
        "numbers, and differ only in the declared keys. The pair is the replicate of every statistic (SCIENCE §8)."),
    "heldout": Term("test, validation and best validation loss",
        "Mean cross-entropy in nats per token on held-out text. Validation rows are evaluated during training, test "
        "rows once at its end; the rows that reward a sidecar are a third, disjoint split. The mean over the domains "
        "is unweighted."),
    "delta": Term("Δ = b − a",
        "Arm b's value minus the baseline's, mean over the pairs. A negative difference of losses is better."),
    "interval": Term("95 % interval",
        "Confidence interval of the mean paired difference: Student's t; from six pairs each end is the outer one of "
        "t and a BCa bootstrap whose level is widened for few values. Its simulated coverage is 95 % for symmetric "
        "differences and 86 to 94 % for very skewed ones."),
    "band": Term("band around Δ",
        "Pointwise 95 % interval (Student's t over the pairs) of the difference at every evaluation. It is not a "
        "test: by chance it misses at one point of twenty."),
    "p": Term("p",
        f"{SIGN_FLIP} {LOOKS} It is not corrected for other tests; the column beside it is."),
    "p_alone": Term("p, not corrected", f"{SIGN_FLIP} {LOOKS} It is not corrected for other tests."),
    "p_contrast": Term("p of a contrast",
        f"{SIGN_FLIP} {LOOKS} Contrasts are tested in order at {ALPHA} until one is not significant; later p are in "
        "parentheses."),
    "holm": Term("p by Holm",
        "p of the first primary outcome, corrected by Holm for the number of arms: if no arm differs and the "
        "differences are symmetric, any is called better or worse with a probability of at most "
        f"{ALPHA:.1%}. Verdicts rest on it."),
    "corrected": Term("p, corrected",
        "p of the primary outcomes, by Holm over the arms and tested as a sequence; the p of all other losses of an "
        "arm share a Holm correction. Verdicts rest on it."),
    "q": Term("q",
        "p adjusted by Benjamini and Hochberg over all arms with enough pairs to be called: of the arms with q ≤ "
        f"{ALPHA} at most {ALPHA:.1%} are expected to be false. This holds approximately, because arms share "
        "baselines."),
    "expect": Term("lines of expect",
        "Each line states what the layers of an arm should become. The column counts the delivered lines, of all."),
    "expect_mean": Term("number of a line of expect",
        "Mean over the seeds of the share of layers with the role, or of the quantity, in one arm (not a "
        "difference). Two more columns give its mean at step 0 and in the baseline."),
    "expect_interval": Term("95 % interval of a line of expect",
        "Confidence interval of the mean over the seeds, computed as for paired differences and cut at the smallest "
        "and largest possible values."),
    "expect_seeds": Term("seeds of a line of expect",
        "Seeds whose number lies inside the wanted bounds, of the seeds that have the number."),
    "expect_verdict": Term("delivered, not delivered, inconclusive",
        "Delivered: the 95 % interval of the mean lies inside the wanted bounds, and so do significantly more than "
        f"half of the seeds (exact sign test, p ≤ {ALPHA}). Not delivered: both lie outside. Otherwise "
        f"inconclusive. {FIXED}"),
    "contrast": Term("value of a contrast",
        "Weighted sum of the arms' losses at one seed, mean over the seeds at which all of these arms are complete."),
    "contrast_verdict": Term("verdict on a contrast",
        "Of two arms, the one with positive weight is better or worse; of more, the sum is negative or positive. "
        f"Both need p ≤ {ALPHA} here and in all contrasts before, and a 95 % interval that excludes 0. Equivalent: the "
        f"interval lies within the margin (`decide.margin`, a share of the loss of the arms with negative weight), and "
        f"so does the mean with p ≤ {ALPHA}. Otherwise inconclusive or not tested."),
    "verdict": Term("better, worse, equivalent, inconclusive",
        f"Better or worse: the corrected p ≤ {ALPHA} and the 95 % interval excludes 0. Equivalent: the interval lies "
        f"within the margin (`decide.margin`, a share of the baseline's loss), and so does the mean with p ≤ {ALPHA}. "
        f"Otherwise inconclusive. Every verdict needs {FEWEST_PAIRS} pairs."),
    "correlation": Term("r", "Pearson's correlation of the arms over the seeds; the higher, the more pairing gains."),
    "role": Term("role and margin",
        "Every layer is scored as hub (routes information), damper (holds the residual stream down), passthrough "
        "(changes little) and specialist (few loud FFN positions): the sigmoid of a mean of z-scored measures. The "
        "highest score gives the role if it leads by more than 0.05; the lead is the margin (SCIENCE §2)."),
    "tie": Term("H/S, · and –",
        "A tie: no role leads by more than 0.05. The letters name the two leaders; where there is room for one sign, "
        "it is a dot. A dash: no role has evidence for it."),
    "null": Term("calibrated scoring",
        "z-scores give some layer the highest score even on noise. So a measure counts only where a layer lies "
        "beyond the spread of its peers, which one layer in a thousand does by chance; and a role needs evidence for "
        "it. Then at most 2 % of the layers of untrained models have a role (SCIENCE §3)."),
    "transition": Term("transitions and chance",
        "Layers × intervals between successive readings, by state before and after. By chance: the count expected if "
        "each reading's states were dealt to its layers at random. Cohen's κ: 1 = nothing changed, 0 = as by chance."),
    "role_shift": Term("p of a role shift",
        "Permutation test of the distance between the arms' shares of seeds in each state, summed over the layers, "
        f"by exchanging the arms' labels within pairs: all exchanges up to {EXACT_PAIRS} pairs, beyond random ones. A "
        "layer's p compares it with the largest distance of any layer (max-T), which corrects it for the number of "
        f"layers. {FIXED}"),
    "coincidence": Term("events and loss drops",
        "Events in the layers, such as changes of role, in the intervals of loss drops: those in which validation loss "
        "falls more than 3 robust σ further than predicted from the neighbouring intervals. By chance: the same with "
        "the events shifted circularly within stretches of the run that double in length, which keeps the trends of "
        "both (SCIENCE §4)."),
    "p_coincidence": Term("p of a coincidence",
        "One-sided: the share of all circular shifts, of all cells together, with at least as many events in the "
        "intervals of a drop. It is not corrected for other tests."),
    "commitment": Term("held, half, 9 in 10",
        "Share of the layers that have, at a reading and at all later ones, the role that they end with; layers that "
        "end with none or a tie do not count. Of scores: the smallest correlation r, from there on, of all layers' "
        "scores with the last ones. Half and 9 in 10: the first reading from which that is at least 0.5 and 0.9. By "
        "chance: with all readings but the last reshuffled (SCIENCE §4)."),
    "p_commitment": Term("p of a commitment",
        "One-sided: reshuffled readings, of all seeds together, whose mean share over the readings is at least as "
        "large. Small where roles settle at all, early or late, in place of flickering."),
    "speed": Term("changes",
        "State changes per layer and 1000 steps (of scores: 1 − r of successive readings), between readings that lie "
        "equally far apart, in the first 30 % of the run and later."),
    "event": Term("events",
        "Layers × intervals with a change of role of that kind. A hub deepens a head pair: the best match of its "
        "heads with those of another layer was below the median of all pairs of layers and rises by more than 3 "
        "robust σ beyond what its neighbours in time predict (SCIENCE §4)."),
    "centre": Term("centre of the budget",
        "Mean depth of the saturated positions, 0 = first layer, 1 = last. The distance between two budgets is "
        "Wasserstein-1 on that scale."),
    "conservation": Term("conserved",
        "Verdict on the ratio b / a of the positions above those by chance. Not conserved: it lies outside 0.80 … 1.25 "
        f"(95 % interval, and p ≤ {ALPHA} by sign-flip). Conserved: it lies within, and the positions moved to another "
        "depth; nothing moved: it lies within, and they did not. No larger than chance: both budgets are as large as "
        "those of layers drawn by chance. Not claimed: the threshold mean + 3 std (SCIENCE §1, §4). Otherwise "
        f"inconclusive, and always so if a seed's budget is no larger than chance or all ratios are equal. {FIXED}"),
    "effective_layers": Term("layers that hold the budget",
        "exp of the entropy of the positions above chance over the layers: as many layers would hold them evenly."),
    "moved": Term("p, moved",
        "Exchange test of the distance between the arms' mean budgets along depth: the share of exchanges of the arms "
        f"within the pairs that put them at least as far apart. {FIXED}"),
    "flattening": Term("CV a / b",
        "Ratio of the two arms' CV in a layer, geometric mean over the pairs; above 1, b is flatter. Its p is an "
        f"exact sign-flip test of the mean log ratio, corrected for the number of layers by step-down max-T. {FIXED}"),
    "damage": Term("damage",
        "Rise of the held-out loss, nats per token, when the layer is deleted from the trained model: it passes the "
        "residual stream on as it is. Mean over the domains (SCIENCE §9)."),
    "p_layers": Term("p of a layer",
        f"{SIGN_FLIP} {FIXED} It is corrected for the number of layers by step-down max-T."),
    "p_spread": Term("p of a spread", f"{SIGN_FLIP} {FIXED} It is not corrected for other tests."),
    "symmetry": Term("spread",
        "Standard deviation and range over the layers of attention's share: of the energy, or of what both branches "
        "write. For the energy the paper has 0.014 for its vanilla model and 0.13 for its reward-driven one (§7)."),
    "sidecar": Term("multipliers",
        "The sidecar's factor on one unit's weight decay, learning rate or branch gain; 1 leaves it as configured. "
        "Geometric means; ▲ (▼): above (below) the mean of its own run in every seed (SCIENCE §6)."),
    "forks": Term("forks",
        "Pairs of twins that train ahead from one state of the run, with opposite changes of the sidecar's "
        "coefficients; a pair disagrees where the twin that is better after 20 steps is worse at the end (SCIENCE "
        "§6)."),
    "width": Term("width", "Residual coordinates that a layer reads and writes; the others bypass it (SCIENCE §7)."),
    "parameters": Term("parameters",
        "Trained parameters of one model; Δ: difference from the baseline's, per cent."),
    "training_flops": Term("FLOPs of one run",
        "Floating-point operations of training, forward and backward, counted from the shapes; what a sidecar computes "
        "on held-out text is not counted."),
    "flops": Term("FLOPs",
        "Floating-point operations of one run, forward and backward, counted from the shapes, with the sidecar's "
        "held-out passes and forks. At equal FLOPs, the more expensive run's loss is taken where the cheaper one "
        "ends."),
    "pathology": Term("× its peers",
        "A tensor's spectral norm over the median of the same kind in the other layers. From 10 × a warning, from "
        "30 × critical: the paper's diverging runs had 30 to 100 × (§8)."),
}  # fmt: skip


def _of_measures() -> dict[str, Term]:
    """Return every measure, defined by the docstring of its function."""
    found = {}
    for name, measure in MEASURES.items():
        text = inspect.getdoc(measure.function)
        if text and measure.function.__name__ != "<lambda>":
            found[name.replace(".*", "").replace("*", "")] = Term(name, " ".join(text.split()))
    return found


PROBED = {
    "attention_write": Term("attention_write", "`total_write` of the attention branch alone (SCIENCE §1)."),
    "ffn_write": Term("ffn_write", "`total_write` of the FFN branch alone (SCIENCE §1)."),
    "adjacent_alignment": Term("adjacent_alignment",
        "Mean cos(x_l, x_{l+1}) over tokens: 1 − Block Influence (ShortGPT)."),
    "copy_density": Term("copy_density",
        "Attention on earlier positions whose token equals the current one, or follows an earlier copy of it, over "
        "its chance level (SCIENCE §1)."),
    "sink_mass": Term("sink_mass", "Attention on the first position and on register tokens (SCIENCE §1)."),
    "co_magnitude": Term("co-magnitude", "‖gate[p,:]‖·‖up[p,:]‖ of every FFN position p of a layer (SCIENCE §1)."),
}  # fmt: skip
GLOSSARY = OWN | _of_measures() | PROBED

HEADS = {  # the first line of a table's column head → its term
    "Δ": "delta", "Δ = b − a": "delta", "value": "delta", "95 % interval": "interval", "corrected": "corrected",
    "p": "p", "Holm": "holm", "p, corrected": "p", "verdict": "verdict", "n": "experiment", "r": "correlation",
    "metric": "heldout", "domain": "heldout", "loss": "heldout", "equal": "flops", "FLOPs": "flops",
    "width": "width", "parameters": "parameters", "CV": "cv", "max |w|": "max_abs", "satur.": "saturated_robust",
    "robust": "saturated_robust", "fixed": "saturated_fixed", "mean + 3 std": "saturated",
    "std": "symmetry", "range": "symmetry", "distance": "role_shift", "changed": "transition",
    "κ": "transition", "× its peers": "pathology", "budget b / a": "conservation", "centre shift": "centre",
    "q": "q", "lines": "expect",
}  # fmt: skip


def term_of(section: Section, name: str) -> str | None:
    """Return the glossary's key for a column head (or a row's name) of the section, or null."""
    first = name.split("\n")[0].strip()
    return section.terms.get(name, "role" if first.startswith("roles") else HEADS.get(first))
