"""Extending a run: the steps that it shares with every longer one, before anything depends on `train.steps`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from orchestrator.common.errors import UserError
from orchestrator.config.schema import Config, OptimConfig, Schedule, SidecarMode
from orchestrator.experiments.forks import has_forks, steps_ahead
from orchestrator.storage import checkpoint, lease, locks, metrics_log
from orchestrator.storage.cell_files import CellFiles
from sidecar.coefficients import moves


def decay_steps(optim: OptimConfig, steps: int) -> int:
    """The number of last steps, of `steps`, over which `wsd` lowers the learning rate."""
    return max(1, round(optim.decay_fraction * steps))


def exact_until(config: Config) -> int | None:
    """The last step whose state is that of every longer run, bit for bit; None where no step's is."""
    optim, steps, begins = config.optim, config.train.steps, config.branch.step  # no length changes a trunk's state
    if _bound_to_its_end(config):
        return begins
    if optim.schedule == Schedule.wsd:
        until = max(steps - decay_steps(optim, steps), optim.warmup_steps, begins or 0)
    else:
        until = steps - 1 if _decides(config) else steps  # at the last step, a sidecar makes no decision
    if not has_forks(config):
        return until
    falls = until if optim.schedule == Schedule.wsd else steps
    until = falls - steps_ahead(config)  # later forks train at rates, or end at a step, of this length alone
    return until if until >= (begins or 0) else begins


def _bound_to_its_end(config: Config) -> str | None:
    """The setting by which every step depends on `train.steps`; None where there is none."""
    optim = config.optim
    if optim.schedule == Schedule.cosine:
        return "optim.schedule=cosine"
    if optim.warmup_steps > config.train.steps:
        return f"optim.warmup_steps={optim.warmup_steps}, cut to the length of the run"
    if _decides(config) and any(moves(term) for of in config.sidecar.coefficients.values() for term in of):
        return "sidecar.coefficients of time"
    if has_forks(config) and steps_ahead(config) > config.train.steps:
        return f"sidecar.credit=forks, which look {steps_ahead(config)} steps ahead"
    return "sidecar.features=[progress, …]" if _decides(config) and "progress" in config.sidecar.features else None


def _decides(config: Config) -> bool:
    return config.sidecar.mode not in (SidecarMode.off, SidecarMode.fixed)


def is_of_this_run(config: Config, step: int, steps: int) -> bool:
    """True where the checkpoint of `step`, saved when `train.steps` was `steps`, is one of the run of `config`."""
    if steps == config.train.steps or step == config.branch.step:
        return True
    until = exact_until(replace(config, train=replace(config.train, steps=steps)))
    return steps < config.train.steps and until is not None and step <= until


def check_extension(known: Config, now: Config, cell: Path) -> None:
    """Raise `UserError` unless the cell, trained as `known`, can go on as `now`, which has more steps."""
    if known.train.steps == now.train.steps:
        return
    was, wanted = known.train.steps, f"train.steps={now.train.steps}"
    if lease.is_held(cell) or locks.is_held(locks.of_launcher(cell.parents[1])):
        raise UserError(f"{wanted} extends {cell}, which is being trained to {was}: stop it first, then repeat this.")
    saved = checkpoint.saved(cell / "checkpoints")
    if not saved:
        last = metrics_log.newest(cell / "metrics.jsonl")
        if last is not None and last["step"] > (known.branch.step or 0):
            raise UserError(
                f"{wanted} cannot extend {cell}, which was trained to {last['step']} and has no checkpoint any more: "
                f"train anew under another name=..., or keep train.steps={was}."
            )
        return
    branch = f"begin a branch at one of its steps, branch={{arm: {known.arm}, step: {was}}}, in another arm"
    until = exact_until(known)
    if until is None:
        raise UserError(
            f"{wanted} cannot extend {cell}, which was trained to {was} with {_bound_to_its_end(known)}, so that every "
            f"step depended on its end: {branch}, or train anew under another name=...."
        )
    whole = [path for path in saved if checkpoint.corruption(path, digests=False) is None]
    if any("steps" not in checkpoint.read_state(path) for path in whole):
        raise UserError(
            f"{wanted} cannot extend {cell}, whose checkpoints, of an older version, do not say how long their run "
            f"was to be: {branch}."
        )
    newest, _ = CellFiles(cell).newest_checkpoint(lambda state: is_of_this_run(now, state["step"], state["steps"]))
    if newest is None:
        raise UserError(
            f"{wanted} cannot extend {cell}: it depended on its end after step {until}, and no checkpoint up to there "
            f"has the state to go on from; {branch}, or train anew under another name=...."
        )
