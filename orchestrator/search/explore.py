"""Exploring: every trial is trained for a short time at one seed, the best of them for longer, and so on.

This is successive halving on the validation loss (Jamieson & Talwalkar 2016, AISTATS). Optuna proposes the trials.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import pairwise

from rich.console import Console

from orchestrator.common.errors import INTERRUPTED, STOPPED, UserError
from orchestrator.common.formatting import counted
from orchestrator.config import keys
from orchestrator.experiments import budget, trials
from orchestrator.experiments.experiment import Cell
from orchestrator.experiments.trials import BASELINE, FOLDER, Trial
from orchestrator.jobs.worker import is_finished
from orchestrator.launch import queued
from orchestrator.launch.begin import begin, checked
from orchestrator.launch.launcher import alone, launch
from orchestrator.search.search import Search
from orchestrator.search.study import Study
from orchestrator.storage import metrics_log
from orchestrator.storage.event_log import EventLog


class Unfinished(Exception):
    """The exploration cannot go on now; its command, repeated, goes on from there."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code


def explore(search: Search, console: Console) -> list[Trial]:
    """Train the trials; return those that are to be compared with the baseline, best first.

    Raises `UserError`, and `Unfinished` where cells were stopped or are still in a queue.
    """
    directory = search.directory / FOLDER
    directory.mkdir(parents=True, exist_ok=True)
    with alone(directory):
        return _explore(search, Study(directory, search.settings, search.lengths[0]), console)


def _explore(search: Search, study: Study, console: Console) -> list[Trial]:
    settings, lengths = search.settings, search.lengths
    known = {one.name: replace(one, failed="") for one in trials.read(search.directory)}
    known = {BASELINE: replace(known.get(BASELINE, search.baseline), settings=search.baseline.settings)} | known
    same: dict[str, str] = {}  # trial → the one before it that has the same configuration
    while True:
        proposed = [f"trial_{number}" for number in study.propose()]
        for one in study.trials():
            if one.name not in same:
                same[one.name] = _same_as(search, one, known, same)
        known |= _trained(
            search, lengths[0], [known[name] for name in dict.fromkeys([BASELINE, *same.values()])], console
        )
        trials.write(search.directory, known.values())
        if not proposed:
            break
        for name in proposed:
            study.tell(int(name.removeprefix("trial_")), known[same[name]].losses.get(lengths[0]))
    for before, steps in pairwise(lengths):
        ranked = _ranked(known, before)
        most = max(settings.finalists, math.ceil(settings.keep * len(ranked)))
        known |= _trained(search, steps, [known[BASELINE], *ranked[:most]], console)
        trials.write(search.directory, known.values())
    chosen = [replace(one, chosen=True) for one in _ranked(known, lengths[-1])[: settings.finalists]]
    if not chosen:
        reasons = "; ".join(dict.fromkeys(one.failed for one in known.values() if one.failed))
        why = reasons or "each is the baseline"
        raise UserError(f"{search.directory}: no trial has a loss ({why}): choose another name=... and search.space.")
    known = {name: replace(one, chosen=False) for name, one in known.items()} | {one.name: one for one in chosen}
    trials.write(search.directory, known.values())
    console.print(_told(search, known, chosen), markup=False, highlight=False, soft_wrap=True)
    return chosen


def _same_as(search: Search, one: Trial, known: dict[str, Trial], same: Mapping[str, str]) -> str:
    """The name of the first trial, or the baseline, with the configuration of `one`; a new one is added to `known`."""
    earlier = [known[BASELINE], *(known[name] for name in dict.fromkeys(same.values()))]
    if twin := next((other.name for other in earlier if other.settings == one.settings), None):
        return twin
    known.setdefault(one.name, one)
    try:
        arms = search.explored(search.lengths[0], [one]).arms
    except UserError as error:  # of this combination of values
        known[one.name] = replace(one, failed=str(error))
        return one.name
    return one.name if keys.differences(arms[BASELINE], arms[one.name], ignore=("arm",)) else _forget(one.name, known)


def _forget(name: str, known: dict[str, Trial]) -> str:
    """Take out a trial that is the baseline itself; return the baseline's name."""
    del known[name]
    return BASELINE


def _ranked(known: Mapping[str, Trial], steps: int) -> list[Trial]:
    """The trials with a loss after `steps` steps, the lowest first; equal ones in the order of their proposal."""
    with_loss = [one for one in known.values() if one.name != BASELINE and steps in one.losses and not one.failed]
    return sorted(with_loss, key=lambda one: one.losses[steps])


def _trained(search: Search, steps: int, some: Iterable[Trial], console: Console) -> dict[str, Trial]:
    """Train `some` for `steps` steps where that is left to do; return them with their losses, or why they have none.

    A cell that has failed is not tried again, unless its user launches it with `status --resume failed`.
    """
    every = {one.name: one for one in some}
    experiment = checked(
        search.explored(steps, [one for one in every.values() if one.name != BASELINE and not one.failed])
    )
    if left := [cell.id for cell in experiment.cells if not is_finished(cell.directory) and _failure(cell) is None]:
        count = len(experiment.cells) - 1
        what = f"Exploring {counted(count, 'setting')} for {steps:,} steps: {counted(len(left), 'cell')} to train."
        console.print(what, markup=False, highlight=False)
        begin(experiment, console)
        launch(experiment, console, only=left)
        if queued.left_to_queue(experiment) and not queued.follow(experiment, console):
            again = "repeat this command when they have ended, and it goes on"
            raise Unfinished(0, f"The trials of {experiment.directory} are in the queue: {again}.")
    return every | {cell.config.arm: _with_loss(every[cell.config.arm], cell) for cell in experiment.cells}


def _failure(cell: Cell) -> str | None:
    """The reason why the cell has failed for good; None where it has not."""
    last = EventLog(cell.directory.parents[1]).last().get(cell.id)
    return last.reason if last is not None and last.state == "failed" else None


def _with_loss(trial: Trial, cell: Cell) -> Trial:
    """The trial with the validation loss at the end of the cell, the mean over domains. Raises `Unfinished`."""
    steps = cell.config.train.steps
    if not is_finished(cell.directory):
        if (reason := _failure(cell)) is not None:
            return replace(trial, failed=reason)
        refused = budget.refusal(cell.directory.parents[1], cell.config.budget, [cell.id])
        raise Unfinished(2, refused) if refused else Unfinished(INTERRUPTED, STOPPED)
    record = metrics_log.newest(cell.directory / "metrics.jsonl") or {}
    losses = list((record.get("heldout") or {}).values())
    if not losses or not all(isinstance(loss, float) and math.isfinite(loss) for loss in losses):
        return replace(trial, failed=f"its validation loss after {steps} steps is no number")
    return replace(trial, failed="", losses=trial.losses | {steps: sum(losses) / len(losses)})


def _told(search: Search, known: Mapping[str, Trial], chosen: list[Trial]) -> str:
    """One sentence on the result of the exploration, and one on what follows."""
    steps, best = search.lengths[-1], chosen[0]
    own = known[BASELINE].losses.get(steps)
    against = "" if own is None else f", against {own:.4f} of the baseline"
    count = counted(len(known) - 1, "setting")
    return (
        f"Explored {count} at seed {search.settings.seed}: {best.name} ({', '.join(best.overrides)}) has the lowest "
        f"validation loss, {best.losses[steps]:.4f} after {steps} steps{against}. It won among {len(known) - 1}, so "
        "that this loss flatters it: other seeds tell."
    )
