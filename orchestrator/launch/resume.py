"""Resuming and cancelling an experiment, given its directory."""

from __future__ import annotations

import os
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from orchestrator import monitoring
from orchestrator.experiments.experiment import Experiment
from orchestrator.experiments.run_directory import record_data, reopen
from orchestrator.launch import checks, queued
from orchestrator.launch.launcher import alone, launch
from orchestrator.schedulers import chosen
from orchestrator.storage import lease, locks
from orchestrator.storage.event_log import EventLog

HELD = {"zombie", "queued", "preempted"}  # states of cells whose jobs are cancelled before they are launched again
UNFINISHED = {"failed", "lost", "stopped", "next"}
CHOICES = {"failed": {"failed"}, "unfinished": UNFINISHED, "all": UNFINISHED | HELD}  # --resume → states to launch


def resume(path: Path, which: str, console: Console) -> Experiment | None:
    """Launch the cells in a state of `CHOICES[which]`, as they were last launched; cancel their jobs first.

    Where all cells are done and their comparison is lost, it is submitted again.
    Returns the whole experiment, or None where there was no cell to launch. Raises `UserError` as a launch does.
    """
    experiment = reopen(path)
    with alone(path):  # raises before anything is printed
        pass
    queued.still_queued(experiment, experiment.cells)  # raises where a queue does not answer
    cells = monitoring.read_status(path)
    states = {cell.cell: cell.state for cell in cells if cell.state in CHOICES[which]}
    selected = [cell for cell in experiment.cells if cell.id in states]
    if not selected:
        if all(cell.state == "done" for cell in cells) and _compare_again(experiment, console):
            return None
        counted = Counter(cell.state for cell in cells)
        console.print(f"Nothing to resume: {', '.join(f'{n} {state}' for state, n in counted.items())}.")
        return None
    console.print(f"{len(selected)} of {len(cells)} cells, with launcher={experiment.config.launcher.kind} as before.")
    part = replace(experiment, cells=tuple(selected))
    checks.check(part)
    checks.check_jobs(part)
    record_data(part, checks.prepare_data(part, console))
    launch(experiment, console, only=states, cancel=[cell for cell, state in states.items() if state in HELD])
    return experiment


def _compare_again(experiment: Experiment, console: Console) -> bool:
    """Submit the comparison where it is neither done nor under way; True where it was submitted."""
    if not chosen(experiment.config).queues:
        return False
    with alone(experiment.directory):
        last = EventLog(experiment.directory).comparison()
        if (last is not None and last.state == "done") or not queued.submit_finalize(experiment):
            return False
    console.print("All cells are done, but their comparison is not: it is submitted again.")
    return True


def cancel(path: Path, console: Console) -> None:
    """End everything of an experiment that runs or waits; cells that run save first. Raises `UserError`."""
    cells = monitoring.read_status(path)
    jobs = queued.cancel(path)
    ended = [f"job {job}" for job in jobs]
    launcher = locks.holder(locks.of_launcher(path))
    if launcher is not None:
        os.kill(launcher, signal.SIGTERM)  # and it stops its cells
        ended.append(f"the launcher (process {launcher})")
    else:
        ended += _stop_orphans(path, [cell.cell for cell in cells if cell.state == "running" and cell.job not in jobs])
    asked = f"Asked to end: {', '.join(ended)}. Cells that run save first."
    text = asked if ended else "Nothing runs or waits; --resume launches what is left."
    console.print(text, markup=False, soft_wrap=True)


def _stop_orphans(path: Path, cells: list[str]) -> list[str]:
    """Stop those of the cells that run on this machine, whose launcher is gone."""
    stopped = []
    for cell in cells:
        attempt = lease.newest(path / cell)
        if attempt is not None and attempt.is_here() and attempt.is_alive() and attempt.pid:
            os.kill(attempt.pid, signal.SIGTERM)
            stopped.append(f"{cell} (process {attempt.pid})")
    return stopped
