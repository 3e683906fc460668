"""The checkpoints of one run in order: changes of roles, spread and spectral norms."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.table import Table
from rich.text import Text

from orchestrator.common.errors import UserError
from orchestrator.common.formatting import bar, beside, counted, dash, labelled, page, plain_table, ranges
from orchestrator.forensics.architecture.kinds import KINDS
from orchestrator.forensics.measures import pathology
from orchestrator.forensics.measures.pathology import CRITICAL
from orchestrator.forensics.reading import DEFINITIONS, SCHEMA, LayerReport, Reading, rows_with_experts
from orchestrator.forensics.render import terminal
from orchestrator.forensics.render.history import lines
from orchestrator.forensics.render.terminal import leads, letters, named_role, settled, shown
from orchestrator.forensics.roles.palette import letter
from orchestrator.forensics.roles.routing import ROLES
from orchestrator.forensics.trajectory.history import History, history
from orchestrator.forensics.trajectory.loss_drops import Curve

AHEAD = 3.0  # times its peers' spectral norm: growth is reported from here
COURSE = " · commitment: in parentheses, with the checkpoints reshuffled"
SHOWN = 20  # role changes listed; the others are counted


@dataclass(frozen=True)
class Change:
    """A layer that gained, lost or changed its role."""

    layer: int
    step: int  # of the checkpoint that shows it
    before: str  # a role; empty where none led
    after: str


@dataclass(frozen=True)
class Growth:
    """A matrix whose spectral norm grows towards `CRITICAL` (SCIENCE §5)."""

    layer: int
    kind: str
    ratio: float  # its spectral norm over its peers' median, at the last checkpoint
    rate: float  # growth of ln(ratio) per step over the last two checkpoints
    critical: int  # the step at which the ratio reaches `CRITICAL` at this rate


@dataclass(frozen=True)
class Trajectory:
    """The readings of a run's checkpoints in order of `step`, which all of them have."""

    source: str
    unit: str  # that the steps count: step or epoch
    checkpoints: list[Reading]
    history: History | None  # null with too few checkpoints

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        about = {"schema": SCHEMA, "definitions": DEFINITIONS, "source": self.source, "unit": self.unit}
        course = {} if self.history is None else {"trajectory": self.history.to_json()}
        return about | course | {"checkpoints": [reading.to_json() for reading in self.checkpoints]}


def trajectory(
    source: str, readings: Sequence[Reading], unit: str = "step", losses: Mapping[str, Curve] | None = None
) -> Trajectory:
    """The trajectory of a run. `losses`: name → curve, of what is known of its loss.

    Raises `UserError` for readings of models of different shapes.
    """
    shapes = {(reading.family, tuple(layer.width for layer in reading.layers)) for reading in readings}
    if len(shapes) > 1:
        models = ", ".join(sorted(f"{family} of {counted(len(widths), 'layer')}" for family, widths in shapes))
        raise UserError(f"{source} holds checkpoints of unlike models ({models}): keep those of one run, or name one.")
    return Trajectory(source, unit, list(readings), history(readings, losses))


def rows(run: Trajectory) -> list[dict[str, Any]]:
    """CSV: one row per checkpoint and layer (and expert), the step (or epoch) first."""
    return [{run.unit: reading.step} | row for reading in run.checkpoints for row in rows_with_experts(reading)]


def step_of(reading: Reading) -> int:
    """The step of a run's checkpoint."""
    assert reading.step is not None, "every checkpoint of a run has a step"
    return reading.step


def changes(readings: Sequence[Reading]) -> list[Change]:
    """Every change of role from one checkpoint to the next, in order of step; a tie is not a role."""
    found = []
    for before, after in pairwise(readings):
        for old, new in zip(before.layers, after.layers, strict=True):
            was, now = settled(old.role), settled(new.role)
            if was != now:
                found.append(Change(new.layer, step_of(after), was, now))
    return found


def growths(readings: Sequence[Reading]) -> list[Growth]:
    """Matrices at least `AHEAD` times their peers and growing, the soonest critical first."""
    if len(readings) < 2:
        return []
    earlier, last = readings[-2:]
    steps = step_of(last) - step_of(earlier)
    found = []
    for kind in KINDS:
        before, now = ratios(earlier.layers, kind), ratios(last.layers, kind)
        for layer, (was, ratio) in enumerate(zip(before, now, strict=True)):
            if was > 0 and AHEAD <= ratio < CRITICAL and ratio > was:
                rate = math.log(ratio / was) / steps
                critical = step_of(last) + math.ceil(math.log(CRITICAL / ratio) / rate)
                found.append(Growth(layer, kind, ratio, rate, critical))
    return sorted(found, key=lambda growth: growth.critical)


def ratios(layers: Sequence[LayerReport], kind: str) -> list[float]:
    """Per layer, the spectral norm over the median of the other layers'; 0 where that is undefined."""
    return [ratio or 0.0 for ratio in pathology.ratios([layer.measures[f"spectral_norm.{kind}"] for layer in layers])]


def worst(reading: Reading) -> float:
    """The largest ratio of a spectral norm to its peers' in one checkpoint."""
    return max(max(ratios(reading.layers, kind)) for kind in KINDS)


@dataclass(frozen=True)
class Strip:
    """A grid of roles, layers by checkpoints, a letter each; a narrow terminal shows evenly spaced checkpoints."""

    readings: Sequence[Reading]
    unit: str

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        cell = max(len(f"{reading.step:,}") for reading in self.readings)
        room = max(2, (options.max_width - 8) // (cell + 2))
        readings = [self.readings[i] for i in spaced(len(self.readings), room)]
        table = plain_table([self.unit, *(f"{reading.step:,}" for reading in readings)])
        table.columns[0].style = "dim"
        for layer in range(len(readings[0].layers)):
            roles = [shown(reading.layers[layer]) for reading in readings]
            table.add_row(str(layer), *(letters(role, "bold") if role else dash() for role in roles))
        yield table
        if len(readings) < len(self.readings):
            yield Text(f"{len(readings)} of {len(self.readings)} checkpoints shown", "dim")


def spaced(count: int, room: int) -> list[int]:
    """At most `room` ≥ 2 of the indices below `count`, evenly spaced, first and last among them."""
    return [round(i * (count - 1) / (room - 1)) for i in range(room)] if count > room else list(range(count))


def report(run: Trajectory, seconds: float) -> Group:
    """The page of a run: roles over time, one line per checkpoint, changes and growth."""
    readings, unit = run.checkpoints, run.unit
    last = readings[-1]
    several = f"{unit}s {readings[0].step:,} to {last.step:,}"
    span = several if len(readings) > 1 else f"{unit} {last.step:,}"
    depth = counted(len(last.layers), "layer")
    heading = Text(run.source, "bold", overflow="fold").append(
        f"\n{last.family_and_layout} · {counted(len(readings), 'checkpoint')} · {span} · {depth} · {seconds:.1f} s",
        "not bold dim",
    )
    moved = changes(readings)
    table = _checkpoints(readings, unit)
    said = Group(_headline(moved, depth, last.scoring), *terminal.heads(last))
    return page(heading, said, Strip(readings, unit), table, _summary(readings, moved, unit, run.history))


def _headline(moved: Sequence[Change], depth: str, scoring: str) -> Text:
    layers = sorted({change.layer for change in moved})
    if not layers:
        return Text.assemble(("No layer changes its role", "bold"), f" by the {scoring} scoring.")
    verb = "changes its role" if len(layers) == 1 else "change their role"
    return Text.assemble(
        (f"{len(layers)} of {depth} {verb}", "bold"), f" by the {scoring} scoring: {ranges(layers, 'L')}."
    )


def _checkpoints(readings: Sequence[Reading], unit: str) -> Table:
    table = plain_table((unit, "roles", "mean cv", "saturated", "norm / peers"))
    spreads = [mean_cv(reading) for reading in readings]
    largest = max((spread for spread in spreads if spread is not None), default=0.0)
    for reading, spread in zip(readings, spreads, strict=True):
        ratio = worst(reading)
        severity = next((f.severity for f in reading.pathology), None)
        table.add_row(
            f"{reading.step:,}",
            str(sum(leads(layer.role) for layer in reading.layers)),
            bar(spread, largest, ".3f"),
            beside(reading.totals, "saturated_robust"),
            Text(f"{ratio:.1f}×", terminal.SEVERITIES[severity] if severity else ""),
        )
    return table


def mean_cv(reading: Reading) -> float | None:
    """Mean over the layers of the spread of FFN co-magnitude; None where no layer has it."""
    known = [cv for layer in reading.layers if (cv := layer.measures["cv"]) is not None]
    return sum(known) / len(known) if known else None


def _summary(readings: Sequence[Reading], moved: Sequence[Change], unit: str, course: History | None) -> Table:
    last = readings[-1]
    grown = [
        Text(
            f"{growth.kind} of layer {growth.layer}, {growth.ratio:.1f}× its peers, reaches {CRITICAL:.0f}× "
            f"at {unit} {growth.critical:,} at its rate since {unit} {readings[-2].step:,}",
            "yellow",
        )
        for growth in growths(readings)[: terminal.SHOWN]
    ]
    listed = _sentences(moved[:SHOWN], unit)
    if len(moved) > SHOWN:
        listed.append(Text(f"and {len(moved) - SHOWN} more", "dim"))
    legend = (
        f"strip: {' · '.join(f'{letter(role)} {role}' for role in ROLES)} · two letters: a tie · – no role · "
        "saturated: above median + 3 robust std / by chance · "
        "norm / peers: the largest spectral norm over its peers' median"
        f"{COURSE if course and course.commitments else ''}"
    )
    return labelled(
        {
            "changes": listed,
            **lines(course, unit),
            "growth": grown,
            "pathology": terminal.pathology(last) + _overcome(readings, unit),
            "assumed": terminal.assumed(last),
            "missing": terminal.missing(last),
            "columns": [Text(legend, "dim")],
        }
    )


def _overcome(readings: Sequence[Reading], unit: str) -> list[Text]:
    """The worst finding of an earlier checkpoint, where the last has none as bad."""
    known = max((finding.ratio for finding in readings[-1].pathology), default=0.0)
    before = [(reading.step, f) for reading in readings[:-1] for f in reading.pathology if f.ratio > known]
    if not before:
        return []
    step, found = max(before, key=lambda entry: entry[1].ratio)
    sentence = f"{found.severity} at {unit} {step:,}: {found.tensor} had {found.ratio:.1f}× its peers' norm"
    return [Text(sentence, terminal.SEVERITIES[found.severity])]


def _sentences(moved: Sequence[Change], unit: str) -> list[Text]:
    """One line per change, steps and layers aligned right."""
    steps = max((len(f"{change.step:,}") for change in moved), default=0)
    layers = max((len(str(change.layer)) for change in moved), default=0)
    lines = []
    for change in moved:
        before, after = (named_role(role) if role else dash() for role in (change.before, change.after))
        where = f"{unit} {change.step:>{steps},}  layer {change.layer:>{layers}}  "
        lines.append(Text.assemble(where, before, " → ", after))
    return lines
