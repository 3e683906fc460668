"""`python -m orchestrator +experiment=width_ablation`: compose, train, compare, report."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from orchestrator import schema
from orchestrator.errors import UserError, nearest
from orchestrator.schema import Config

if TYPE_CHECKING:
    from orchestrator.experiment import Experiment

INTERRUPTED = 130
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
    return schema.explain(error)


def _swept(job_overrides: Sequence[str]) -> list[str]:
    """Those of a multirun job's overrides that vary from job to job.

    The command line says which; where a job runs in a process with another command line, all of them count.
    """
    words = [word for word in sys.argv[1:] if "=" in word and not word.startswith("-")]
    parsed = OverridesParser.create().parse_overrides(words)
    varied = {override.key_or_group for override in parsed if override.is_sweep_override()}
    return [o for o in job_overrides if not varied or o.lstrip("+").partition("=")[0] in varied]


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


def run(overrides: Sequence[str], swept: Sequence[str], console: Console) -> int:
    """Plan, train what is unfinished, compare; return the exit code. Raises `UserError`."""
    from orchestrator import data, launch, plan, tracker
    from orchestrator.directory import open_directory, refuse_another
    from orchestrator.experiment import experiment_of

    experiment = experiment_of(overrides, compose, swept=swept)
    refuse_another(experiment)
    launch.check_jobs(experiment)
    for config in experiment.arms.values():
        launch.check(config)
        data.check(config.data, config.model.vocab_size, config.train.seq_len)
    tracker.check(experiment.config)
    if experiment.config.dry_run:
        plan.show(experiment, console)
        return 0
    with console.status("Preparing the data"):
        for config in experiment.arms.values():
            data.prepare(config.data, config.model.vocab_size, config.train.seq_len)
    open_directory(experiment)
    ran = launch.launch(experiment, console)
    return conclude(experiment, console, ran=bool(ran))


def conclude(experiment: Experiment, console: Console, *, ran: bool = True) -> int:
    """When the cells have been launched: compare what has finished, or say where to look; the exit code."""
    from orchestrator import launch, tracker
    from orchestrator.compare import compare, print_summary
    from orchestrator.forensics.layout import counted

    if (elsewhere := launch.still_with_a_scheduler(experiment)) and not launch.follow(experiment, console):
        console.print(
            f"{counted(len(elsewhere), 'cell')} with Slurm: python -m orchestrator.status {experiment.directory} "
            "shows how they fare (--watch), and --cancel ends them. The comparison follows by itself.",
            markup=False,
            soft_wrap=True,
        )
        return 0
    code, finished = _report_unfinished(experiment)
    if not ran and not code:
        console.print(f"Nothing is left to do: all cells of {escape(experiment.name)} are finished.")
    if finished and code != INTERRUPTED:  # a failed cell leaves the others to be compared
        comparison = compare(experiment.directory)
        print_summary(comparison, console)
        if ran and not elsewhere:  # else the job that compared has logged it
            tracker.log_comparison(experiment.config, comparison)
    return code


def _report_unfinished(experiment: Experiment) -> tuple[int, int]:
    """Say on stderr which cells failed, and why, or that the run was stopped; the exit code and the finished cells."""
    from orchestrator.job import is_finished
    from orchestrator.manifest import Manifest

    unfinished = [cell.id for cell in experiment.cells if not is_finished(cell.directory)]
    last = Manifest(experiment.directory).last()
    failed = [cell for cell in unfinished if cell in last and last[cell].state == "failed"]
    for cell in failed:
        print(f"{cell} failed: {last[cell].reason}", file=sys.stderr)
    if unfinished and not failed:
        print("Stopped: the same command goes on from the newest checkpoints.", file=sys.stderr)
    code = 2 if failed else INTERRUPTED if unfinished else 0
    return code, len(experiment.cells) - len(unfinished)


def main() -> int:
    """Entry point of `python -m orchestrator`; the exit code is 2 for anything the user can mend."""
    console = Console(width=None if sys.stdout.isatty() else 100)  # piped, rich would assume 80 columns
    if len(sys.argv) == 1:
        list_experiments(console)
        return 0
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra then raises instead of printing and exiting
    codes: list[int] = []
    crashes: list[Exception] = []

    @hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")
    def task(_: DictConfig) -> int:
        job = HydraConfig.get()
        multirun = job.mode == RunMode.MULTIRUN
        if INTERRUPTED in codes:
            return INTERRUPTED  # whoever stopped one job of a multirun meant all of it
        try:
            codes.append(run(job.overrides.task, _swept(job.overrides.task) if multirun else (), console))
        except UserError as error:  # said here: Hydra would end the other jobs of a multirun with it
            print(error, file=sys.stderr)
            codes.append(2)
        except Exception as error:
            crashes.append(error)
            raise
        return codes[-1]

    try:
        task()
    except KeyboardInterrupt:
        print("Interrupted: the same command goes on from the newest checkpoints.", file=sys.stderr)
        return INTERRUPTED
    except COMPOSING as error:
        if crashes:
            raise
        print(explain(error, sys.argv[1:]), file=sys.stderr)
        return 2
    return max(codes, default=0)


if __name__ == "__main__":
    sys.exit(main())
