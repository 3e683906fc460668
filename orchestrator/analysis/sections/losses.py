"""Build the tables of losses: over all arms, by contrast, and arm by arm."""

from __future__ import annotations

from orchestrator.analysis.comparison import Comparison
from orchestrator.analysis.formatting import low_to_high, number, share
from orchestrator.analysis.late_changes import late_names
from orchestrator.analysis.pairs import EQUAL_FLOPS, MEAN, METRICS, PRIMARY, losses, shown
from orchestrator.analysis.sections.section import Section, TableCell
from orchestrator.analysis.sign_flip import EXACT_PAIRS
from orchestrator.analysis.statistics import PairedResult, mean_of_known
from orchestrator.common.formatting import signed
from orchestrator.experiments.decision import ALPHA, smallest_p


def arm_losses(c: Comparison) -> Section:
    """Return a line per arm: the primary outcome against the baseline."""
    primary = c.primary
    own = {
        cell.seed: losses(cell, c.domains)[PRIMARY[0]]
        for cell in c.cells_of(c.baseline)
        if not cell.missing and c.domains
    }
    rows: list[list[TableCell]] = [
        [c.baseline, number(mean_of_known(own.values()), 4), "", "", str(len(own)), "", "", "baseline"]
    ]
    notes = [multiplicity(c)]
    for arm in c.experiment.arms[1:]:
        if (r := primary.get(arm)) is None:
            rows.append([arm, "–", "–", "–", "0", "–", "–", "not measured"])
            continue
        values = [number(r.b, 4), signed(r.delta, 4), low_to_high(r.low, r.high, 4, plus=True), str(r.n)]
        rows.append([arm, *values, number(r.p, 3), number(r.p_adjusted, 3), r.verdict])
        seeds = [pair.seed for pair in c.pairs if pair.arm == arm]
        if set(seeds) != set(own):
            listed = f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"
            notes.append(f"{arm}: compared over {listed}, in which {c.baseline} has {number(r.a, 4)}.")
    return Section(
        f"Test loss of every arm, nats/token (Δ to {c.baseline}; lower is better)",
        ["arm", "loss", "Δ", "95 % interval", "n", "p", "Holm", "verdict"],
        rows if primary else [],
        notes,
        {"p": "p_alone", "Holm": "holm"},
    )


def multiplicity(c: Comparison) -> str:
    """Return the note on multiple comparisons between arms."""
    return (
        f"{sign_flip(c)}; Holm: p corrected for {len(c.primary)} arms, on which verdicts rest: if no arm differs, the "
        f"chance that any is called is at most {ALPHA:.1%}, and more where differences are skewed (SCIENCE §8)."
    )


def sign_flip(c: Comparison) -> str:
    """Return the name of the test, and the looks over which its error is spent, where there were several."""
    looks = [look.pairs for arm in c.compared[:1] for look in c.experiment.looks_at([arm], c.seeds_of(arm))[1]]
    most = max(
        (look.most for arm in c.compared[:1] for look in c.experiment.looks_at([arm], c.seeds_of(arm))[1]), default=0
    )
    several = (
        f" over looks at {', '.join(map(str, looks))} of at most {most} pairs" if looks and most > looks[0] else ""
    )
    return f"p: sign-flip, exact up to {EXACT_PAIRS} pairs{several}"


def contrasts(c: Comparison) -> Section:
    """Return every contrast in the order of the tests, at equal steps and, where the costs differ, at equal FLOPs."""
    late = late_names(c.experiment, "contrasts")
    rows: list[list[TableCell]] = []
    for one in c.contrasts:
        values = [signed(one.value, 4), low_to_high(one.low, one.high, 4, plus=True), str(one.n)]
        p = number(one.p, 3)
        name = "  at equal FLOPs" if one.metric == EQUAL_FLOPS else one.contrast
        name += " (added afterwards)" if one.contrast in late and one.metric != EQUAL_FLOPS else ""
        rows.append([name, *values, p if one.tested else f"({p})", one.verdict])
    spelt = {one.contrast: formula(one.weights) for one in c.contrasts}
    notes = [f"{name} = {text}." for name, text in spelt.items() if name.replace("-", "−") != text]
    two = (
        "; the verdict is on the arm with positive weight" if any(len(one.weights) == 2 for one in c.contrasts) else ""
    )
    order = f"; tested in this order at {ALPHA} until one is not significant (later p in parentheses)"
    notes.append(f"Sums of mean test loss, nats/token{two}.")
    notes.append(f"{sign_flip(c)}{order if len(spelt) > 1 else ''}.")
    within = share(c.experiment.margin)
    notes.append(f"Equivalent: within {within} of the loss (p ≤ {ALPHA}), judged for each contrast alone.")
    if any(one.metric == EQUAL_FLOPS for one in c.contrasts):
        notes.append("At equal FLOPs: validation loss where the cheapest run ends, tested as a separate sequence.")
    terms = {"value": "contrast", "p": "p_contrast", "verdict": "contrast_verdict"}
    return Section("Contrasts", ["contrast", "value", "95 % interval", "n", "p", "verdict"], rows, notes, terms)


def formula(weights: dict[str, float]) -> str:
    """Write the weighted sum as text, such as `a − 0.5 b − 0.5 c`, positive weights first."""
    terms = ""
    for arm, weight in sorted(weights.items(), key=lambda term: term[1] < 0):
        sign = "−" if weight < 0 else "+" if terms else ""
        size = "" if abs(weight) == 1 else f"{abs(weight):g} "
        terms += f" {sign} {size}{arm}" if terms else f"{sign}{size}{arm}"
    return terms


def paired_losses(c: Comparison, arm: str) -> Section:
    """Return the test loss of every domain, with its interval and verdict."""
    rows: list[list[TableCell]] = []
    for r in c.statistics:
        if r.arm == arm and r.metric == METRICS[0]:
            rows.append([c.name_of(r.domain), *_difference(r), number(r.p, 3), number(r.p_adjusted, 3), r.verdict])
    n = sum(pair.arm == arm for pair in c.pairs)
    arms = " (by Holm over the arms)" if len(c.compared) > 1 else ""
    corrected = f"the first row is the primary outcome{arms}, the others share a Holm correction{_unreachable(c, arm)}"
    return Section(
        f"Test loss, nats/token (a = {c.baseline}, b = {arm}, {n} pair{'s' * (n > 1)}; lower is better)",
        ["domain", "a", "b", "Δ = b − a", "95 % interval", "p", "corrected", f"{arm} is"],
        rows,
        [f"{sign_flip(c)}; corrected: {corrected}.", _within_margin(c, arm)],
    )


def equal_cost(c: Comparison, arm: str) -> Section:
    """Return validation loss at equal steps and at equal FLOPs; no rows where the runs cost the same."""
    rows: list[list[TableCell]] = []
    if any(r.arm == arm and r.metric == EQUAL_FLOPS for r in c.statistics):
        for metric, name in (("validation_loss", "steps"), (EQUAL_FLOPS, "FLOPs")):
            for r in c.statistics:
                if (r.arm, r.metric, r.domain) == (arm, metric, MEAN):
                    rows.append([name, *_difference(r), number(r.p, 3), number(r.p_adjusted, 3), r.verdict])
    return Section(
        f"Validation loss at equal cost, nats/token (a = {c.baseline}, b = {arm})",
        ["equal", "a", "b", "Δ = b − a", "95 % interval", "p", "corrected", f"{arm} is"],
        rows,
        [
            "FLOPs include the sidecar's held-out passes and forks; the more expensive run's loss is taken where the "
            "cheaper one ends. Corrected: at equal FLOPs p is the second primary outcome's, tested only if the test "
            f"loss differs; at equal steps it is corrected by Holm{_unreachable(c, arm)}."
        ],
    )


def every_loss(c: Comparison, arm: str) -> Section:
    """Return every loss that was tested, with the correlation between the arms."""
    rows: list[list[TableCell]] = []
    for r in c.statistics:
        if r.arm == arm:
            ps = [number(r.p, 3), number(r.p_adjusted, 3), number(r.correlation, 2)]
            rows.append([r.metric.replace("_", " "), c.name_of(r.domain), *_difference(r), str(r.n), *ps, r.verdict])
    return Section(
        f"Every loss that was tested (a = {c.baseline}, b = {arm})",
        ["metric", "domain", "a", "b", "Δ = b − a", "95 % interval", "n", "p", "corrected", "r", "verdict"],
        rows,
        ["r: correlation between the arms over three or more seeds; the higher it is, the more pairing gains."],
    )  # fmt: skip


def _within_margin(c: Comparison, arm: str) -> str:
    """Return the note on the margin of equivalence, with its p for the primary outcome."""
    r = c.primary.get(arm)
    p = "" if r is None or r.p_equivalent is None else f"; of the first row p = {number(r.p_equivalent, 3)}"
    return f"Equivalent: the difference lies within {share(c.experiment.margin)} of a, with p ≤ {ALPHA}{p}."


def _difference(r: PairedResult) -> list[str]:
    """Write both arms' loss, their difference and its interval."""
    return [number(r.a, 4), number(r.b, 4), signed(r.delta, 4), low_to_high(r.low, r.high, 4, plus=True)]


def _unreachable(c: Comparison, arm: str) -> str:
    """Return a clause where Holm's correction leaves no secondary outcome a chance to be significant, else empty."""
    secondary = [r for r in c.statistics if r.arm == arm and (r.metric, r.domain) not in PRIMARY]
    least = min(1.0, len(secondary) * max((smallest_p(r.n) for r in secondary), default=0.0))
    return "" if least <= ALPHA else f" ({len(secondary)} tests: none can give p under {least:.2g})"


def cell_losses(c: Comparison) -> Section:
    """Return the final test loss of every complete cell."""
    rows: list[list[TableCell]] = []
    for cell in c.experiment.cells:
        if cell.missing is None:
            values = losses(cell, c.domains)
            rows.append([cell.label, *(number(values.get((METRICS[0], d)), 4) for d in shown(c.domains))])
    domains = [c.name_of(d) for d in shown(c.domains)]
    return Section("Test loss, nats/token", ["cell", *domains], rows, terms=dict.fromkeys(domains, "heldout"))
