"""Print the plan in a terminal: totals, then each arm, then warnings."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from itertools import groupby

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from models.spec import DecoderSpec
from orchestrator.common.formatting import counted, duration, figures, minus, size, work
from orchestrator.config.schema import TrackerMode, Where
from orchestrator.experiments.decision import ALPHA, smallest_p
from orchestrator.experiments.expectations import intended
from orchestrator.experiments.experiment import Experiment
from orchestrator.jobs.worker import is_finished
from orchestrator.plan.cost import CellCost, Cost, cost_of, looks_of, shares_memory
from orchestrator.plan.precision import pilot_of
from orchestrator.plan.warnings import warnings
from orchestrator.schedulers import chosen

SEEDS = 12  # most seeds that are all listed; of more, the first and the last


def show(experiment: Experiment, console: Console, before: float = 0.0) -> None:
    """Print what `experiment` will cost (jobs, hours, memory, disk, W&B), its arms side by side, and warnings.

    `before`: cells of the baseline whose work a search has to do first. Takes some seconds, because it measures rates.
    """
    cells = experiment.cells
    left = [cell for cell in cells if not is_finished(cell.directory)]
    console.print(f"[bold]{escape(experiment.name)}[/]  {escape(experiment.config.question)}")
    seeds = list(map(str, experiment.config.seeds))
    listed = ", ".join(seeds) if len(seeds) <= SEEDS else f"{seeds[0]} … {seeds[-1]} ({len(seeds)})"
    planned = f"{counted(len(cells), 'cell')} = {counted(len(experiment.arms), 'arm')} × seeds {listed}"
    console.print(f"{planned}; into {escape(str(experiment.directory))}", soft_wrap=True, highlight=False)
    if len(left) < len(cells):
        done = len(cells) - len(left)
        some = f"{done} {'is' if done == 1 else 'are'} finished; what is left:"
        rest = some if left else f"all finished: {_nothing_left(experiment)}."
        console.print(f"{counted(len(cells), 'cell')}, {rest}", highlight=False)
    if not left:
        return
    with console.status("Timing one block of the model and one reading of it"):
        cost = cost_of(experiment, left)
    console.print()
    console.print(_totals(cost))
    console.print()
    console.print(_table(list(cost.arms.values())))
    console.print()
    rows = [(Text("layers", "dim"), Text("width/FFN", "dim"))]
    rows += [(Text(arm), Text(f"{len(c.plan.spec.layers)}: {_shapes(c.plan.spec)}")) for arm, c in cost.arms.items()]
    console.print(_listed(rows))
    for line in _differences(cost):
        console.print(line)
    if sentences := list(warnings(cost, before)):
        console.print()
        console.print(_listed((Text("!", "bold yellow"), Text(sentence)) for sentence in sentences))


def _nothing_left(experiment: Experiment) -> str:
    """Words for a launch that finds all cells finished."""
    if experiment.auto and len(experiment.config.seeds) < experiment.config.decide.max:
        return "a launch looks at them, and adds pairs where the question is not decided"
    return "nothing is left"


def _totals(cost: Cost) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(style="bold", justify="right", no_wrap=True)
    table.add_column(overflow="fold")
    for row in _rows(cost):
        table.add_row(*map(escape, row))
    return table


def _rows(cost: Cost) -> Iterator[tuple[str, str, str]]:
    """Yield label, total, and the parts of the total."""
    config, hardware, cells = cost.experiment.config, cost.hardware, cost.cells
    several = config.forensics.where == Where.job
    queues = chosen(config).queues
    reading_jobs = f", at most {cost.readings:,} readings" if queues else ", each with a job that reads its layers"
    last = "a last job compares them" if queues else "the launcher then compares them"
    jobs = f"{counted(len(cells), 'cell')}{reading_jobs * several}; {cost.at_once:,} at once; {last}"
    yield "jobs", f"{cost.jobs:,}", jobs
    parts = {
        "forward and backward": sum(cell.passes for cell in cells), "update": sum(cell.updates for cell in cells),
        "held-out losses": sum(cell.evaluation for cell in cells), "checkpoints": sum(cell.saving for cell in cells),
    }  # fmt: skip
    whole = sum(parts.values())
    split = " · ".join(f"{name} {part / whole:.0%}" for name, part in parts.items())
    waits = sum(cell.seconds - cell.training for cell in cells)
    if waits > 0.01 * whole:
        too = " and interventions" if cost.interventions else ""
        split += f"; {work(waits, hardware.unit)} of waiting for readings{too}"
    yield "compute", work(cost.device_seconds, hardware.unit), split
    yield "finds", *_finds(cost.experiment)
    longest = max(cells, key=lambda cell: cell.seconds)
    yield "wall time", duration(cost.wall_seconds), f"a cell takes {duration(longest.seconds)} at most"
    if cost.experiment.auto and len(config.seeds) < config.decide.max:
        yield "at most", *_at_most(cost)
    each = max(cell.reading for cell in cost.arms.values())
    core = sum(cell.forensics for cell in cells)
    where = "in jobs of their own" if several else "in a thread beside training"
    yield "forensics", work(core, "core"), f"{cost.readings:,} readings, up to {duration(each)} each, {where}"
    if cost.interventions:
        most = max(cost.arms.values(), key=lambda cell: cell.intervening)
        core = config.train.threads * sum(cell.interventions for cell in cells)
        passes = most.plan.documents * (len(config.interventions.edits) * len(most.plan.spec.layers) + 1)
        one = f"{passes:,} forward passes, up to {duration(most.intervening)}, each after its reading"
        yield "interventions", work(core, "core"), f"on {counted(cost.interventions, 'checkpoint')}: {one}"
    highest = max(cells, key=lambda cell: cell.memory)
    of = f", of {size(hardware.memory)}" if hardware.memory else ""
    ranks = config.launcher.ranks
    one = "a cell" if ranks == 1 else f"each of a cell's {ranks} processes"
    more = ""
    if second := highest.intervening_memory:
        place = "of it" if shares_memory(highest.plan, hardware) else "of main memory beside it"
        more = f", {size(second)} {place} for a second model, which interventions edit"
    note = "an estimate without libraries and fragmentation"
    yield "memory", size(highest.memory), f"{one} at its peak{of}{more}: {note}"
    largest = max((cell.plan for cell in cells), key=lambda plan: plan.checkpoint_bytes[1])
    kept = "all kept" if config.train.keep_checkpoints is None else f"the newest {config.train.keep_checkpoints} kept"
    saved = f"{cost.checkpoints:,} on disk, {kept}: up to {size(largest.checkpoint_bytes[1])} each"
    if largest.states < largest.kept:
        few = "the newest" if largest.states == 1 else f"the newest {largest.states}"
        saved += f" for {few} of a cell, {size(largest.reduced_bytes[1])} for the others, which hold weights only"
    yield "checkpoints", size(cost.disk), saved
    metrics_logs = sum(cell.footprint.metrics for cell in cells)
    readings = sum(cell.footprint.readings for cell in cells)
    sizes = f"metrics logs {size(metrics_logs)}, readings {size(readings)}"
    if interventions := sum(cell.footprint.interventions for cell in cells):
        sizes += f", interventions {size(interventions)}"
    yield "other files", size(metrics_logs + readings + interventions), sizes
    if config.tracker.mode == TrackerMode.off:
        yield "W&B", "nothing", "tracker=off"
    else:
        log, tables = (sum(getattr(c.footprint, kind) for c in cells) for kind in ("log", "tables"))
        drawn = size(cost.wandb - log - 2 * tables)
        sizes = f"rows {size(log)}, tables {size(2 * tables)}, figures {drawn}"
        yield "W&B", size(cost.wandb), f"{cost.rows:,} rows in {len(cells) + 1:,} runs: {sizes}"
    rank = "each cell" if ranks == 1 else f"each of a cell's {ranks} ranks, communication free"
    yield "hardware", "", f"{hardware.name} for {rank}; {hardware.source}."
    reading = f"{figures(cost.benchmark.first)} s for one layer {cost.benchmark.shape.width} wide"
    forward = f", interventions ({cost.benchmark.forward / 1e9:,.1f} GFLOP/s)" if cost.interventions else ""
    rates = f"Readings ({reading}){forward} and checkpoints ({size(cost.benchmark.write_rate)}/s)"
    yield "", "", f"{rates} are measured on this machine; all else is counted."


def _at_most(cost: Cost) -> tuple[str, str]:
    """The cells with `decide.max` pairs of every arm, and what they cost, look after look."""
    looks, config = looks_of(cost), cost.experiment.config
    cells = counted(sum(len(look.cells) for look in looks), "cell")
    compute = work(sum(look.device_seconds for look in looks), cost.hardware.unit)
    wall = duration(sum(look.wall_seconds for look in looks))
    rest = f"the other rows end with the look at {counted(len(config.seeds), 'pair')}"
    return cells, f"{compute} of compute and {wall} of wall time with decide.max={config.decide.max}; {rest}"


def _finds(experiment: Experiment) -> tuple[str, str]:
    """The smallest difference of the loss that the seeds find, and where that is known from."""
    config = experiment.config
    if len(experiment.arms) < 2:
        return "nothing", "one arm has nothing to be compared with"
    n = config.decide.max if experiment.auto else len(config.seeds)
    error = ALPHA / (len(experiment.arms) - 1)
    if smallest_p(n) > error:
        enough = next(pairs for pairs in range(n, 99) if smallest_p(pairs) <= error)
        return "nothing", f"{counted(n, 'pair')} of each arm cannot decide: {enough} can"
    pilot = pilot_of(experiment)
    if pilot is None:
        return "unknown", "no experiment of such a model beside it has two pairs, whose spread would tell"
    from orchestrator.analysis.outlook import POWER, detectable  # with pandas and plotly, which few plans need

    least = detectable(pilot.std, n, error) or math.nan
    what = f"{figures(least)} nats/token, {least / pilot.loss:.2%} of the loss: the smallest difference that {n} pairs"
    return (
        f"{least / pilot.loss:.2%}",
        f"{what} find with {POWER:.0%} power, by {pilot.pairs} pairs in {pilot.directory}",
    )


def _table(cells: list[CellCost]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("arm")
    for header in ("parameters", "body", "embed + head", "FLOPs/token", "FLOPs", "tokens", "a cell takes"):
        table.add_column(header, justify="right")
    for cell in cells:
        plan = cell.plan
        counts = (f"{count:,}" for count in (plan.params, plan.body, plan.params - plan.body))
        flops = (f"{plan.forward:.4g}", f"{plan.flops:.3g}", f"{plan.tokens:,}", duration(cell.seconds))
        table.add_row(escape(plan.arm), *counts, *flops)
    return table


def _differences(cost: Cost) -> Iterator[Text]:
    """Yield the other arms' costs against the baseline's, the contrasts and the expectations."""
    baseline, *others = cost.arms.values()
    for cell in others:
        plan, base = cell.plan, baseline.plan
        line = f"{plan.arm} against {base.arm}: parameters {minus(f'{plan.params / base.params - 1:+.2%}')}, "
        if (branch := plan.config.branch).arm is None:
            line += f"FLOPs {minus(f'{plan.flops / base.flops - 1:+.2%}')}"
        else:
            line += f"begins at step {plan.begins:,} of {branch.arm} and trains {plan.updates:,} steps"
        yield Text(line)
    config = cost.experiment.config
    if config.contrasts:
        yield Text.assemble(("contrasts, tested in this order  ", "dim"), " · ".join(config.contrasts))
    if wanted := intended(config.expect, cost.experiment.arms):
        yield Text.assemble(("expected  ", "dim"), " · ".join(map(str, wanted)))


def _listed(rows: Iterable[tuple[Text, Text]]) -> Table:
    """Return a table of two columns, the second of which wraps."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def _shapes(spec: DecoderSpec) -> str:
    """Write `1168/3504` per layer (width/FFN), runs of equal layers once with their number."""
    runs = [(text, len(list(run))) for text, run in groupby(f"{layer.width}/{layer.ffn}" for layer in spec.layers)]
    return "  ".join(text if count == 1 else f"{text} ×{count}" for text, count in runs)
