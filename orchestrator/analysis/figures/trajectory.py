"""Draw how many layers keep, from each step on, what they end as."""

from __future__ import annotations

from orchestrator.analysis.comparison import Comparison
from orchestrator.analysis.figures.panels import Drawing, label_axes, panels, per_arm
from orchestrator.analysis.figures.traces import arms_of, chance_legend, chance_line, run_traces
from orchestrator.analysis.formatting import number
from orchestrator.analysis.sections.section import Section, TableCell
from orchestrator.forensics.trajectory.commitment import EARLY


def commitment_curves(c: Comparison) -> Drawing | None:
    """Draw the share that holds from each step but 0 on, a panel per scoring, for roles and for scores."""
    table = c.tables["trajectory"]
    if table.empty:
        return None
    keys = list(table[["scoring", "kind"]].drop_duplicates().itertuples(index=False, name=None))
    cols = 2
    rows = -(-len(keys) // cols)
    names = {"roles": "share of layers", "scores": "r with the last"}
    title = "From each step on: how much of the end holds"
    figure = panels(rows, cols, 260, [f"{kind}, {scoring}: {names[kind]}" for scoring, kind in keys], title)
    held: list[list[TableCell]] = []
    early: dict[str, float] = {}
    last = int(table["step"].max())
    committed = {(one.arm, one.scoring, one.kind): one for of_arm in c.trajectories for one in of_arm.commitments}
    for index, (scoring, kind) in enumerate(keys):
        at = (index // cols + 1, index % cols + 1)
        for arm in arms_of(c):
            own = table[(table["scoring"] == scoring) & (table["kind"] == kind) & (table["arm"] == arm.name)]
            cells = [cell[cell["step"] > 0] for _, cell in own.groupby("seed")]  # the axis is logarithmic
            runs, chance = (
                [dict(zip(map(int, cell["step"]), cell[column], strict=True)) for cell in cells]
                for column in ("held", "by_chance")
            )
            run_traces(figure, runs, arm, *at)
            chance_line(figure, chance, arm, *at, "step")
            if len(own):
                reached = committed[arm.name, scoring, kind].early.mean
                early |= {arm.name: reached} if index == 0 else {}
                start = own.groupby("seed")["held"].first().mean()
                held.append([arm.name, f"{kind}, {scoring}", number(float(start), 2), number(reached, 2)])
        figure.add_vline(
            x=EARLY * last, line={"color": "#888888", "width": 1, "dash": "dash"}, row=at[0], col=at[1]
        )  # fmt: skip
    chance_legend(figure)
    powers = [10**power for power in range(len(str(last)))]
    figure.update_xaxes(type="log", tickvals=powers, ticktext=[str(power) for power in powers])
    figure.update_yaxes(range=[-0.03, 1.03])
    label_axes(figure, rows, cols, "step", "held from here on")
    scoring, kind = keys[0]
    text = (
        f"Held to the end from {EARLY:.0%} of the run on (dashed line), {kind} by {scoring} scoring ({names[kind]}), "
        f"mean over the seeds: {per_arm(early, 2)}."
    )
    numbers = Section("Held from a step on", ["arm", "of, scoring", "from the start", f"from {EARLY:.0%}"], held)
    return Drawing(figure, title, text, numbers, ("commitment",))
