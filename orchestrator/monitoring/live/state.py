"""The state of an experiment as plain data for JSON, which the page shows."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.common.formatting import printable
from orchestrator.common.palette import arm_line
from orchestrator.forensics.roles.palette import background, letter
from orchestrator.forensics.roles.routing import STATES
from orchestrator.monitoring.alerts import alerts
from orchestrator.monitoring.cells import CellStatus
from orchestrator.monitoring.live.curves import LINES, Curve, Line, mean
from orchestrator.monitoring.states import SHOWN
from orchestrator.monitoring.view import sentence, together

ALERTS = 60  # most that are sent; more are counted
GROUPS = {  # title → states, in the order of the page
    "Need you": [state for state, shown in SHOWN.items() if shown.is_bad],
    "Running": ["running", "suspended"],
    "Stopped": ["stopped"],
    "Waiting": ["preempted", "queued", "next"],
    "Done": ["done"],
}
WAITING = ("suspended", *GROUPS["Waiting"])


def describe(cells: Sequence[CellStatus], curves: Mapping[str, Curve]) -> dict[str, Any]:
    """The cells, arm by arm, their alerts and their losses. `curves`: cell → its losses."""
    found = together([alert for cell in cells for alert in alerts(cell)])
    arms = arms_of(cells)
    return {
        **overview(cells),
        "alerts": [
            {"cell": printable(alert.cell), "severity": alert.severity, "text": sentence(alert.text)}
            for alert in found[:ALERTS]
        ],
        "more_alerts": max(0, len(found) - ALERTS),
        "arms": [{"name": printable(arm), **_line(index)} for arm, index in arms.items()],
        "cells": [_cell(cell, list(arms).index(cell.cell.rpartition("/")[0])) for cell in cells],
        "groups": GROUPS,
        "roles": {role: [letter(role), background(role)] for role in _roles(cells)},
        "legend": [[state, letter(state), background(state)] for state in STATES],
        "losses": _losses(cells, curves, list(arms)),
    }


def overview(cells: Sequence[CellStatus]) -> dict[str, Any]:
    """The experiment in a few numbers."""
    counts, severities = Counter(cell.state for cell in cells), [a.severity for cell in cells for a in alerts(cell)]
    return {
        "total": len(cells),
        "share": round(statistics.fmean(cell.share for cell in cells), 4),
        "counts": [[state, counts[state]] for state in SHOWN if counts[state]],
        "left": time_left(cells),
        "is_live": any(SHOWN[cell.state].is_live for cell in cells),
        "severities": {severity: severities.count(severity) for severity in ("critical", "warn")},
    }


def arms_of(cells: Sequence[CellStatus]) -> dict[str, int]:
    """Arm → its place in the experiment, whose colour it has in every figure."""
    planned = next((cell.plan.arms for cell in cells if cell.plan), ())
    found = dict.fromkeys(cell.cell.rpartition("/")[0] for cell in cells)
    unplanned = [arm for arm in found if arm not in planned]
    places = {arm: place for place, arm in enumerate([*planned, *unplanned])}
    return {arm: places[arm] for arm in found}


def time_left(cells: Sequence[CellStatus]) -> float | None:
    """Seconds to the end of the last cell, with as many at once as run now; None where none runs that has a pace.

    Cells that wait take as long per step as those that run; cells that failed or were stopped are left out.
    """
    running = [left for cell in cells if (left := cell.left) is not None]
    if not running:
        return None
    pace = statistics.fmean(cell.records[-1]["seconds"] / cell.step for cell in cells if cell.left is not None)
    waiting = sum(pace * max(0, cell.steps - cell.step) for cell in cells if cell.state in WAITING)
    return float(f"{max(*running, (sum(running) + waiting) / len(running)):.2g}")


def _cell(s: CellStatus, arm: int) -> dict[str, Any]:
    seed = s.cell.rpartition("=")[2]
    shown: dict[str, Any] = {"arm": arm, "seed": printable(seed), "state": s.state, "step": s.step, "steps": s.steps}
    shown |= {"share": round(s.share, 4), "loss": s.loss, "lately": s.losses, "heldout": s.heldout}
    if s.state == "running":
        shown |= {"left": s.left, "written": s.written}
    if s.reading:
        shown |= {"read": s.reading.step, "roles": s.reading.roles, "changed": s.reading.changed}
    return shown


def _roles(cells: Sequence[CellStatus]) -> list[str]:
    return sorted({role for cell in cells if cell.reading for role in cell.reading.roles})


def _line(index: int) -> dict[str, str]:
    style = arm_line(index)
    return {"colour": style.colour, "dash": style.dash}


def _losses(cells: Sequence[CellStatus], curves: Mapping[str, Curve], arms: list[str]) -> dict[str, Any]:
    """For both losses: a line per cell, first of those that run, and the mean of each arm's cells that are done."""
    urgency = {state: rank for rank, state in enumerate(dict.fromkeys(("running", *SHOWN)))}
    drawn = {cell.cell: curves[cell.cell].lines() for cell in cells if cell.cell in curves}
    chosen = sorted((cell for cell in cells if cell.cell in drawn), key=lambda cell: urgency[cell.state])[:LINES]
    kinds = {}
    for which, kind in enumerate(("train", "heldout")):
        lines: list[dict[str, Any]] = []
        for cell in chosen:
            lines.append(_named(cell.cell, arms, drawn[cell.cell][which]))
        for arm in arms:
            done = [c.cell for c in cells if c.state == "done" and c.cell.rpartition("/")[0] == arm and c.cell in drawn]
            if len(done) > 1:
                averaged = mean([drawn[cell][which] for cell in done])
                lines.append(_named(f"{arm}/mean of {len(done)} done", arms, averaged) | {"mean": True})
        kinds[kind] = [line for line in lines if len(line["points"]) > 1]
    return {"steps": max((cell.steps for cell in cells), default=0), **kinds}


def _named(name: str, arms: list[str], points: Line) -> dict[str, Any]:
    return {"name": printable(name), "arm": arms.index(name.partition("/")[0]), "points": points}
