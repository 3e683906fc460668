"""`python -m orchestrator.status DIR`: each cell's progress, losses, layer roles, and what deserves attention."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

from rich.console import Console

from orchestrator.errors import UserError
from orchestrator.status.cells import read_status
from orchestrator.status.view import View
from orchestrator.status.watch import outcome, watch

INTERRUPTED = 130


def main(arguments: list[str] | None = None) -> int:
    """Exit code: 2 where there is nothing to show, else 0; with --watch, see `outcome`."""
    parser = argparse.ArgumentParser(prog="python -m orchestrator.status", description=__doc__)
    parser.add_argument("directory", type=Path, help="the experiment's directory, such as outputs/<name>")
    parser.add_argument("--watch", action="store_true", help="go on until every cell has ended; Ctrl-C stops watching")
    options = parser.parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 100)  # piped, rich would assume 80 columns
    try:
        if options.watch:
            cells = watch(options.directory, console)
            counted = Counter(cell.state for cell in cells)
            print(f"Nothing runs any more: {', '.join(f'{n} {state}' for state, n in counted.items())}.")
            return outcome(cells)
        console.print(View(options.directory.resolve().name, read_status(options.directory)))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
