"""Draw validation loss over training, per domain."""

from __future__ import annotations

from orchestrator.analysis.comparison import Comparison
from orchestrator.analysis.figures.panels import Drawing, frame_around_zero, guide_line, label_axes, panels, per_arm
from orchestrator.analysis.figures.traces import Band, arms_of, band, run_traces
from orchestrator.analysis.formatting import low_to_high, number
from orchestrator.analysis.pairs import loss_gaps, shown, validation_curves
from orchestrator.analysis.sections.section import Section, TableCell
from orchestrator.analysis.statistics import mean_of_known
from orchestrator.common.formatting import signed

TITLE = "Validation loss over training"
ITS_DIFFERENCE = f"{TITLE}, and its difference from the baseline"


def heldout_curves(c: Comparison) -> Drawing | None:
    """Draw validation loss per domain, and under it each arm's paired difference with its pointwise interval."""
    domains = shown(c.domains)
    curves = {
        x.label: {domain: dict(curve) for domain, curve in validation_curves(x, c.domains).items()}
        for arm in c.experiment.arms for x in c.cells_of(arm) if x.metrics
    }  # fmt: skip
    if not any(run for found in curves.values() for run in found.values()):
        return None
    rows = 2 if c.pairs else 1
    title = ITS_DIFFERENCE if c.pairs else TITLE
    titles = [c.name_of(domain) for domain in domains] + [""] * len(domains) * (rows - 1)
    figure = panels(rows, len(domains), 230, titles, title, gap=40)
    rows_at_end: list[list[TableCell]] = []
    last: dict[str, float] = {}
    gaps_of = {arm: loss_gaps(c.pairs, arm, c.domains) for arm in c.experiment.arms}
    for col, domain in enumerate(domains, start=1):
        differences: list[float] = []
        ends: list[float] = []
        for arm in arms_of(c):
            runs = [curves[x.label][domain] for x in c.cells_of(arm.name) if x.label in curves]
            gaps = gaps_of[arm.name][domain]
            run_traces(figure, runs, arm, 1, col)
            run_traces(figure, gaps, arm, 2, col, interval=True)
            between = band(gaps)
            differences += [abs(gap) for run in gaps for step, gap in run.items() if step > 0]
            ends += between.ends if arm.shown else []
            end = mean_of_known(run[max(run)] for run in runs if run)
            if end is not None:
                rows_at_end.append([c.name_of(domain), arm.name, number(end, 4), *_difference(between)])
                last |= {arm.name: end} if col == 1 else {}
        if rows == 2:
            guide_line(figure, 0.0, 2, col)
            frame_around_zero(figure, differences, 1e-6, 2, col, ends=ends)
    label_axes(figure, rows, len(domains), "step", "loss (nats/token)")
    if rows == 2:
        figure.update_yaxes(title_text="Δ (nats/token)", row=2, col=1)
    text = f"Validation loss ({c.name_of(domains[0])}) at the end, mean over seeds: {per_arm(last, 4)}."
    if c.pairs:
        text += " The verdict is on the test loss."
    columns = ["domain", "arm", "validation loss", "Δ", "95 % interval"]
    table = Section("Validation loss at the end", columns, rows_at_end)
    return Drawing(figure, title, text, table, ("heldout", "delta", "band"))


def _difference(between: Band) -> list[str]:
    """Write Δ at the end and its interval."""
    if not between.steps:
        return ["–", "–"]
    mean = float(between.mean[-1])
    half = None if between.half is None else float(between.half[-1])
    within = "–" if half is None else low_to_high(mean - half, mean + half, 4, plus=True)
    return [signed(mean, 4), within]
