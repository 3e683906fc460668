"""The list of experiments, with their questions, arms and seeds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import hydra
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from orchestrator.common.errors import UserError
from orchestrator.config.compose import CONF, OwnFolder, compose, options
from orchestrator.config.schema import AUTO


def list_experiments(console: Console, folder: Path | None = None) -> None:
    """Print every experiment of the search path, and of `folder`, with its question, and how to start one."""
    option = f"--config-dir {folder} " if folder else ""
    console.print(f"[bold]Experiments[/] (python -m orchestrator {escape(option)}+experiment=NAME)\n")
    table = Table(box=None, show_header=False, padding=(0, 2))
    table.add_column(style="bold cyan", no_wrap=True)
    with _searched(folder), hydra.initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        for name in options("experiment"):
            try:
                found = compose([f"+experiment={name}"])
            except UserError as error:
                table.add_row(name, f"[red]{escape(str(error))}[/]")
                continue
            arms = f"arms {', '.join(found.arms)}" if found.arms else f"search over {', '.join(found.search.space)}"
            seeds = AUTO if found.seeds == AUTO else ", ".join(map(str, found.seeds or [found.seed]))
            table.add_row(name, f"{escape(found.question)}\n[dim]{escape(arms)} · seeds {seeds}[/]")
    console.print(table)
    console.print("\nWithout an experiment, overrides train one cell: python -m orchestrator width=ramp seed=3")
    console.print("Add dry_run=true to see the plan and its cost first.")


@contextmanager
def _searched(folder: Path | None) -> Iterator[None]:
    """Search `folder` too, as Hydra does where --config-dir names it."""
    OwnFolder.named = folder and folder.absolute()
    try:
        yield
    finally:
        OwnFolder.named = None
