"""`python -m orchestrator.forensics SOURCE`: what each layer of a checkpoint does, read from its weights."""

from __future__ import annotations

import argparse
import io
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from orchestrator.common.errors import UserError
from orchestrator.common.formatting import printable
from orchestrator.forensics.render.export import (
    PICTURES,
    refuse_foreign,
    refuse_unwritable,
    write_csv,
    write_figure,
    write_json,
)

if TYPE_CHECKING:
    from orchestrator.forensics.render.view import View

WIDTH = 100  # columns where the output is not a terminal


def main(arguments: list[str] | None = None) -> int:
    """Exit code: 0, 1 where a critical pathology was found, 2 for input that cannot be read, 130 when interrupted."""
    options = _parser().parse_args(arguments)
    try:
        refuse_unwritable(options.json)
        refuse_unwritable(options.csv)
        refuse_unwritable(options.figure, PICTURES)
        for target in (options.json, options.csv):
            refuse_foreign(target)
        view = _read(options)
        if options.json is not None:
            write_json(view.document, options.json)
        if options.csv is not None:
            write_csv(view.rows(), options.csv)
        if options.figure is not None:
            write_figure(view.draw(), options.figure)
    except UserError as error:
        print(printable(str(error)), file=sys.stderr)  # it may quote a file
        return 2
    except OSError as error:
        where = error.filename or options.source
        told = f"{where} cannot be read ({error.strerror or error}): check its rights and its disk."
        print(printable(told), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without a bar or an arrow shows a question mark
    Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else WIDTH).print(view.report())
    return int(view.critical)


def _read(options: argparse.Namespace) -> View:
    """What was asked for, with a word on stderr as long as it takes where that is a terminal."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # torch's idle threads leave the cores to LAPACK's
    from orchestrator.forensics.render.view import (
        view,  # torch and all that reads: seconds that --help need not wait for
    )

    start = time.perf_counter()
    with Console(stderr=True).status(Text(f"Reading {options.source}")) as status:  # a [ in a path is a [
        return view(
            options.source,
            against=options.against,
            optimizer=options.optimizer,
            probe=options.probe,
            scoring=options.scoring,
            device=options.device,
            clock=lambda: time.perf_counter() - start,
            tell=lambda line: status.update(Text(line)),
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m orchestrator.forensics", description=__doc__, epilog=EPILOG)
    add = parser.add_argument
    add("source", help="a checkpoint, a cell, a directory of checkpoints, or org/name[@revision] on the hub")
    add("--json", type=Path, metavar="FILE", help="write the whole result")
    add("--csv", type=Path, metavar="FILE", help="write one row per layer")
    add("--figure", type=Path, metavar="FILE", help=f"draw it: {', '.join(PICTURES)}")
    add("--scoring", choices=("calibrated", "paper"), default="calibrated", help="which roles to show (calibrated)")
    add("--against", metavar="OTHER", help="put a second model beside it")
    add("--probe", metavar="TEXT", help="text, or a file of text, to run through the model for what weights lack")
    add("--optimizer", type=Path, metavar="FILE", help="Adam's moments of SOURCE, where they are not beside it")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where weights are reduced (auto)")
    return parser


EPILOG = "Exit code: 0; 1 where a spectral norm is 30 times its peers'; 2 where something cannot be read."

if __name__ == "__main__":
    sys.exit(main())
