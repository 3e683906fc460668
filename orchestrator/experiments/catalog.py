"""The list of experiments, with their questions, arms and seeds."""

from __future__ import annotations

import hydra
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from orchestrator.common.errors import UserError
from orchestrator.config.compose import CONF, compose, options


def list_experiments(console: Console) -> None:
    """Print every experiment on the search path with its question, and how to start one."""
    console.print("[bold]Experiments[/] (python -m orchestrator +experiment=NAME)\n")
    table = Table(box=None, show_header=False, padding=(0, 2))
    table.add_column(style="bold cyan", no_wrap=True)
    with hydra.initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        for name in options("experiment"):
            try:
                found = compose([f"+experiment={name}"])
            except UserError as error:
                table.add_row(name, f"[red]{escape(str(error))}[/]")
                continue
            arms, seeds = ", ".join(found.arms), ", ".join(map(str, found.seeds or [found.seed]))
            table.add_row(name, f"{escape(found.question)}\n[dim]arms {escape(arms)} · seeds {seeds}[/]")
    console.print(table)
    console.print("\nWithout an experiment, overrides train one cell: python -m orchestrator width=ramp seed=3")
    console.print("Add dry_run=true to see the plan and its cost first.")
