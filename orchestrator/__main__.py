"""`python -m orchestrator +experiment=width_ablation`: compose, train, compare, report."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig
from rich.console import Console

from orchestrator.common import cli, command, streams
from orchestrator.common.errors import INTERRUPTED, STOPPED, UserError, complain
from orchestrator.config import load
from orchestrator.config.compose import COMPOSING, CONF, compose, explain
from orchestrator.experiments.catalog import list_experiments
from orchestrator.sweep.multirun import Multirun

if TYPE_CHECKING:
    from orchestrator.sweep.job import Job

RERUN = "--experimental-rerun"  # of Hydra: unpickles a file


def run(
    composed: DictConfig,
    overrides: Sequence[str],
    console: Console,
    complain: Callable[[str], None],
    job: Job | None = None,
) -> int:
    """Plan, train what is unfinished, compare; return the exit code. `complain` prints errors. Raises `UserError`.

    `composed`: what Hydra composed from `overrides`. `job` is given in a multirun.
    """
    with command.importing():
        from orchestrator import plan
        from orchestrator.experiments.experiment import experiment_of
        from orchestrator.launch.begin import begin, checked
        from orchestrator.launch.ends import stopped
        from orchestrator.launch.finalize import finalize
        from orchestrator.launch.launcher import launch
        from orchestrator.tracking import agent

    base = load.from_dictconfig(composed)
    by_name = partial(compose, config_name=str(HydraConfig.get().job.config_name))  # --config-name
    swept = job.swept if job else agent.swept(overrides)
    search = None
    if base.search.space:
        from orchestrator.search.search import Search

        search = Search(base, overrides, by_name, swept)
    experiment = search.planned() if search else experiment_of(overrides, by_name, base=base, swept=swept)
    if job:
        job.record_directory(experiment.directory)
    experiment = checked(experiment)
    if experiment.config.dry_run:
        with console:  # printed in one piece, as several jobs may share the terminal
            plan.show(experiment, console, before=search.work if search else 0.0)
            if search:
                console.print(f"\n{search.plan()}", soft_wrap=True, markup=False, highlight=False)
        return 0
    with job.share_of_machine(experiment.config) if job else nullcontext():
        if search:
            from orchestrator.search.explore import Unfinished, explore

            try:
                experiment = checked(search.experiment(explore(search, console)))
            except Unfinished as left:
                (complain if left.code else console.print)(str(left))
                if left.code:
                    stopped(experiment, str(left))
                return left.code
        begin(experiment, console)
        ran = launch(experiment, console)
        return finalize(experiment, console, complain, ran=bool(ran))


def task(composed: DictConfig) -> None:
    """Run one experiment. Hydra calls this for a single run, and for each job of a multirun in the job's process."""
    settings, multirun = HydraConfig.get(), Multirun.current
    overrides = settings.overrides.task
    if settings.mode != RunMode.MULTIRUN or multirun is None:
        console = command.console()  # hydra.main drops what a task returns
        sys.exit(_exit_code(lambda: run(composed, overrides, console, complain), complain))
    from orchestrator.sweep.job import Job

    os.chdir(settings.runtime.cwd)  # whether or not hydra.job.chdir: paths are those of the command
    streams.make_lasting()  # of a process that Hydra's launcher has started
    job = Job(multirun, settings.job.num, overrides)
    job.run(lambda: _exit_code(lambda: run(composed, overrides, job.console(), job.complain, job), job.complain))


def _exit_code(work: Callable[[], int], complain: Callable[[str], None]) -> int:
    """The exit code of `work`, or of the exception that it raised, once reported: Hydra would stop the other jobs."""
    try:
        return work()
    except UserError as error:
        complain(str(error))
        return 2
    except KeyboardInterrupt:
        complain(STOPPED)
        return INTERRUPTED
    except Exception as error:
        traceback.print_exc()
        complain(f"{type(error).__name__}: {error}")
        return 1


def main() -> int:
    """The command `run`: the exit code is 2 for anything the user can mend."""
    streams.make_lasting()
    if any(word.startswith("--v") and "--version".startswith(word) for word in sys.argv[1:]):
        print(cli.VERSION)  # Hydra would print its own
        return 0
    folder = _folder_alone(sys.argv[1:])
    if len(sys.argv) == 1 or (folder is not None and folder.is_dir()):
        list_experiments(command.console(), folder)
        return 0
    if refused := _refused_option(sys.argv[1:]):
        complain(refused)
        return 2
    sys.argv[1:] = _options_first(sys.argv[1:])
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra then raises instead of printing and exiting
    Multirun.current, failure = None, None
    try:
        hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")(task)()
    except SystemExit as ended:  # how a single run returns its exit code
        return int(ended.code or 0)
    except (KeyboardInterrupt, Exception) as error:
        failure = error
    return _end(Multirun.current, failure)


def _refused_option(arguments: Sequence[str]) -> str | None:
    """One sentence for an option that Hydra does not have, or must not get; None where all are good."""
    known = [option for action in get_args_parser()._actions for option in action.option_strings]
    for word in arguments:
        option, _, value = word.partition("=")
        if option == "--experiment":
            return f"{word} is not an option: write +experiment={value or 'NAME'}."
        if len(option) > 2 and RERUN.startswith(option):
            return f"{RERUN} would run whatever code its file holds: repeat the command instead."
        if option.startswith("--") and not any(name.startswith(option) for name in known):
            return f"{word} is not an option: an override has no dashes, as in {option[2:]}={value or '…'}."
    return None


def _options_first(arguments: Sequence[str]) -> list[str]:
    """The arguments with options before overrides, among which Hydra's parser would not find them."""
    known = {option: action.nargs for action in get_args_parser()._actions for option in action.option_strings}
    if any(known.get(word) == "?" for word in arguments):  # its value is told by its place
        return list(arguments)
    options: list[str] = []
    overrides: list[str] = []
    words = iter(arguments)
    for word in words:
        (options if word.startswith("-") else overrides).append(word)
        if word in known and known[word] is None:
            options += islice(words, 1)
    return [*options, *overrides]


def _folder_alone(arguments: Sequence[str]) -> Path | None:
    """The folder that --config-dir names where nothing else is given."""
    match arguments:
        case ["--config-dir" | "-cd", folder]:
            return Path(folder)
        case [word] if word.startswith("--config-dir="):
            return Path(word.partition("=")[2])
    return None


def _end(multirun: Multirun | None, failure: BaseException | None) -> int:
    """Print the summary of a multirun, and one sentence for what Hydra or its launcher raised; the exit code."""
    code = multirun.finish() if multirun else 0
    if failure is None:
        return code
    if isinstance(failure, KeyboardInterrupt) or (multirun and multirun.interrupted):
        complain((multirun.launcher.left if multirun else "") + STOPPED)
        return INTERRUPTED
    sentence = multirun.explain(failure) if multirun else None
    if sentence is None and isinstance(failure, COMPOSING):
        sentence = explain(failure, sys.argv[1:])
    if sentence is None:
        raise failure
    complain(sentence)
    return 2


if __name__ == "__main__":
    sys.exit(cli.main())  # which imports this module by its own name, under which other processes find `task`
