"""The end of a launch: compare the cells that have finished, or name those that have not, and why.

`python -m orchestrator.launch.finalize DIR` is the queue's job that follows all cells: it compares them, or submits
again those that died together with their job.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape

from orchestrator import monitoring
from orchestrator.common import command
from orchestrator.common.errors import INTERRUPTED, STOPPED, UserError
from orchestrator.common.formatting import counted
from orchestrator.config import keys
from orchestrator.experiments import budget, run_directory
from orchestrator.experiments.dependency import awaited_cells, has_finished
from orchestrator.experiments.experiment import Cell, Experiment
from orchestrator.experiments.readings import Readings
from orchestrator.jobs import retry
from orchestrator.jobs.worker import is_finished
from orchestrator.launch import ends, queued
from orchestrator.launch.launcher import launch
from orchestrator.schedulers import job_states, of_this_process
from orchestrator.schedulers.scheduler import JobState, NoAnswer, Phase
from orchestrator.storage import locks
from orchestrator.storage.event_log import COMPARISON, Entry, EventLog
from orchestrator.tracking import agent
from orchestrator.tracking.run import log_comparison

if TYPE_CHECKING:
    from orchestrator.analysis import Comparison

ASK_TIMES, ASK_SECONDS = 10, 30.0  # queries to a queue that does not answer, and the pause between them


@ends.notified
def finalize(experiment: Experiment, console: Console, complain: Callable[[str], None], *, ran: bool = True) -> int:
    """Compare what has finished, or print the commands that follow the queue; return the exit code.

    With `seeds: auto`, launch more pairs and compare again, until the question is decided. `ran`: this launch ran
    cells.
    """
    while True:
        code, launched = _look(experiment, console, complain, ran=ran)
        if launched is None:
            return code
        experiment, ran = launched


def _look(
    experiment: Experiment, console: Console, complain: Callable[[str], None], *, ran: bool
) -> tuple[int, tuple[Experiment, bool] | None]:
    """Return the exit code; and, where more pairs were launched, the experiment with them and True if any cell ran."""
    if (elsewhere := queued.left_to_queue(experiment)) and not queued.follow(experiment, console):
        queues = queued.title(elsewhere.values(), experiment.directory)
        status = f"python -m orchestrator.status {shlex.quote(str(experiment.directory))}"
        console.print(
            f"{counted(len(elsewhere), 'cell')} with {queues}; the comparison follows by itself.\n"
            f"  follow: {status} --watch\n  end:    {status} --cancel",
            markup=False,
            soft_wrap=True,
        )
        return 0, None
    if elsewhere and experiment.auto:  # whose job may have added pairs
        experiment = _with_all_arms(experiment)
    code, finished = _report_unfinished(experiment, complain)
    if not ran and not code and not experiment.auto:
        console.print(f"Nothing is left to do: all cells of {escape(experiment.name)} are finished.")
    if lost := [c.id for c in experiment.cells if not code and Readings(c.directory, c.config).lost()]:
        complain(f"Readings or interventions are missing whose checkpoints are gone; without them: {', '.join(lost)}.")
    if not finished or code == INTERRUPTED:  # a failed cell leaves the others to be compared
        return code, None
    # what a job compared, it has logged, and it has seen to more pairs
    log, more = (ran or agent.is_present()) and not elsewhere, not code and not elsewhere
    comparison, grown, reason = _compare(_with_all_arms(experiment) if experiment.auto else experiment, more=more)
    if grown is None:
        _show(comparison, experiment, reason, console, log=log)
        return code, None
    console.print(reason, markup=False, soft_wrap=True)
    try:
        return code, (grown, bool(launch(grown, console)))
    except UserError as error:  # as where the queue refuses the jobs
        _show(comparison, experiment, "", console, log=True)
        complain(str(error))
        return 2, None


def _with_all_arms(experiment: Experiment) -> Experiment:
    """The experiment with every arm and seed of its directory, run as this launch runs its own cells."""
    whole, arms = run_directory.reopen(experiment.directory), experiment.arms
    # an arm that this launch leaves out may branch from one that it names, which keeps a state for it
    taken = tuple(key for key in keys.OF_A_LAUNCH if key != "train.keep_at")
    cells = (
        replace(cell, config=keys.taking(cell.config, arms.get(cell.config.arm, experiment.config), taken))
        for cell in whole.cells
    )
    return replace(experiment, config=replace(experiment.config, seeds=whole.config.seeds), cells=tuple(cells))


def _report_unfinished(experiment: Experiment, complain: Callable[[str], None]) -> tuple[int, int]:
    """Print which cells failed or are lost, and why; return the exit code and the number of finished cells."""
    unfinished = [cell.id for cell in _unfinished(experiment)]
    seen = {cell.cell: cell for cell in monitoring.read_status(experiment.directory)} if unfinished else {}
    failed = [seen[cell] for cell in unfinished if cell in seen and seen[cell].state in ("failed", "lost")]
    for cell in failed:
        complain("\n  ".join([f"{cell.cell} {'is ' * (cell.state == 'lost')}{cell.state}: {cell.reason}", *cell.log]))
    refused = budget.refusal(experiment.directory, experiment.config.budget, unfinished[:1]) if unfinished else None
    if refused:
        complain(f"{refused} Not trained: {', '.join(unfinished)}.")
    elif unfinished and not failed:
        complain(STOPPED)
    code = 2 if failed or refused else INTERRUPTED if unfinished else 0
    return code, len(experiment.cells) - len(unfinished)


def _compare(experiment: Experiment, *, more: bool) -> tuple[Comparison, Experiment | None, str]:
    """Compare; return also the experiment with the cells that it needs next, if any, and the reason.

    `more`: cells may be added. Only `seeds: auto` adds any; a list of seeds gives no reason either.
    """
    from orchestrator.analysis import compare  # pandas and plotly, which a dry run does without
    from orchestrator.launch.until_decided import next_pairs

    comparison = compare(experiment.directory)
    if not (more and experiment.auto):
        return comparison, None, ""
    seeds = experiment.config.seeds
    untrained = [cell.id for cell in experiment.with_seeds(seeds).cells if not has_finished(cell.directory)]
    if untrained:  # of arms that this launch does not name
        first = f"Every arm is needed at every seed: {', '.join(untrained)} first."
        return comparison, run_directory.add_seeds(experiment, seeds), first
    return comparison, *next_pairs(experiment, comparison)


def _show(comparison: Comparison, experiment: Experiment, reason: str, console: Console, *, log: bool) -> None:
    """Print the summary and the reason why no pairs follow; with `log`, send the comparison to W&B."""
    from orchestrator.analysis import print_summary

    print_summary(comparison, console)
    if log:
        log_comparison(experiment.config, comparison)
    if reason:
        console.print(reason, markup=False, soft_wrap=True)


@ends.notified_as_job
def run_as_job(path: Path) -> None:
    """Compare the trained cells; or, where cells died with their whole job, submit these and another finalize."""
    experiment, events, scheduler = run_directory.reopen(path), EventLog(path), of_this_process(path)
    with locks.hold(locks.of_launcher(path)):
        retried, delay = _to_try_again(experiment, events)
        queue = _in_queue(events)
        if retried:
            queued.submit(experiment, retried, beside=queue, delay=delay)
            return
        if queue:  # submitted by a user meanwhile
            queued.submit_finalize(experiment, queue.values())
            return
        this_job, name = scheduler.this_job(), scheduler.name if scheduler.queues else ""
        which: dict[str, Any] = {"attempt": 1, "job": this_job.id if this_job else "", "scheduler": name}
        # recorded before the lock is released: from now on no launcher leaves new cells to this job
        events.append(COMPARISON, "running", **which)
    trained = [cell for cell in experiment.cells if has_finished(cell.directory)]
    for cell in trained:
        _read(cell)
    if not trained:
        events.append(COMPARISON, "failed", reason="no cell has finished", **which)
        return
    done, console = f"{len(trained)} of {len(experiment.cells)} cells", Console(width=100)
    left = [cell.id for cell in experiment.cells if cell not in trained]
    if left and (refused := budget.refusal(path, experiment.config.budget, left[:1])):
        done += f"; {refused}"
    comparison, grown, reason = _compare(experiment, more=len(trained) == len(experiment.cells))
    if grown is not None:
        console.print(reason, markup=False, soft_wrap=True)
        try:
            with locks.hold(locks.of_launcher(path)):
                queue = _in_queue(events)  # a launcher may have submitted cells since
                queued.submit(grown, [cell for cell in _unfinished(grown) if cell.id not in queue], beside=queue)
            return
        except UserError as error:  # as where a compute node may not submit
            reason = f"Not decided, and the next pairs could not be submitted: {error} Its own command submits them."
            done += f"; {reason[0].lower()}{reason[1:]}"
    _show(comparison, experiment, reason, console, log=True)
    events.append(COMPARISON, "done", reason=done, **which)


def _unfinished(experiment: Experiment) -> list[Cell]:
    return [cell for cell in experiment.cells if not is_finished(cell.directory)]


def _read(cell: Cell) -> None:
    """Make the readings of the cell that no job has made; print why one cannot be made."""
    try:
        readings = Readings(cell.directory, cell.config)
        for checkpoint in readings.wanted():
            readings.read(checkpoint)
    except (UserError, OSError) as error:
        print(f"{cell.id} is compared without some of its readings or interventions: {error}", flush=True)


def _to_try_again(experiment: Experiment, events: EventLog) -> tuple[list[Cell], float]:
    """The cells that died together with their job, and the seconds to wait before they are tried again."""
    limits, entries, states = experiment.config.launcher, _queued(events), _states(events)
    retried, longest = [], 0.0
    for cell in experiment.cells:
        entry = entries.get(cell.id)
        state = states.get(entry.queued_as) if entry else None
        if entry is None or (state and not state.has_ended) or is_finished(cell.directory):
            continue
        which: dict[str, Any] = {"attempt": entry.attempt, "job": entry.job, "scheduler": entry.scheduler}
        if state and state.phase == Phase.cancelled:
            events.append(cell.id, "stopped", reason="cancelled", **which)
            continue
        if entry.state != "crashed":
            how = state.word if state else "its queue does not know it any more"
            retry.record_crash(events, cell.id, f"its job ended unexpectedly ({how})", **which)
        pause = retry.pause_or_give_up(events, cell.id, limits.retries, limits.backoff_seconds)
        if pause is not None:
            retried.append(cell)
            longest = max(longest, pause)
    # and those that failed because they need a result of these
    last, sources = events.last(), {cell.directory for cell in retried}
    failed = [cell for cell in experiment.cells if cell.id in last and last[cell.id].state == "failed"]
    return [*retried, *(cell for cell in failed if awaited_cells(cell.config, experiment.directory) & sources)], longest


def _in_queue(events: EventLog) -> dict[str, str]:
    """Cell → job, of the cells that wait or run in a queue now. Raises `UserError` as `_states` does."""
    states, entries = _states(events), _queued(events).items()
    return {cell: e.job for cell, e in entries if e.queued_as in states and not states[e.queued_as].has_ended}


def _queued(events: EventLog) -> dict[str, Entry]:
    """The newest event of every cell whose job a queue has or should have."""
    return {cell: entry for cell, entry in events.open().items() if cell != COMPARISON}


def _states(events: EventLog) -> dict[tuple[str, str], JobState]:
    """`Entry.queued_as` → state, as the queue knows it. Raises `UserError` after minutes without an answer."""
    for _ in range(ASK_TIMES):
        try:
            return job_states(_queued(events).values(), events.path.parent)
        except NoAnswer as error:
            sentence = f"{error}. To compare without it: python -m orchestrator.compare {events.path.parent}"
            time.sleep(ASK_SECONDS)
    raise UserError(sentence)


def main(arguments: list[str] | None = None) -> int:
    """Exit code: 0, or 2 where nothing can be compared or submitted."""
    parser = command.parser("orchestrator.launch.finalize", __doc__)
    parser.add_argument("directory", type=Path, help="the experiment's directory")
    return command.run(parser, lambda options: run_as_job(options.directory), arguments)


if __name__ == "__main__":
    sys.exit(main())
