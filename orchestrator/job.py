"""`python -m orchestrator.job CELL_DIR`: run or resume one cell in this process."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from orchestrator.common import command


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 when the cell is done, 130 when a signal stopped it, 2 when it failed."""
    parser = command.parser("orchestrator.job", __doc__)
    parser.add_argument("cell", metavar="CELL_DIR", help="a cell's directory, outputs/<name>/<arm>/seed=<k>")
    code = command.run(parser, _job, arguments)
    from orchestrator.jobs import worker  # torch: seconds that --help need not wait for
    from orchestrator.training import rendezvous

    if rendezvous.this_rank() is not None:
        worker.leave_at_once(code)
    return code


def _job(options: argparse.Namespace) -> int:
    with command.importing():
        from orchestrator.jobs import worker

    return worker.main(options.cell)


if __name__ == "__main__":
    sys.exit(main())
