"""`python -m orchestrator.intervene SOURCE`: change one layer at a time, and see the cost."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from textwrap import fill

from orchestrator.common import command
from orchestrator.common.errors import complain
from orchestrator.config.edits import EditName

DOCUMENTS = 64  # of each text
NAMES = ", ".join(f"{edit} ({edit.meaning})" if edit.meaning else edit for edit in EditName)
EPILOG = fill(f"edits: {NAMES}; or all. docs/SCIENCE.md, section 9, defines them.", 100)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0, or 2 for input that cannot be used."""
    parser = command.parser("orchestrator.intervene", __doc__, EPILOG)
    add, least_two = parser.add_argument, partial(command.count, least=2)
    add("source", help="a cell, a checkpoint, a GGUF file, or org/name[@revision] on the hub")
    add(
        "--edits",
        type=command.listed,
        metavar="A,B",
        help="what is done to each layer (delete,delete_attention,delete_ffn)",
    )
    add("--blocks", type=least_two, metavar="N", help="also delete N consecutive layers, from each layer on")
    add("--data", type=command.given, action="append", default=[], metavar="[NAME=]FILES",
        help="text: .txt, .jsonl, .csv or .parquet")  # fmt: skip
    add("--own", action="store_true", help="in place of text: what the model itself says")
    add("--documents", type=command.count, default=DOCUMENTS, metavar="N", help="most documents of each text (64)")
    add("--length", type=least_two, metavar="N", help="most tokens of a document of text (128)")
    add(
        "--json",
        type=command.output,
        metavar="FILE",
        help="write the whole result; the same command resumes a stopped run",
    )
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
        from orchestrator.interventions.partial import Partial
        from orchestrator.interventions.progress import shown
        from orchestrator.interventions.report import report, rows

    edits = tuple(edit.strip() for edit in options.edits.split(",")) if options.edits else CORE
    edits = tuple(EDITS) if edits == ("all",) else edits
    refuse_two_texts(options.own, options.data)
    chosen = library.Options(edits, options.blocks, texts(options.data), options.documents, options.length, options.own)
    kept = None if options.json is None else Partial(options.json.with_name(options.json.name + ".partial"))

    def interrupted(done: int, total: int) -> str:
        if kept is None:
            return "Interrupted: nothing is kept without --json FILE."
        if not kept.path.is_file():
            return "Interrupted, before there was anything to keep."
        return f"Interrupted: the same command goes on from {kept.path} ({done:,} of {total or 'many'} results)."

    with shown("intervening", interrupted) as progress:
        result = library.intervene(local(options.source), chosen, progress, kept)
    result["advice"] = advise(result, _measured_on(options))
    command.write_json(result, options.json)
    if options.csv is not None:
        write_csv(list(rows(result)), options.csv)
    if kept is not None and kept.finish():
        complain(f"{kept.path} keeps what another command has done so far for {options.json}.")
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
