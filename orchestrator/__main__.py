"""`python -m orchestrator +experiment=width_ablation`: compose, train, compare, report."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Sequence

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig
from rich.console import Console

from orchestrator.common import cli, command
from orchestrator.common.errors import INTERRUPTED, STOPPED, UserError, complain
from orchestrator.common.terminal import one_piece
from orchestrator.config.compose import COMPOSING, CONF, compose, explain
from orchestrator.experiments.catalog import list_experiments
from orchestrator.sweep import multirun
from orchestrator.sweep.outcome import Outcome
from orchestrator.sweep.signals import signals_restored

RERUN = "--experimental-rerun"  # of Hydra: unpickles a file


def run(overrides: Sequence[str], swept: Sequence[str], console: Console, complain: Callable[[str], None]) -> int:
    """Plan, train what is unfinished, compare; return the exit code. `complain` hears why. Raises `UserError`."""
    from orchestrator import launch, plan
    from orchestrator.experiments.experiment import experiment_of
    from orchestrator.experiments.run_directory import open_directory, refuse_another
    from orchestrator.launch.wrap_up import wrap_up

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


def task(_: DictConfig) -> int:
    """What Hydra calls for a run, or for each job of a multirun, there perhaps in another process: one experiment.

    Returns the exit code, which it also leaves with the multirun. What nobody expected is raised, but not by a job of
    a multirun, whose other jobs go on.
    """
    job, jobs = HydraConfig.get(), multirun.current()
    if job.mode != RunMode.MULTIRUN:
        try:
            code = run(job.overrides.task, (), command.console(), complain)
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


def main() -> int:
    """The command `run`: the exit code is 2 for anything the user can mend."""
    if any(word.startswith("--v") and "--version".startswith(word) for word in sys.argv[1:]):
        print(cli.VERSION)  # Hydra would print its own
        return 0
    if len(sys.argv) == 1:
        list_experiments(command.console())
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
    sys.exit(cli.main())  # which imports this module by its own name, under which other processes find `task`
