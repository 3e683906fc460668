"""`python -m orchestrator.intervene SOURCE`: delete each layer, or one of its branches, and see the cost."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from orchestrator.common import command


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0, or 2 for input that cannot be used."""
    parser = command.parser("orchestrator.intervene", __doc__)
    parser.add_argument("source", type=Path, help="a cell's directory, or one of its checkpoints")
    parser.add_argument("--json", type=command.output, metavar="FILE", help="write the whole result as JSON")
    return command.run(parser, _intervene, arguments)


def _intervene(options: argparse.Namespace) -> None:
    with command.importing():  # torch: seconds that --help need not wait for
        from orchestrator.interventions.deletion import intervene, report

    result = intervene(options.source)
    command.write_json(result, options.json)
    command.console().print(report(result))


if __name__ == "__main__":
    sys.exit(main())
