"""The course of one run: commitment, speed, and events when its loss drops (SCIENCE §4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from orchestrator.forensics.reading import Reading
from orchestrator.forensics.trajectory.agreement import ROLE, scorings_of
from orchestrator.forensics.trajectory.commitment import EARLY, FEWEST, LEVELS, Commitment, commitments, speed_of
from orchestrator.forensics.trajectory.events import EVENTS
from orchestrator.forensics.trajectory.loss_drops import FEWEST as FEWEST_INTERVALS
from orchestrator.forensics.trajectory.loss_drops import Course, Curve, Meeting, drops_in, evaluated, meet


@dataclass(frozen=True)
class Met:
    """An event in the layers of the run and the drops of one of its losses."""

    event: str  # a key of EVENTS
    scoring: str
    loss: str  # a column of the file of losses
    meeting: Meeting


@dataclass(frozen=True)
class History:
    """The course of one run. `silent` and `unsettled` say why its loss or a commitment is left out, or are empty."""

    commitments: list[Commitment]
    meetings: list[Met]
    silent: str
    unsettled: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "commitment": [_commitment_json(run) for run in self.commitments],
            "loss_drops": [
                {"event": met.event, "scoring": met.scoring, "loss": met.loss} | asdict(met.meeting)
                for met in self.meetings
            ],
        }


def history(readings: Sequence[Reading], losses: Mapping[str, Curve] | None = None) -> History | None:
    """The course of a run whose readings all have a step, in order; None with fewer than `FEWEST` and no losses.

    `losses`: name → curve, of what is known of its loss.
    """
    if len(readings) < FEWEST and not losses:
        return None
    steps = [reading.step or 0 for reading in readings]
    found = commitments(readings, steps)
    unsettled = _unsettled(readings, steps, found)
    if not losses:
        return History(found, [], "none is known: give its losses with --losses FILE", unsettled)
    meetings: list[Met] = []
    most = 0
    for name, curve in losses.items():
        judged = set(evaluated(steps, curve))
        covered = [reading for reading in readings if reading.step in judged]
        most = max(most, len(covered) - 1)
        if len(covered) - 1 < FEWEST_INTERVALS:
            continue
        drops = drops_in(curve, [reading.step or 0 for reading in covered])
        for scoring in scorings_of(readings):
            scored = [reading.by(scoring) for reading in covered]
            meetings += [
                Met(event, scoring, name, meet([Course(drops, count(scored))])) for event, count in EVENTS.items()
            ]
    short = f"{most} intervals between checkpoints have losses at both ends, and {FEWEST_INTERVALS} are needed"
    return History(found, meetings, "" if meetings else short, unsettled)


def _unsettled(readings: Sequence[Reading], steps: Sequence[int], found: Sequence[Commitment]) -> list[str]:
    """The reasons why nothing is said of a commitment."""
    if len(readings) < FEWEST:
        return [f"{len(readings)} checkpoints were read, and {FEWEST} are needed"]
    if not steps[0] < EARLY * steps[-1]:
        return [f"no checkpoint is of the first {EARLY:.0%} of the run"]
    told = {run.scoring for run in found if run.kind == ROLE}
    return [f"{scoring}: no layer ends with a role" for scoring in scorings_of(readings) if scoring not in told]


def _commitment_json(run: Commitment) -> dict[str, Any]:
    speed = speed_of(run.steps, run.changed)
    levels = {f"{level:g}": {"step": run.reached(level), "by_chance": run.reached_by_chance(level)} for level in LEVELS}
    by_chance = run.by_chance.mean(axis=0)
    return {
        "kind": run.kind, "scoring": run.scoring, "layers": run.layers, "of": run.depth, "p": run.p,
        "reached": levels,
        f"held_at_{EARLY:g}": {"step": int(run.steps[run.at_early]), "held": float(run.held[run.at_early]),
                               "by_chance": float(by_chance[run.at_early])},
        "changes_per_1000": None if speed is None else asdict(speed),
        "curve": [
            {"step": int(step), "held": float(held), "by_chance": float(chance)}
            for step, held, chance in zip(run.steps, run.held, by_chance, strict=True)
        ],
    }  # fmt: skip
