"""`python -m orchestrator.intervene SOURCE`: change one layer at a time, and see the cost."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from textwrap import fill

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

from orchestrator.common import command
from orchestrator.config.edits import EditName

DOCUMENTS = 64  # of each text
NAMES = ", ".join(f"{edit} ({edit.meaning})" if edit.meaning else edit for edit in EditName)
EPILOG = fill(f"edits: {NAMES}; or all. docs/SCIENCE.md, section 9, defines them.", 100)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0, or 2 for input that cannot be used."""
    parser = command.parser("orchestrator.intervene", __doc__, EPILOG)
    add, least_two = parser.add_argument, partial(command.count, least=2)
    add("source", help="a cell, a checkpoint, a GGUF file, or org/name[@revision] on the hub")
    add("--edits", default="", metavar="A,B", help="what is done to each layer (delete,delete_attention,delete_ffn)")
    add("--blocks", type=least_two, metavar="N", help="also delete N consecutive layers, from each layer on")
    add("--data", action="append", default=[], metavar="[NAME=]FILES", help="text: .txt, .jsonl, .csv or .parquet")
    add("--own", action="store_true", help="in place of text: what the model itself says")
    add("--documents", type=command.count, default=DOCUMENTS, metavar="N", help="most documents of each text (64)")
    add("--length", type=least_two, metavar="N", help="most tokens of a document of text (128)")
    add("--json", type=command.output, metavar="FILE", help="write the whole result; a run that is stopped goes on")
    add("--csv", type=partial(command.output, suffixes=(".csv",)), metavar="FILE", help="write a row for each edit")
    return command.run(parser, _intervene, arguments)


def _intervene(options: argparse.Namespace) -> None:
    with command.importing():  # torch: seconds that --help need not wait for
        from orchestrator.forensics.render.export import write_csv
        from orchestrator.forensics.weights.hub import local
        from orchestrator.interventions import intervene as library
        from orchestrator.interventions.advice import advise
        from orchestrator.interventions.advice_report import applied
        from orchestrator.interventions.documents import refuse_two_texts, texts
        from orchestrator.interventions.edits import CORE, EDITS
        from orchestrator.interventions.report import report, rows

    named = tuple(EDITS) if options.edits == "all" else tuple(filter(None, options.edits.split(","))) or CORE
    refuse_two_texts(options.own, options.data)
    chosen = library.Options(named, options.blocks, texts(options.data), options.documents, options.length, options.own)
    partial_path = None if options.json is None else options.json.with_name(options.json.name + ".partial")
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True) as bar:
        task = bar.add_task("intervening", total=None)
        progress = library.Progress(
            announce=lambda sentence: bar.console.print(sentence, highlight=False),
            begin=lambda total: bar.update(task, total=total),
            advance=lambda count: bar.advance(task, count),
        )
        result = library.intervene(local(options.source), chosen, progress, partial_path)
    result["advice"] = advise(result, _measured_on(options))
    command.write_json(result, options.json)
    if options.csv is not None:
        write_csv(list(rows(result)), options.csv)
    if partial_path is not None:
        partial_path.unlink(missing_ok=True)
    console = command.console()
    console.print(report(result))
    if how := applied(result["advice"]):
        console.print(f"\n{how}", highlight=False, markup=False, soft_wrap=True)


def _measured_on(options: argparse.Namespace) -> list[str]:
    """The options by which `export` measures on the same text, and knows what was predicted."""
    words = [word for text in options.data for word in ("--data", text)]
    words += ["--own"] if options.own else []
    if options.documents != DOCUMENTS:
        words += ["--documents", str(options.documents)]
    if options.length is not None:
        words += ["--length", str(options.length)]
    return words + ([] if options.json is None else ["--evidence", str(options.json)])


if __name__ == "__main__":
    sys.exit(main())
