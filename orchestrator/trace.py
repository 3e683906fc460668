"""`python -m orchestrator.trace SOURCE "text"`: what each layer does to this text."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from orchestrator.common import command


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0, or 2 for input that cannot be used."""
    parser = command.parser("orchestrator.trace", __doc__)
    parser.add_argument("source", type=Path, help="a cell's directory, or one of its checkpoints")
    parser.add_argument("text", help="the text to run through the model")
    parser.add_argument("--json", type=command.output, metavar="FILE", help="write the whole result as JSON")
    return command.run(parser, _trace, arguments)


def _trace(options: argparse.Namespace) -> None:
    with command.importing():  # torch: seconds that --help need not wait for
        from orchestrator.interventions.lens import report, trace

    result = trace(options.source, options.text)
    command.write_json(result, options.json)
    command.console().print(report(result))


if __name__ == "__main__":
    sys.exit(main())
