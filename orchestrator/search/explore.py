"""Exploring: every trial is trained for a short time at one seed, the best of them for longer, and so on.

This is successive halving on the validation loss (Jamieson & Talwalkar 2016, AISTATS). Optuna proposes the trials.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

from rich.console import Console
from rich.table import Table

from orchestrator.common.errors import INTERRUPTED, STOPPED, UserError
from orchestrator.common.formatting import counted, plain_table
from orchestrator.config import keys
from orchestrator.experiments import budget, effects, trials
from orchestrator.experiments.effects import Effect
from orchestrator.experiments.experiment import Cell
from orchestrator.experiments.trials import BASELINE, FOLDER, Trial
from orchestrator.jobs.worker import is_finished
from orchestrator.launch import queued
from orchestrator.launch.begin import begin, checked
from orchestrator.launch.checks import check_arm
from orchestrator.launch.launcher import alone, launch
from orchestrator.search import learned
from orchestrator.search.search import Search
from orchestrator.search.study import Study, name_of
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
    known = {BASELINE: search.baseline}  # of every configuration, the first that has it
    first_of = dict[str, str]()  # trial → the first one, or the baseline, that has its configuration
    while True:
        proposed = study.propose()
        for one in study.trials():
            if one.name not in first_of:
                first = _first_of(search, one, [*known.values()])
                first_of[one.name] = first.name
                known.setdefault(first.name, first)
        known |= _trained(search, lengths[0], known.values(), console)
        for number in proposed:
            study.tell(number, known[first_of[name_of(number)]].losses.get(lengths[0]))
        if not proposed:
            break
    for before, steps in pairwise(lengths):
        ranked = _ranked(known, before)
        most = max(settings.finalists, math.ceil(settings.keep * len(ranked)))
        known |= _trained(search, steps, [known[BASELINE], *ranked[:most]], console)
    chosen = [replace(one, chosen=True) for one in _ranked(known, lengths[-1])[: settings.finalists]]
    known |= {one.name: one for one in chosen}
    trials.write(search.directory, known.values())
    if not chosen:
        reasons = "; ".join(dict.fromkeys(one.failed for one in known.values() if one.failed))
        why = reasons or "each is the baseline"
        raise UserError(f"{search.directory}: no trial has a loss ({why}): choose another name=... and search.space.")
    if found := study.effects():
        effects.write(search.directory, found)
        console.print(_effects(found))
    sentences = [_told(search, known, chosen)]
    if path := learned.write(search.directory, chosen[0], search.experiment(chosen).arms[chosen[0].name]):
        sentences.append(
            f"{path} holds its sidecar: copy it to sidecar/NAME.yaml in the folder of --config-dir, and sidecar=NAME "
            "plays it."
        )
    for sentence in sentences:
        console.print(sentence, markup=False, highlight=False, soft_wrap=True)
    return chosen


def _first_of(search: Search, one: Trial, earlier: list[Trial]) -> Trial:
    """The one of `earlier`, the baseline first, with the configuration of `one`; else `one`, failed if it has none."""
    if twin := next((other for other in earlier if other.settings == one.settings), None):
        return twin
    try:
        arms = search.explored(search.lengths[0], [one]).arms
        check_arm(arms[one.name])
    except UserError as error:  # of this combination of values
        return replace(one, failed=str(error))
    return one if keys.differences(arms[BASELINE], arms[one.name], ignore=("arm",)) else earlier[0]


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


def _effects(found: Sequence[Effect]) -> Table:
    """The effects of the screen, the clearest first."""
    table = plain_table(effects.HEADS, left=effects.HEADS[:1])
    for one in effects.ranked(found):
        table.add_row(*one.written())
    return table


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
