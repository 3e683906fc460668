"""`python -m orchestrator.forensics SOURCE`: what each layer of a checkpoint does, read from its weights."""

from __future__ import annotations

import argparse
import sys
import time
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.text import Text

from orchestrator.common import command
from orchestrator.common.formatting import printable
from orchestrator.forensics.render.export import PICTURES, refuse_foreign, write_csv, write_figure

EPILOG = (
    "Exit code: 0; 1 where a spectral norm is 30 times its peers', or a tensor that no measure reads (a bias, the "
    "final norm, the head) holds NaN; 2 where nothing can be read, as where a layer's matrix holds NaN."
)


def main(arguments: list[str] | None = None) -> int:
    """Exit code: 0, 1 where a critical pathology was found, 2 for input that cannot be read, 130 when interrupted."""
    parser = command.parser("orchestrator.forensics", __doc__, EPILOG)
    add, given = parser.add_argument, command.given
    add("source", help="a checkpoint, a cell, a directory of checkpoints, or org/name[@revision] on the hub")
    add("--json", type=_result, metavar="FILE", help="write the whole result")
    add("--csv", type=_result, metavar="FILE", help="write one row per layer")
    add(
        "--figure",
        type=partial(command.output, suffixes=PICTURES),
        metavar="FILE",
        help=f"draw it: {', '.join(PICTURES)}",
    )
    add("--scoring", choices=("calibrated", "paper"), default="calibrated", help="which roles to show (calibrated)")
    add("--against", type=given, metavar="OTHER", help="put a second model beside it")
    add(
        "--probe",
        type=given,
        metavar="TEXT",
        help="text, or a file of text, to run through the model for what weights lack",
    )
    add(
        "--gradients",
        type=given,
        metavar="TEXT",
        help="text, or a file of text, to run backwards for each matrix's gradient",
    )
    add("--optimizer", type=Path, metavar="FILE", help="Adam's moments of SOURCE, where they are not beside it")
    add(
        "--weights",
        type=given,
        action="append",
        default=[],
        metavar="NAME",
        help="which of several models in SOURCE, such as ema or teacher; a second one is for OTHER",
    )
    add(
        "--losses", type=Path, metavar="FILE", help="a run's losses (CSV, JSON: step, …loss…), for what drops with them"
    )
    add(
        "--base",
        type=given,
        metavar="MODEL",
        help="the model that SOURCE, a LoRA adapter, was trained on: read their sum",
    )
    add("--delta", action="store_true", help="with --base, read what the adapter adds and not the sum")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where weights are reduced (auto)")
    return command.run(parser, _forensics, arguments)


def _result(text: str) -> Path:
    """A file to write that is new, empty or an earlier result. Raises `UserError`."""
    path = command.output(text)
    refuse_foreign(path)
    return path


def _forensics(options: argparse.Namespace) -> int:
    """Read, write and print; where stderr is a terminal, a status line names the checkpoint that is being read."""
    with command.importing():  # torch: seconds that --help need not wait for
        from orchestrator.forensics.output import read

    start = time.perf_counter()
    with Console(stderr=True).status(Text(f"Reading {options.source}")) as status:  # a [ in a path is not markup
        output = read(
            options.source,
            against=options.against,
            optimizer=options.optimizer,
            probe=options.probe,
            gradients=options.gradients,
            scoring=options.scoring,
            device=options.device,
            weights=options.weights,
            base=options.base,
            delta=options.delta,
            losses=options.losses,
            clock=lambda: time.perf_counter() - start,
            progress=lambda line: status.update(Text(line)),
        )
    command.write_json(output.document, options.json)
    if options.csv is not None:
        write_csv(output.rows, options.csv)
    if options.figure is not None:
        write_figure(output.draw(), options.figure)
    command.console().print(output.report)
    for path in filter(None, (options.json, options.csv, options.figure)):
        print(printable(f"Written: {path}"), file=sys.stderr)
    return int(output.critical)


if __name__ == "__main__":
    sys.exit(main())
