"""`python -m orchestrator.intervene SOURCE`: delete each layer, or one of its branches, and see the cost."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from orchestrator.common.errors import UserError, refuse_unwritable
from orchestrator.interventions.deletion import intervene, report


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0, or 2 for input that cannot be used."""
    parser = argparse.ArgumentParser(prog="python -m orchestrator.intervene", description=__doc__)
    parser.add_argument("source", type=Path, help="a cell's directory, or one of its checkpoints")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the whole result as JSON")
    options = parser.parse_args(arguments)
    try:
        refuse_unwritable(options.json)
        result = intervene(options.source)
        if options.json is not None:
            options.json.write_text(json.dumps(result, indent=1, allow_nan=False))
    except (UserError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    Console().print(report(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
