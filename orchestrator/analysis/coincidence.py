"""Test whether events in the layers coincide with loss drops (SCIENCE §4, "Transitions and loss drops")."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

import numpy as np

from orchestrator.analysis.cells import CellResult
from orchestrator.analysis.pairs import MEAN, validation_curves
from orchestrator.experiments.decision import ALPHA
from orchestrator.forensics.reading import Reading
from orchestrator.forensics.trajectory.agreement import scorings_of
from orchestrator.forensics.trajectory.events import EVENTS
from orchestrator.forensics.trajectory.loss_drops import FEWEST, Course, Meeting, drops_in, evaluated, meet

ANY = "any"  # an interval in which the loss of at least one domain drops


@dataclass(frozen=True)
class Coincidence:
    """Events of one kind in the layers of an arm's cells, and drops of one loss, over the intervals between readings.

    Counted over all cells with at least `FEWEST` intervals, without each cell's first and last, which lack a neighbour.
    """

    arm: str
    event: str  # a key of EVENTS
    scoring: str
    domain: str  # a domain, their mean, or ANY
    intervals: int
    drops: int  # intervals in which validation loss fell further than predicted from its neighbours
    events: int  # layers × intervals
    together: int  # events in the intervals of a drop
    expected: float | None  # of `together` by chance, under the shifts
    p: float | None  # exact, one-sided: shifts with at least as many together
    smallest_p: float | None  # over all shifts
    drop_steps: dict[int, list[int]]  # seed → where the intervals of a drop end
    sentence: str  # the reason why nothing can be tested, or empty


@dataclass(frozen=True)
class _Judged:
    """What is known of one cell: its readings whose loss is known, and domain → the intervals in which that drops."""

    seed: int
    readings: list[Reading]
    steps: np.ndarray  # [readings]
    drops: dict[str, np.ndarray]  # [readings − 3] each

    @property
    def is_long(self) -> bool:
        return len(self.readings) > FEWEST


def coincide(arm: str, cells: list[CellResult], domains: list[str]) -> list[Coincidence]:
    """Test every event under every scoring that all readings hold, with drops in any domain, in their mean and in each.

    Empty where no cell has two readings whose loss is known. The mean is that of `domains`.
    """
    judged = [of for cell in cells if domains and (of := _judged(cell, domains))]
    if not judged:
        return []
    names = [ANY, MEAN, *domains] if len(domains) > 1 else [MEAN]
    most = max(len(of.readings) for of in judged) - 1
    found = []
    for scoring in scorings_of([reading for of in judged for reading in of.readings]):
        scored = [[reading.by(scoring) for reading in of.readings] for of in judged]
        for event, count in EVENTS.items():
            events = [count(readings) for readings in scored]
            for domain in names:
                met = meet([Course(of.drops[domain], own) for of, own in zip(judged, events, strict=True)])
                steps = {of.seed: of.steps[2:-1][of.drops[domain]].tolist() for of in judged if of.is_long}
                reason = sentence_of(met, most)
                found.append(Coincidence(arm, event, scoring, domain, **vars(met), drop_steps=steps, sentence=reason))
    return found


def sentence_of(met: Meeting, most: int) -> str:
    """Return why nothing can be tested, or how small p can be; empty where neither matters.

    `most`: intervals of the run that has most of them.
    """
    if not met.intervals:
        return f"{most} interval{'s' * (most != 1)} between readings cannot tell drop from trend: {FEWEST} are needed."
    missing = [name for name, count in (("loss drop", met.drops), ("such event", met.events)) if not count]
    if missing:
        return f"There is no {' and no '.join(missing)}, so nothing can coincide."
    best = met.smallest_p
    few = best is not None and best > ALPHA
    return f"With so few drops and events, p cannot fall below {best:.2g}." if few else ""


def _judged(cell: CellResult, domains: list[str]) -> _Judged | None:
    """Return None where the cell has not two readings whose loss is known."""
    curves = validation_curves(cell, domains)
    steps = evaluated(list(cell.readings), curves[MEAN]) if curves[MEAN] else []
    if len(steps) < 2:
        return None
    drops = {domain: drops_in(curve, steps) for domain, curve in curves.items()}
    drops[ANY] = reduce(np.logical_or, [drops[domain] for domain in domains])
    return _Judged(cell.seed, [cell.readings[step] for step in steps], np.array(steps), drops)
