"""Build the tables of a trajectory: commitment to roles, and what happens when the loss drops."""

from __future__ import annotations

from orchestrator.analysis.comparison import Comparison
from orchestrator.analysis.formatting import grouped_notes, low_to_high, number
from orchestrator.analysis.sections.section import Section, TableCell
from orchestrator.analysis.trajectory import ANY, ArmCommitment, Estimate
from orchestrator.forensics.trajectory.commitment import EARLY


def commitments(c: Comparison) -> Section:
    """Return when the layers of each arm committed to what they end as, by roles and by scores."""
    found = [one for of_arm in c.trajectories for one in of_arm.commitments]
    rows: list[list[TableCell]] = []
    for one in found:
        counted = f"{number(one.layers, 1)} of {one.depth}" if one.kind == "roles" else str(one.depth)
        rows.append(
            [one.arm, f"{one.kind}, {one.scoring}", counted, _from(one.half, one.half_by_chance),
             _from(one.most, one.most_by_chance), f"{number(one.early.mean, 2)} ({number(one.early_by_chance, 2)})",
             low_to_high(one.early.low, one.early.high, 2), number(one.p, 3), _speed(one)]
        )  # fmt: skip
    at = f"step {found[0].early_step}" if found else ""
    end = f"step {found[0].last_step}" if found else ""
    columns = [
        "arm", "of, scoring", "layers", "half\nfrom", "9 in 10\nfrom", f"held at\n{at}", f"95 %\n{at}", "p",
        "changes",
    ]  # fmt: skip
    notes = [
        "half, 9 in 10: the step from which so many layers keep the role that they end with (of scores: r with the "
        "last scores stays above 0.5, 0.9); mean over the seeds. In parentheses: with the readings reshuffled.",
        f"changes: per layer (of scores: 1 − r) and 1000 steps, in the first {EARLY:.0%} of the run → later.",
        *_speed_notes(found),
    ]
    terms = {"half\nfrom": "commitment", "9 in 10\nfrom": "commitment", f"held at\n{at}": "commitment",
             f"95 %\n{at}": "interval", "p": "p_commitment", "changes": "speed", "layers": "commitment"}  # fmt: skip
    return Section(f"Commitment to what the layers are at {end}", columns, rows, notes, terms)


def coincidences(c: Comparison) -> Section:
    """Return what happened in the layers in the intervals in which the loss of some domain drops."""
    found = [one for of_arm in c.trajectories for one in of_arm.coincidences if one.domain in (ANY, _only(c))]
    rows: list[list[TableCell]] = []
    for one in found:
        counts = [str(one.events), str(one.together)]
        rows.append([one.arm, one.event, one.scoring, *counts, number(one.expected, 1), number(one.p, 3)])
    drops = {one.arm: f"{one.drops} of {one.intervals}" for one in found}
    dropped = "; ".join(f"{arm}: {count}" if len(drops) > 1 else count for arm, count in drops.items())
    notes = [
        f"Intervals between readings in which the loss of a domain drops: {dropped}.",
        *grouped_notes(
            ((f"{one.event}, {one.scoring}", one.sentence) for one in found), everything=len(rows) if rows else None
        ),
    ]
    if (tests := sum(one.p is not None for one in found)) > 1:
        notes.append(f"The {tests} tests are not corrected for their number.")
    columns = ["arm", "event", "scoring", "events", "together", "by chance", "p"]
    terms = {"event": "event", "events": "event", "by chance": "coincidence", "p": "p_coincidence"}
    return Section("What happens when the loss drops", columns, rows, notes, terms)


def _only(c: Comparison) -> str | None:
    """Return the domain that stands for all where there is one only."""
    return "mean" if len(c.domains) == 1 else None


def _from(estimate: Estimate, by_chance: float) -> str:
    return f"{number(estimate.mean, 0)} ({number(by_chance, 0)})"


def _speed(one: ArmCommitment) -> str:
    digits = 1 if (one.before or 0.0) >= 10 else 2
    return "–" if one.before is None else f"{number(one.before, digits)} → {number(one.after, digits)}"


def _speed_notes(found: list[ArmCommitment]) -> list[str]:
    """Return the interval of the difference for each row that has one."""
    known = [one for one in found if one.faster is not None and one.faster.low is not None]
    arms = len({one.arm for one in found}) > 1
    listed = ", ".join(
        f"{f'{one.arm}, ' if arms else ''}{one.kind} ({one.scoring}) "
        f"{low_to_high(one.faster.low, one.faster.high, 2, plus=True)}"
        for one in known
        if one.faster is not None
    )
    return [f"95 % interval of that difference: {listed}."] if listed else []
