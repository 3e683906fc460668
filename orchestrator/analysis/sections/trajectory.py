"""Build the tables of a trajectory: commitment to roles, speed of change, and what happens when the loss drops."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.analysis.coincidence import ANY
from orchestrator.analysis.comparison import Comparison
from orchestrator.analysis.formatting import grouped_notes, low_to_high, number, seed_list
from orchestrator.analysis.pairs import MEAN
from orchestrator.analysis.sections.section import Section, TableCell
from orchestrator.analysis.trajectory import ArmCommitment, Estimate
from orchestrator.forensics.trajectory.agreement import ROLE
from orchestrator.forensics.trajectory.commitment import EARLY


def tables(c: Comparison) -> list[Section]:
    """Return the tables of the chapter; without rows where no arm was read often enough."""
    return [commitments(c), speeds(c), coincidences(c)]


def commitments(c: Comparison) -> Section:
    """Return when the layers of each arm committed to what they end as, by roles and by scores."""
    found = _commitments(c)
    rows: list[list[TableCell]] = [
        [*_arm(c, one.arm), _by(one), number(one.layers, 1 if one.kind == ROLE else 0),
         _from(one.half, one.half_by_chance), _from(one.most, one.most_by_chance),
         f"{number(one.early.mean, 2)} ({number(one.early_by_chance, 2)})",
         low_to_high(one.early.low, one.early.high, 2), number(one.p, 3)]
        for one in found
    ]  # fmt: skip
    first, depth, end = (found[0].early_step, found[0].depth, found[0].last_step) if found else (0, 0, 0)
    heads = {
        "by": "role", f"layers\nof {depth}": "commitment", "half\nfrom": "commitment", "9 in 10\nfrom": "commitment",
        f"held at\n{first}": "commitment", "95 %\ninterval": "interval", "p": "p_commitment",
    }  # fmt: skip
    notes = [
        "layers: that end with a role, and count; mean over the seeds, as all else. In parentheses: with the readings "
        "reshuffled.",
        "half, 9 in 10: step from which so many keep the role that they end with; of scores: from which r with the "
        "last scores stays above 0.5, 0.9.",
        *_uncounted(c),
    ]
    return Section(f"Commitment to what the layers are at step {end}", [*_heads(c), *heads], rows, notes, heads)


def speeds(c: Comparison) -> Section:
    """Return how fast the layers of each arm change early and later in the run."""
    found = [one for one in _commitments(c) if one.before is not None]
    rows: list[list[TableCell]] = []
    for one in found:
        interval = low_to_high(one.faster.low, one.faster.high, 2, plus=True) if one.faster else "–"
        rows.append([*_arm(c, one.arm), _by(one), number(one.before, 2), number(one.after, 2), interval])
    step, apart = (found[0].early_step, found[0].apart) if found else (0, 0)
    heads = {"by": "role", f"to step\n{step}": "speed", "later": "speed", "later − before,\n95 % interval": "interval"}
    notes = [
        f"Role changes per layer (of scores: 1 − r) and 1000 steps, between readings {apart} steps apart; {EARLY:.0%} "
        f"of the run ends at step {step}."
    ]
    return Section("Speed of change", [*_heads(c), *heads], rows, notes, heads)


def coincidences(c: Comparison) -> Section:
    """Return what happened in the layers in the intervals in which the loss of some domain drops."""
    shown = ANY if len(c.domains) > 1 else MEAN
    found = [one for of_arm in c.trajectories for one in of_arm.coincidences if one.domain == shown]
    rows: list[list[TableCell]] = [
        [*_arm(c, one.arm), one.event, one.scoring, str(one.events), str(one.together), number(one.expected, 1),
         number(one.p, 3)]
        for one in found
    ]  # fmt: skip
    drops = {one.arm: f"{one.drops} of {one.intervals}" for one in found}
    dropped = "; ".join(f"{arm} {count}" if len(drops) > 1 else count for arm, count in drops.items())
    sentences = ((f"{one.event}, {one.scoring}", one.sentence) for one in found if one.events)
    notes = [
        f"Intervals between readings in which the loss of a domain drops: {dropped}.",
        *grouped_notes(sentences, everything=len(rows)),
    ]
    if (tests := sum(one.p is not None for one in found)) > 1:
        notes.append(f"The {tests} tests are not corrected for their number.")
    heads = {"event": "event", "scoring": "null", "events": "event", "together": "coincidence",
             "by chance": "coincidence", "p": "p_coincidence"}  # fmt: skip
    return Section("What happens when the loss drops", [*_heads(c), *heads], rows, notes, heads)


def _commitments(c: Comparison) -> list[ArmCommitment]:
    return [one for of_arm in c.trajectories for one in of_arm.commitments]


def _heads(c: Comparison) -> list[str]:
    return ["arm"] if len(c.trajectories) > 1 else []


def _arm(c: Comparison, arm: str) -> Sequence[str]:
    return [arm] if len(c.trajectories) > 1 else []


def _by(one: ArmCommitment) -> str:
    return f"{one.kind}, {one.scoring}"


def _from(estimate: Estimate, by_chance: float) -> str:
    return f"{number(estimate.mean, 0)} ({number(by_chance, 0)})"


def _uncounted(c: Comparison) -> list[str]:
    """Return a sentence for each scoring under which, in some or all seeds, no layer ends with a role."""
    notes = []
    for of_arm in c.trajectories:
        where = f"{of_arm.arm}, " if len(c.trajectories) > 1 else ""
        counted = {one.scoring: one.seeds for one in of_arm.commitments if one.kind == ROLE}
        for scoring in of_arm.scorings:
            without = [seed for seed in of_arm.seeds if seed not in counted.get(scoring, [])]
            if without:
                notes.append(f"{where}{scoring}: no layer ends with a role at seed {seed_list(without)}.")
    return notes
