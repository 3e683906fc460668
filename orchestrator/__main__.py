"""`python -m orchestrator +experiment=width_ablation`: compose, train, compare, report."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import hydra
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.markup import escape

from orchestrator import schema
from orchestrator.errors import UserError, nearest
from orchestrator.schema import Config

COMPOSING = (HydraException, OmegaConfBaseException, ValueError)  # Hydra refuses `width=3` with a ValueError
CONF = Path(__file__).resolve().parent.parent / "conf"


def compose(overrides: Sequence[str]) -> Config:
    """The configuration that Hydra composes from `conf/` and `overrides`. Raises `UserError`."""
    try:
        return schema.from_dictconfig(hydra.compose(config_name="config", overrides=list(overrides)))
    except COMPOSING as error:
        raise UserError(explain(error, overrides)) from error


def explain(error: Exception, overrides: Sequence[str]) -> str:
    """One sentence for a configuration that Hydra could not compose from `overrides`."""
    if isinstance(error, ValueError) and not isinstance(error, OmegaConfBaseException):
        return f"{' '.join(overrides)}: {error}; a group such as width takes the name of one of its files, width=ramp."
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, wanted = error.missing_cfg_file.rpartition("/")
        options = error.options or sorted(p.stem for p in (CONF / group).glob("*.yaml"))
        return f"There is no {group} '{wanted}'{nearest(wanted, options)}: choose one of {', '.join(options)}."
    return schema.explain(error)


def list_experiments(console: Console) -> None:
    """Print every experiment of `conf/experiment` with its question, and how to start one."""
    console.print("[bold]Experiments[/] (python -m orchestrator +experiment=NAME)\n")
    for path in sorted((CONF / "experiment").glob("*.yaml")):
        content = yaml.safe_load(path.read_text())
        arms = ", ".join(content.get("arms", {}))
        console.print(f"  [bold cyan]{path.stem:<20}[/] {escape(content['question'])}")
        console.print(f"  {'':<20} [dim]arms {escape(arms)} · seeds {content.get('seeds', [])}[/]")
    console.print("\nWithout an experiment, overrides train one cell: python -m orchestrator width=ramp seed=3")
    console.print("Add dry_run=true to see the plan and its cost first.")


def run(overrides: Sequence[str], *, swept: bool, console: Console) -> int:
    """Plan, train what is unfinished, compare; return the exit code. Raises `UserError`."""
    from orchestrator import launch, plan, tracker
    from orchestrator.compare import compare, print_summary
    from orchestrator.data import prepare
    from orchestrator.experiment import experiment_of, open_directory
    from orchestrator.manifest import Manifest

    experiment = experiment_of(overrides, compose, swept=swept)
    if experiment.config.dry_run:
        plan.show(experiment, console)
        return 0
    for config in experiment.arms.values():
        launch.check(config)
    tracker.check(experiment.config)
    with console.status("Preparing the data"):
        for config in experiment.arms.values():
            prepare(config.data, config.model.vocab_size, config.train.seq_len)
    open_directory(experiment)
    ran = launch.launch(experiment, console)
    if not ran:
        console.print(
            f"Nothing is left to do: all {len(experiment.cells)} cells of {escape(experiment.name)} are finished."
        )
    comparison = compare(experiment.directory)
    print_summary(comparison, console)
    if ran:
        tracker.log_comparison(experiment.config, comparison)
    unfinished = [cell for cell in experiment.cells if not launch.is_finished(cell.directory)]
    if not unfinished:
        return 0
    last = Manifest(experiment.directory).last()
    entries = {cell.id: last.get(cell.id) for cell in unfinished}
    failed = {cell: entry for cell, entry in entries.items() if entry and entry.state == "failed"}
    for cell, entry in failed.items():
        print(f"{cell} failed: {entry.reason}", file=sys.stderr)
    if failed:
        return 2
    print("Stopped: the same command goes on from the newest checkpoints.", file=sys.stderr)
    return 130


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
        try:
            code = run(job.overrides.task, swept=job.mode == RunMode.MULTIRUN, console=console)
        except UserError as error:  # said here: Hydra would end the other jobs of a multirun with it
            print(error, file=sys.stderr)
            code = 2
        except Exception as error:
            crashes.append(error)
            raise
        codes.append(code)
        return code

    try:
        task()
    except COMPOSING as error:
        if crashes:
            raise
        print(explain(error, sys.argv[1:]), file=sys.stderr)
        return 2
    return max(codes, default=0)


if __name__ == "__main__":
    sys.exit(main())
