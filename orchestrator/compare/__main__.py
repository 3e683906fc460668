"""`python -m orchestrator.compare DIR`: rebuild an experiment's tables, figures and report, and print the summary."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console

from orchestrator.compare import compare, print_summary
from orchestrator.errors import UserError


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m orchestrator.compare", description=__doc__)
    parser.add_argument("directory", type=Path, help="the experiment's directory, such as outputs/<name>")
    parser.add_argument(
        "--workspace", action="store_true", help="also a W&B view and report: pushed where there is a login, else files"
    )
    options = parser.parse_args(arguments)
    try:
        comparison = compare(options.directory)
        print_summary(comparison, Console(width=None if sys.stdout.isatty() else 100))
        if options.workspace:
            from orchestrator.compare import workspace  # a second to import

            print(*workspace.publish(comparison), sep="\n")
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
