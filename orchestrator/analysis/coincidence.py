"""Test whether role transitions coincide with loss drops (SCIENCE §4, "Transitions and loss drops")."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from orchestrator.analysis.cells import CellResult
from orchestrator.analysis.pairs import validation_curves
from orchestrator.analysis.statistics import ALPHA
from orchestrator.forensics.trajectory.events import changed, transitions
from orchestrator.forensics.trajectory.loss_drops import FEWEST, Course, Meeting, drops_in, meet


@dataclass(frozen=True)
class Coincidence:
    """Loss drops of one domain and role transitions of one arm, over the intervals between its readings."""

    arm: str
    domain: str
    intervals: int  # of all cells with at least FEWEST; without each cell's first and last, which lack a neighbour
    drops: int  # intervals in which validation loss fell further than predicted from its neighbours
    transitions: int  # layers × intervals whose state changed
    together: int  # transitions in the intervals of a drop
    expected: float | None  # of `together` by chance, under the shifts
    p: float | None  # exact, one-sided: shifts with at least as many together
    smallest_p: float | None  # over all shifts
    drop_steps: dict[int, list[int]]  # seed → where those intervals end
    sentence: str  # the reason why nothing can be tested, or empty


def coincide(arm: str, cells: list[CellResult], domain: str, domains: list[str]) -> Coincidence | None:
    """Test one domain, as `meet` does; None where no cell was read twice. `mean` is the mean of `domains`."""
    count = transitions(changed)
    read: list[tuple[int, list[int], Course]] = []  # seed, steps, course
    for cell in cells:
        if steps := steps_with_loss(cell, domain, domains):
            drops = drops_in(validation_curves(cell, domains)[domain], steps)
            read.append((cell.seed, steps, Course(drops, count([cell.readings[step] for step in steps]))))
    if not read:
        return None
    met = meet([course for _, _, course in read])
    most = max(len(steps) - 1 for _, steps, _ in read)
    return Coincidence(
        arm, domain, met.intervals, met.drops, met.events, met.together, met.expected, met.p, met.smallest_p,
        drop_steps={seed: np.array(steps[2:-1])[of.drops].tolist() for seed, steps, of in read if of.is_long},
        sentence=sentence_of(met, most),
    )  # fmt: skip


def steps_with_loss(cell: CellResult, domain: str, domains: list[str]) -> list[int]:
    """Return the steps of the cell's readings that its validation curve covers; none where there are not two."""
    curve = validation_curves(cell, domains)[domain]
    steps = [step for step in cell.readings if curve and curve[0][0] <= step <= curve[-1][0]]
    return steps if len(steps) > 1 else []


def sentence_of(met: Meeting, most: int, event: str = "role transition") -> str:
    """Return why nothing can be tested, or how small p can be; empty where neither matters.

    `most`: intervals of the run that has most of them.
    """
    if not met.intervals:
        return f"{most} interval{'s' * (most != 1)} between readings cannot tell drop from trend: {FEWEST} are needed."
    missing = [name for name, count in (("loss drop", met.drops), (event, met.events)) if not count]
    if missing:
        return f"There is no {' and no '.join(missing)}, so nothing can coincide."
    best = met.smallest_p
    few = best is not None and best > ALPHA
    return f"With so few drops and transitions, p cannot fall below {best:.2g}." if few else ""
