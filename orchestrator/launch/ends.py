"""The end of an experiment, of which a notice is sent: it is compared, was stopped, or has failed."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Concatenate, ParamSpec

from orchestrator.common.errors import INTERRUPTED, UserError
from orchestrator.experiments import budget, run_directory
from orchestrator.experiments.experiment import Experiment
from orchestrator.jobs import notices
from orchestrator.schedulers import chosen
from orchestrator.storage.event_log import Entry, EventLog

ANSWERS, REASONS = 3, 3  # arms whose answers, and cells whose reasons, a notice has; more are in report and status
ENDS = {0: ("compared", "is compared"), INTERRUPTED: ("stopped", "was stopped")}  # exit code → event, and in words
P = ParamSpec("P")


def notified(finalize: Callable[Concatenate[Experiment, P], int]) -> Callable[Concatenate[Experiment, P], int]:
    """Send a notice after a launcher's `finalize`, unless the end is that of a queue's job, or nothing had run.

    Nothing has run where `ran` is false and `finalize` itself has launched nothing.
    """

    @wraps(finalize)
    def told(experiment: Experiment, /, *arguments: P.args, **options: P.kwargs) -> int:
        events = EventLog(experiment.directory)
        before, code, failure = _size(events), 2, None
        try:
            code = finalize(experiment, *arguments, **options)
        except UserError as error:
            failure = error
        ran = options.get("ran", True) or _size(events) != before
        if ran and not chosen(experiment.config).queues and not events.open():
            _notify(experiment, code, str(failure or ""))
        if failure is not None:
            raise failure
        return code

    return told


def notified_as_job(finalize: Callable[[Path], None]) -> Callable[[Path], None]:
    """Send a notice after a queue's `finalize`, unless another one follows it."""

    @wraps(finalize)
    def told(path: Path) -> None:
        try:
            finalize(path)
        except UserError as error:
            _notify(run_directory.reopen(path), 2, str(error))
            raise
        last = EventLog(path).comparison()
        if last is not None and not last.is_open:
            experiment = run_directory.reopen(path)
            _notify(experiment, _code(_cells(experiment), last))

    return told


def stopped(experiment: Experiment, reason: str) -> None:
    """Send the notice of a search that was stopped while it explored."""
    text = f"{experiment.name} was stopped while it explored: {reason}"
    notices.send(experiment.config.notify, text, "stopped", experiment.directory.resolve())


def _notify(experiment: Experiment, code: int, error: str = "") -> None:
    """Send the notice of an end with this exit code; `error`: the reason why there is no comparison."""
    if experiment.config.notify.command is None and experiment.config.notify.webhook is None:
        return
    directory, cells = experiment.directory.resolve(), _cells(experiment)
    done = f"{sum(state == 'done' for state, _ in cells.values()):,} of {len(cells):,} cells are done"
    event, is_what = ENDS.get(code, ("failed", "has failed"))
    left = [cell for cell, (state, _) in cells.items() if state != "done"]
    refused = budget.refusal(experiment.directory, experiment.config.budget, left[:1]) if left else None
    failed = [f"{cell}: {reason}" for cell, (state, reason) in cells.items() if state == "failed"]
    if refused and not failed:
        event, is_what, error = "stopped", "was stopped", error or refused
    more = [f"and {len(failed) - REASONS} more"] if len(failed) > REASONS else []
    said = [error] if error else _answers(directory) if event == "compared" else [*failed[:REASONS], *more]
    text = f"{directory.name} {is_what}: {done}. {'; '.join(said)}"
    notices.send(experiment.config.notify, text.strip(), event, directory)


def _cells(experiment: Experiment) -> dict[str, tuple[str, str]]:
    """Cell → the state and reason of its newest event, also of the cells that were added since it was opened."""
    last = EventLog(experiment.directory).last()
    added = [cell for cell in last if cell.rpartition("/")[0] in experiment.arms]
    known: dict[str, Entry | None] = {cell: last.get(cell) for cell in [*(c.id for c in experiment.cells), *added]}
    return {cell: (entry.state, entry.reason) if entry else ("", "") for cell, entry in known.items()}


def _code(cells: dict[str, tuple[str, str]], comparison: Entry) -> int:
    """The exit code that a launcher would have had."""
    states = {state for state, _ in cells.values()}
    if comparison.state == "failed" or "failed" in states:
        return 2
    return 0 if states == {"done"} else INTERRUPTED


def _answers(directory: Path) -> list[str]:
    """The first answer on each arm, as in `Which arm won? wide: better`; empty where they cannot be read."""
    try:
        found = json.loads((directory / "comparison/verdict.json").read_text(encoding="utf-8"))["findings"]
        answers: dict[str, str] = {}
        for finding in found:
            arm = finding["arm"]
            answers.setdefault(arm, f"{finding['question']} {arm}: {finding['answer']}")
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [*answers.values()][:ANSWERS]


def _size(events: EventLog) -> int:
    return events.path.stat().st_size if events.path.exists() else 0
