"""`python -m orchestrator.trace SOURCE "text"`: what each layer does to this text."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from orchestrator.common.errors import UserError, refuse_unwritable
from orchestrator.interventions.lens import report, trace


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0, or 2 for input that cannot be used."""
    parser = argparse.ArgumentParser(prog="python -m orchestrator.trace", description=__doc__)
    parser.add_argument("source", type=Path, help="a cell's directory, or one of its checkpoints")
    parser.add_argument("text", help="the text to run through the model")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the whole result as JSON")
    options = parser.parse_args(arguments)
    try:
        refuse_unwritable(options.json)
        result = trace(options.source, options.text)
        if options.json is not None:
            options.json.write_text(json.dumps(result, indent=1, allow_nan=False))
    except (UserError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    Console().print(report(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
