"""One run over its checkpoints: how roles, spread and spectral norms move."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.table import Table
from rich.text import Text

from orchestrator.common.errors import UserError
from orchestrator.common.formatting import bar, beside, counted, dash, labelled, ranges
from orchestrator.common.palette import colour, letter
from orchestrator.forensics.analyze import DEFINITIONS, SCHEMA
from orchestrator.forensics.architecture.anatomy import KINDS
from orchestrator.forensics.measures.pathology import CRITICAL
from orchestrator.forensics.render import terminal
from orchestrator.forensics.render.export import rows_of
from orchestrator.forensics.render.terminal import Layer, Result, settled

AHEAD = 3.0  # times its peers' spectral norm, from which a tensor's growth is told
SHOWN = 20  # role changes listed before the rest are counted


@dataclass(frozen=True)
class Change:
    """A layer that gained, lost or changed its role."""

    layer: int
    step: int  # of the checkpoint that shows it
    before: str  # a role; empty where none led
    after: str


@dataclass(frozen=True)
class Growth:
    """A matrix on its way out of proportion (SCIENCE §5)."""

    layer: int
    kind: str
    ratio: float  # its spectral norm over its peers' median, at the last checkpoint
    rate: float  # growth of ln(ratio) per step over the last two checkpoints
    critical: int  # the step at which the ratio reaches `CRITICAL` at this rate


def trajectory(source: str, results: Sequence[Result], unit: str = "step") -> dict[str, Any]:
    """The document of a run. `results`: of its checkpoints, by ascending `step`, none of them None.

    `unit`: what the steps count, `step` or `epoch`.
    Raises `UserError` where they are not of one run.
    """
    shapes = {(result["family"], tuple(layer["width"] for layer in result["layers"])) for result in results}
    if len(shapes) > 1:
        models = ", ".join(sorted(f"{family} of {counted(len(widths), 'layer')}" for family, widths in shapes))
        raise UserError(
            f"{source} holds checkpoints of unlike models ({models}): keep those of one run in it, or name one of them."
        )
    about = {"schema": SCHEMA, "definitions": DEFINITIONS, "source": source, "unit": unit}
    return about | {"checkpoints": list(results)}


def rows(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """CSV: one row per checkpoint and layer, the step (or epoch) first."""
    return [{document["unit"]: result["step"]} | row for result in document["checkpoints"] for row in rows_of(result)]


def changes(results: Sequence[Result]) -> list[Change]:
    """Every change of role from one checkpoint to the next, in order of step. All ties are one: no role leads."""
    found = []
    for before, after in pairwise(results):
        for old, new in zip(before["layers"], after["layers"], strict=True):
            was, now = settled(old["role"]), settled(new["role"])
            if was != now:
                found.append(Change(new["layer"], after["step"], was, now))
    return found


def growths(results: Sequence[Result]) -> list[Growth]:
    """Matrices at least `AHEAD` of their peers and still growing away from them, the soonest critical first."""
    if len(results) < 2:
        return []
    earlier, last = results[-2:]
    steps = last["step"] - earlier["step"]
    found = []
    for kind in KINDS:
        before, now = ratios(earlier["layers"], kind), ratios(last["layers"], kind)
        for layer, (was, ratio) in enumerate(zip(before, now, strict=True)):
            if was > 0 and AHEAD <= ratio < CRITICAL and ratio > was:
                rate = math.log(ratio / was) / steps
                critical = last["step"] + math.ceil(math.log(CRITICAL / ratio) / rate)
                found.append(Growth(layer, kind, ratio, rate, critical))
    return sorted(found, key=lambda growth: growth.critical)


def ratios(layers: Sequence[Layer], kind: str) -> list[float]:
    """Per layer, the spectral norm over the median of the other layers'; 0 where either is absent or zero."""
    norms = np.array([layer["measures"][f"spectral_norm.{kind}"] or 0.0 for layer in layers], dtype=np.float64)
    medians = [float(np.median(np.delete(norms, i))) if len(norms) > 1 else 0.0 for i in range(len(norms))]
    return [float(norm) / median if median else 0.0 for norm, median in zip(norms, medians, strict=True)]


def worst(result: Result) -> float:
    """The largest ratio of a spectral norm to its peers' in one checkpoint."""
    return max(max(ratios(result["layers"], kind)) for kind in KINDS)


class Strip:
    """Layers down, checkpoints across, a letter for each role; thinned out evenly where the terminal is narrow."""

    def __init__(self, results: Sequence[Result], unit: str) -> None:
        self.results = results
        self.unit = unit

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        cell = max(len(f"{result['step']:,}") for result in self.results)
        room = max(2, (options.max_width - 8) // (cell + 2))
        results = [self.results[i] for i in spaced(len(self.results), room)]
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", show_footer=False)
        table.add_column(self.unit, justify="right", no_wrap=True, style="dim")
        for result in results:
            table.add_column(f"{result['step']:,}", justify="right", no_wrap=True)
        for layer in range(len(results[0]["layers"])):
            roles = [result["layers"][layer]["role"] for result in results]
            table.add_row(str(layer), *map(_letter, roles))
        yield table
        if len(results) < len(self.results):
            yield Text(f"{len(results)} of {len(self.results)} checkpoints shown", "dim")


def _letter(role: str) -> Text:
    return Text(letter(role), f"bold {colour(role)}") if terminal.leads(role) else dash()


def spaced(count: int, room: int) -> list[int]:
    """At most `room` ≥ 2 of the indices below `count`, evenly spaced, first and last among them."""
    return [round(i * (count - 1) / (room - 1)) for i in range(room)] if count > room else list(range(count))


def report(document: Mapping[str, Any], seconds: float) -> Group:
    """All that is printed: the roles over time, one line per checkpoint, what changed and what grows."""
    results, unit = document["checkpoints"], document["unit"]
    last = results[-1]
    several = f"{unit}s {results[0]['step']:,} to {last['step']:,}"
    span = several if len(results) > 1 else f"{unit} {last['step']:,}"
    depth = counted(len(last["layers"]), "layer")
    about = f"{last['family']} · {counted(len(results), 'checkpoint')} · {span} · {depth} · {seconds:.1f} s"
    moved = changes(results)
    return Group(
        Text(document["source"], "bold", overflow="fold"),
        Text(about, "dim"),
        Text(),
        _headline(results, moved),
        Text(),
        Strip(results, unit),
        Text(),
        _checkpoints(results, unit),
        Text(),
        _summary(results, moved, unit),
    )


def _headline(results: Sequence[Result], moved: Sequence[Change]) -> Text:
    layers = sorted({change.layer for change in moved})
    if not layers:
        return Text("No layer changes its role.", "bold")
    verb = "changes its role" if len(layers) == 1 else "change their role"
    changing = f"{len(layers)} of {counted(len(results[0]['layers']), 'layer')} {verb}"
    return Text.assemble((changing, "bold"), f": {ranges(layers, 'L')}.")


def _checkpoints(results: Sequence[Result], unit: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in (unit, "roles", "mean cv", "saturated", "norm / peers"):
        table.add_column(name, justify="right", no_wrap=True)
    spreads = [mean_cv(result) for result in results]
    for result, spread in zip(results, spreads, strict=True):
        ratio = worst(result)
        severity = next((f["severity"] for f in result["pathology"]), None)
        table.add_row(
            f"{result['step']:,}",
            str(sum(map(terminal.has_role, result["layers"]))),
            bar(spread, max(spreads), ".3f"),
            beside(result["totals"], "saturated_robust"),
            Text(f"{ratio:.1f}×", terminal.SEVERITIES[severity] if severity else ""),
        )
    return table


def mean_cv(result: Result) -> float:
    """Mean over the layers."""
    known = [cv for layer in result["layers"] if (cv := layer["measures"]["cv"]) is not None]
    return sum(known) / len(known) if known else 0.0


def _summary(results: Sequence[Result], moved: Sequence[Change], unit: str) -> Table:
    last = results[-1]
    grown = [
        Text(
            f"{growth.kind} of layer {growth.layer}, {growth.ratio:.1f}× its peers, reaches {CRITICAL:.0f}× "
            f"at {unit} {growth.critical:,} at its rate since {unit} {results[-2]['step']:,}",
            "yellow",
        )
        for growth in growths(results)[: terminal.SHOWN]
    ]
    listed = _sentences(moved[:SHOWN], unit)
    if len(moved) > SHOWN:
        listed.append(Text(f"and {len(moved) - SHOWN} more", "dim"))
    legend = (
        "strip: H hub · D damper · P passthrough · S specialist · – none leads · saturated: above median + "
        "3 robust std / by chance · norm / peers: the largest spectral norm over its peers' median"
    )
    return labelled(
        {
            "changes": listed,
            "growth": grown,
            "pathology": terminal.pathology(last) + _overcome(results, unit),
            "assumed": [Text(line, "yellow") for line in last["assumed"]],
            "missing": [Text(line, "dim") for line in terminal.missing(last)],
            "columns": [Text(legend, "dim")],
        }
    )


def _overcome(results: Sequence[Result], unit: str) -> list[Text]:
    """The worst that an earlier checkpoint had, where the last has nothing as bad."""
    known = max((finding["ratio"] for finding in results[-1]["pathology"]), default=0.0)
    before = [(result["step"], f) for result in results[:-1] for f in result["pathology"] if f["ratio"] > known]
    if not before:
        return []
    step, found = max(before, key=lambda entry: entry[1]["ratio"])
    told = f"{found['severity']} at {unit} {step:,}: {found['tensor']} had {found['ratio']:.1f}× its peers' norm"
    return [Text(told, terminal.SEVERITIES[found["severity"]])]


def _sentences(moved: Sequence[Change], unit: str) -> list[Text]:
    """One below the other, steps and layers flush right."""
    steps = max((len(f"{change.step:,}") for change in moved), default=0)
    layers = max((len(str(change.layer)) for change in moved), default=0)
    told = []
    for change in moved:
        before, after = (terminal.named_role(role) if role else dash() for role in (change.before, change.after))
        where = f"{unit} {change.step:>{steps},}  layer {change.layer:>{layers}}  "
        told.append(Text.assemble(where, before, " → ", after))
    return told
