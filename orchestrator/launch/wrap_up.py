"""After a launch: compare what has finished, or say which cells have not, and why."""

from __future__ import annotations

import shlex
from collections.abc import Callable

from rich.console import Console
from rich.markup import escape

from orchestrator import launch
from orchestrator.analysis import compare, print_summary
from orchestrator.common.errors import INTERRUPTED, STOPPED
from orchestrator.common.formatting import counted
from orchestrator.experiments.experiment import Experiment
from orchestrator.jobs.worker import is_finished
from orchestrator.monitoring import read_status
from orchestrator.tracking.run import log_comparison


def wrap_up(experiment: Experiment, console: Console, complain: Callable[[str], None], *, ran: bool = True) -> int:
    """When the cells have been launched: compare what has finished, or say where to look; the exit code."""
    if (elsewhere := launch.still_with_a_scheduler(experiment)) and not launch.follow(experiment, console):
        command = f"python -m orchestrator.status {shlex.quote(str(experiment.directory))}"
        console.print(
            f"{counted(len(elsewhere), 'cell')} with Slurm; the comparison follows by itself.\n"
            f"  follow: {command} --watch\n  end:    {command} --cancel",
            markup=False,
            soft_wrap=True,
        )
        return 0
    code, finished = _report_unfinished(experiment, complain)
    if not ran and not code:
        console.print(f"Nothing is left to do: all cells of {escape(experiment.name)} are finished.")
    if finished and code != INTERRUPTED:  # a failed cell leaves the others to be compared
        comparison = compare(experiment.directory)
        print_summary(comparison, console)
        if ran and not elsewhere:  # else the job that compared has logged it
            log_comparison(experiment.config, comparison)
    return code


def _report_unfinished(experiment: Experiment, complain: Callable[[str], None]) -> tuple[int, int]:
    """Say which cells failed or are lost, and why, or that the run was stopped; the exit code, the number finished."""

    unfinished = [cell.id for cell in experiment.cells if not is_finished(cell.directory)]
    seen = {cell.cell: cell for cell in read_status(experiment.directory)} if unfinished else {}
    failed = [seen[cell] for cell in unfinished if cell in seen and seen[cell].state in ("failed", "lost")]
    for cell in failed:
        complain("\n  ".join([f"{cell.cell} {'is ' * (cell.state == 'lost')}{cell.state}: {cell.reason}", *cell.log]))
    if unfinished and not failed:
        complain(STOPPED)
    code = 2 if failed else INTERRUPTED if unfinished else 0
    return code, len(experiment.cells) - len(unfinished)
