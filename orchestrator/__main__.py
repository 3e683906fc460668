"""`python -m orchestrator +experiment=width_ablation`: compose, train, compare, report."""

from __future__ import annotations

import os
import re
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

CONF = Path(__file__).resolve().parent.parent / "conf"


def compose(overrides: Sequence[str]) -> Config:
    """The configuration that Hydra composes from `conf/` and `overrides`. Raises `UserError`."""
    try:
        return schema.from_dictconfig(hydra.compose(config_name="config", overrides=list(overrides)))
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain(error)) from error


def explain(error: Exception) -> str:
    """One sentence for what Hydra or OmegaConf says in several lines."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, wanted = error.missing_cfg_file.rpartition("/")
        options = error.options or sorted(p.stem for p in (CONF / group).glob("*.yaml"))
        return f"There is no {group} '{wanted}'{nearest(wanted, options)}: choose one of {', '.join(options)}."
    root = error
    while isinstance(root.__cause__, Exception):
        root = root.__cause__
    key = str(getattr(root, "full_key", None) or "")
    first = str(root).strip().splitlines()[0]
    if key and "not in" in first:
        known = _known_keys()
        return (
            f"'{key}' is no configuration key{nearest(key, known)}: python -m orchestrator --cfg job prints them all."
        )
    outer = str(error).strip().splitlines()[0]
    if key:
        override = re.search(r"override (\S+)", outer)
        return f"{override[1] if override else key}: {first}; orchestrator/schema.py says what {key} takes."
    return outer if outer.endswith(".") else f"{outer}."


def _known_keys() -> list[str]:
    flat = schema.flatten(Config())
    branches = {key.rsplit(".", depth)[0] for key in flat for depth in range(1, key.count(".") + 1)}
    domain = {f"data.domains.<name>.{key}" for key in vars(schema.DomainConfig())}
    return sorted({*flat, *branches, *domain, *(p.name for p in CONF.iterdir() if p.is_dir())})


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
    console = Console()
    if len(sys.argv) == 1:
        list_experiments(console)
        return 0
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra then raises instead of printing and exiting
    codes: list[int] = []

    @hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")
    def task(_: DictConfig) -> int:
        job = HydraConfig.get()
        codes.append(run(job.overrides.task, swept=job.mode == RunMode.MULTIRUN, console=console))
        return codes[-1]

    try:
        task()
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except (HydraException, OmegaConfBaseException) as error:
        print(explain(error), file=sys.stderr)
        return 2
    return max(codes, default=0)


if __name__ == "__main__":
    sys.exit(main())
