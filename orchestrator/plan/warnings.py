"""Warn of what may go wrong with an experiment as planned: memory, disk, budget, time spent beside training."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace

from orchestrator.common.errors import UserError
from orchestrator.common.formatting import duration, figures, size
from orchestrator.experiments import budget, costs
from orchestrator.launch.checks import check_jobs
from orchestrator.plan.cost import Cost

FORKED = 5  # times the steps of its run, which a sidecar's forks may train without a warning
KEPT = 2  # number of checkpoints that a warning suggests to keep


def warnings(cost: Cost, before: float = 0.0) -> Iterator[str]:
    """Yield a sentence per possible problem, with the key that helps."""
    config, hardware = cost.experiment.config, cost.hardware
    train = config.train
    try:
        check_jobs(cost.experiment)
    except UserError as error:
        yield str(error)
    directory = cost.experiment.directory.resolve()
    yield from _beyond_budget(cost, before)
    free = shutil.disk_usage(next(path for path in (directory, *directory.parents) if path.exists())).free
    if cost.disk > free:
        fewer = replace(train, keep_checkpoints=KEPT, keep_states=1)
        few = sum(replace(cell.plan, config=replace(cell.plan.config, train=fewer)).disk for cell in cost.cells)
        keys = f"train.keep_checkpoints={KEPT} train.keep_states=1"
        cure = f"{keys} needs {size(few)}" if few < cost.disk else "save less often"
        yield f"The checkpoints need {size(cost.disk)} and {size(free)} are free here: {cure}."
    peak = max(cell.memory for cell in cost.cells)
    if hardware.memory and peak > hardware.memory:
        yield (
            f"A cell needs {size(peak)} of memory and {hardware.name} has {size(hardware.memory)}: lower "
            f"train.micro_batch_size, which is {train.micro_batch_size or train.batch_size}."
        )
    forked = max(cost.arms.values(), key=lambda cell: cell.plan.fork_steps)
    if forked.plan.fork_steps > FORKED * forked.plan.updates:
        sidecar = forked.plan.config.sidecar
        yield (
            f"The forks of a cell train {forked.plan.fork_steps:,} steps beside its {forked.plan.updates:,}: raise "
            f"sidecar.interval, which is {sidecar.interval}, or lower sidecar.horizon or sidecar.pairs."
        )
    slow = next((cell for cell in cost.arms.values() if cell.beside > cell.training), None)
    if slow is not None:
        key, every = "forensics.every", config.forensics.every
        what = f"Reading the layers takes {duration(slow.forensics)}"
        if slow.interventions:
            what += f", interventions {duration(slow.interventions)}"
        if slow.interventions > slow.forensics:
            key, every = "interventions.every", config.interventions.every or 0
        yield f"{what} a cell and training {duration(slow.training)}: raise {key}, which is {every}."
    worst = max(cost.arms.values(), key=lambda cell: cell.saving / cell.training)
    if worst.saving > 0.25 * worst.training:
        yield (
            f"Saving {len(worst.plan.saved):,} checkpoints takes {worst.saving / worst.training:.0%} of training: "
            f"raise train.checkpoint_every and forensics.every, which are {train.checkpoint_every} and "
            f"{config.forensics.every}."
        )
    if worst.updates > worst.passes:
        yield (
            f"The update of all weights takes longer than the {train.batch_size * train.seq_len:,} tokens of a step: "
            "raise train.batch_size, which costs little."
        )


def _beyond_budget(cost: Cost, before: float) -> Iterator[str]:
    """Yield a sentence per cap of the budget that the cells which are left, and the search, would exceed."""
    spent, each = costs.of_experiment(cost.experiment.directory), cost.device_seconds / 3600 / len(cost.cells)
    hours = each * (len(cost.cells) + before)
    left = costs.Cost(gpu_hours=hours) if cost.hardware.is_gpu else costs.Cost(core_hours=hours)
    for key, (needed, cap) in (spent + left).shares(cost.experiment.config.budget).items():
        if needed > cap:
            already = spent.shares(cost.experiment.config.budget)[key][0]
            yield (
                f"budget.{key}={cap:g} has no room for all: {figures(already)} {budget.UNITS[key]} are spent, and "
                f"these need about {figures(needed - already)} more."
            )
