"""`python -m orchestrator +experiment=width_ablation`: compose, train, compare, report."""

from __future__ import annotations

import os
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from orchestrator.common.errors import INTERRUPTED, UserError, nearest
from orchestrator.common.terminal import one_piece
from orchestrator.config import schema
from orchestrator.config.messages import sentence
from orchestrator.config.schema import Config
from orchestrator.sweep import multirun
from orchestrator.sweep.outcome import Outcome
from orchestrator.sweep.signals import signals_restored

if TYPE_CHECKING:
    from orchestrator.experiments.experiment import Experiment

RERUN = "--experimental-rerun"  # of Hydra: unpickles a file
STOPPED = "Stopped: the same command goes on from the newest checkpoints."
COMPOSING = (
    HydraException,
    OmegaConfBaseException,
    yaml.YAMLError,
    ValueError,
)  # Hydra refuses `width=3` with a ValueError
CONF = Path(__file__).resolve().parent.parent / "conf"


def compose(overrides: Sequence[str]) -> Config:
    """The configuration that Hydra composes from `conf/` and `overrides`. Raises `UserError`."""
    try:
        return schema.from_dictconfig(hydra.compose(config_name="config", overrides=list(overrides)))
    except COMPOSING as error:
        raise UserError(explain(error, overrides)) from error


def explain(error: Exception, overrides: Sequence[str]) -> str:
    """One sentence for a configuration that Hydra could not compose from `overrides`."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, wanted = error.missing_cfg_file.rpartition("/")
        if group == "hydra/launcher" and wanted in multirun.PLUGINS:
            return f"{group}={wanted} needs {multirun.PLUGINS[wanted]}, which is not installed: pip install it."
        options = error.options or sorted(p.stem for p in (CONF / group).glob("*.yaml"))
        return f"There is no {group} '{wanted}'{nearest(wanted, options)}: choose one of {', '.join(options)}."
    if forgotten := [o for o in overrides if o.startswith("experiment=")]:
        return f"'{forgotten[0]}' names no key of the defaults: write +{forgotten[0]}."
    if isinstance(error, yaml.YAMLError):
        return f"A file of {CONF} is not YAML: {' '.join(str(error).split())}."
    if isinstance(error, OverrideParseException):
        return f"'{error.override}' is no override: write key=value, with quotes around a value of several words."
    if isinstance(error, ValueError) and not isinstance(error, OmegaConfBaseException):
        return f"{' '.join(overrides)}: {error}; a group such as width takes the name of one of its files, width=ramp."
    return sentence(error)


def list_experiments(console: Console) -> None:
    """Print every experiment of `conf/experiment` with its question, and how to start one."""
    console.print("[bold]Experiments[/] (python -m orchestrator +experiment=NAME)\n")
    table = Table(box=None, show_header=False, padding=(0, 2))
    table.add_column(style="bold cyan", no_wrap=True)
    with hydra.initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        for path in sorted((CONF / "experiment").glob("*.yaml")):
            try:
                found = compose([f"+experiment={path.stem}"])
            except UserError as error:
                table.add_row(path.stem, f"[red]{escape(str(error))}[/]")
                continue
            arms, seeds = ", ".join(found.arms), ", ".join(map(str, found.seeds or [found.seed]))
            table.add_row(path.stem, f"{escape(found.question)}\n[dim]arms {escape(arms)} · seeds {seeds}[/]")
    console.print(table)
    console.print("\nWithout an experiment, overrides train one cell: python -m orchestrator width=ramp seed=3")
    console.print("Add dry_run=true to see the plan and its cost first.")


def run(overrides: Sequence[str], swept: Sequence[str], console: Console, complain: Callable[[str], None]) -> int:
    """Plan, train what is unfinished, compare; return the exit code. `complain` hears why. Raises `UserError`."""
    from orchestrator import launch, plan
    from orchestrator.experiments.experiment import experiment_of
    from orchestrator.experiments.run_directory import open_directory, refuse_another

    experiment = experiment_of(overrides, compose, swept=swept)
    multirun.current().introduce(experiment, console)
    refuse_another(experiment)
    launch.refuse_early(experiment)
    if experiment.config.dry_run:
        with one_piece(console):
            plan.show(experiment, console)
        return 0
    launch.check_jobs(experiment)
    launch.prepare_data(experiment, console)
    open_directory(experiment)
    with multirun.current().share(experiment.config):
        ran = launch.launch(experiment, console)
    return wrap_up(experiment, console, complain, ran=bool(ran))


def wrap_up(experiment: Experiment, console: Console, complain: Callable[[str], None], *, ran: bool = True) -> int:
    """When the cells have been launched: compare what has finished, or say where to look; the exit code."""
    from orchestrator import launch
    from orchestrator.analysis import compare, print_summary
    from orchestrator.common.formatting import counted
    from orchestrator.tracking import run

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
            run.log_comparison(experiment.config, comparison)
    return code


def _report_unfinished(experiment: Experiment, complain: Callable[[str], None]) -> tuple[int, int]:
    """Say which cells failed or are lost, and why, or that the run was stopped; the exit code, the number finished."""
    from orchestrator.jobs.worker import is_finished
    from orchestrator.monitoring import read_status

    unfinished = [cell.id for cell in experiment.cells if not is_finished(cell.directory)]
    seen = {cell.cell: cell for cell in read_status(experiment.directory)} if unfinished else {}
    failed = [seen[cell] for cell in unfinished if cell in seen and seen[cell].state in ("failed", "lost")]
    for cell in failed:
        complain("\n  ".join([f"{cell.cell} {'is ' * (cell.state == 'lost')}{cell.state}: {cell.reason}", *cell.log]))
    if unfinished and not failed:
        complain(STOPPED)
    code = 2 if failed else INTERRUPTED if unfinished else 0
    return code, len(experiment.cells) - len(unfinished)


def task(_: DictConfig) -> int:
    """What Hydra calls for a run, or for each job of a multirun, there perhaps in another process: one experiment.

    Returns the exit code, which it also leaves with the multirun. What nobody expected is raised, but not by a job of
    a multirun, whose other jobs go on.
    """
    job, jobs = HydraConfig.get(), multirun.current()
    if job.mode != RunMode.MULTIRUN:
        try:
            code = run(job.overrides.task, (), _console(), complain)
        except UserError as error:
            complain(str(error))
            code = 2
        jobs.note(Outcome(0, code, []))
        return code
    os.chdir(job.runtime.cwd)  # whether or not hydra.job.chdir: paths are those of the command
    with jobs.listening() as listener:
        code, said = _run_job(jobs, job.overrides.task)
        if code == INTERRUPTED:
            listener.hand_back()
        jobs.note(Outcome(job.job.num, code, said))
    return code


def _run_job(jobs: multirun.Multirun, overrides: Sequence[str]) -> tuple[int, list[str]]:
    """The exit code of one job of a multirun, and what it had to complain of."""
    swept, said = jobs.swept(overrides), list[str]()

    def note(sentence: str) -> None:
        said.append(f"{' '.join(swept)}: {sentence}")
        with jobs.turn():
            complain(said[-1])

    try:
        jobs.begins(overrides)
        return INTERRUPTED if jobs.stopped() else run(overrides, swept, jobs.console(swept), note), said
    except UserError as error:  # Hydra would end the other jobs with it
        note(str(error))
        return 2, said
    except KeyboardInterrupt:
        if not jobs.place.apart:
            raise
        note(STOPPED)
        return INTERRUPTED, said
    except Exception as error:
        traceback.print_exc()
        note(f"{type(error).__name__}: {error}")
        return 1, said


def _console() -> Console:
    """Without a terminal, where rich would assume 80 columns: 100."""
    return Console(width=None if sys.stdout.isatty() else 100)


def complain(sentence: str) -> None:
    """Say what the user can mend."""
    print(sentence, file=sys.stderr, flush=True)


def main() -> int:
    """Entry point of `python -m orchestrator`; the exit code is 2 for anything the user can mend."""
    if len(sys.argv) == 1:
        list_experiments(_console())
        return 0
    if any(word.startswith("--e") and RERUN.startswith(word.partition("=")[0]) for word in sys.argv[1:]):
        complain(f"{RERUN} would run whatever code its file holds: repeat the command instead.")
        return 2
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra then raises instead of printing and exiting
    multirun.forget()
    try:
        with signals_restored():
            hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")(task)()
    except KeyboardInterrupt:
        multirun.current().sum_up()
        complain(multirun.current().farewell())
        return INTERRUPTED
    except Exception as error:
        jobs = multirun.current()
        if jobs.interrupted:
            jobs.repeat(complain)
            jobs.sum_up()
            complain(jobs.farewell())
            return INTERRUPTED
        if sentence := jobs.explain(error):
            jobs.repeat(complain)
            jobs.sum_up()
            complain(sentence)
            return 2
        if not isinstance(error, COMPOSING) or jobs.began:
            raise
        complain(explain(error, sys.argv[1:]))
        return 2
    multirun.current().repeat(complain)
    multirun.current().sum_up()
    return max((outcome.code or 0 for outcome in multirun.current().outcomes()), default=0)


if __name__ == "__main__":
    from orchestrator.__main__ import main as by_its_own_name  # under which other processes find `task`

    sys.exit(by_its_own_name())
