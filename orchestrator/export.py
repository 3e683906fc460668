"""`python -m orchestrator.export SOURCE DIR`: write a model where AutoModelForCausalLM loads it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from orchestrator.common import command
from orchestrator.common.errors import UserError

EPILOG = """with --drop, without those layers; the loss of what was written is measured again. With --import, DIR
gets no model but a choice, from which a cell of ours starts with the weights of SOURCE:
python -m orchestrator --config-dir DIR model=imported"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0; 1 where the exported model's loss is another than promised; 2 for input that cannot be used."""
    parser = command.parser("orchestrator.export", __doc__, EPILOG)
    add = parser.add_argument
    add("source", help="a cell, a checkpoint, a GGUF file, or org/name[@revision] on the hub")
    add("directory", type=Path, metavar="DIR", help="the directory to make")
    add("--drop", type=command.listed, metavar="7,12-14", help="leave out these layers, counted from 0")
    add("--evidence", type=Path, metavar="FILE", help="what intervene --json wrote of SOURCE: is its prediction right?")
    add("--import", action="store_true", dest="imports", help="write a choice with which a cell starts from SOURCE")
    add("--data", type=command.given, action="append", default=[], metavar="[NAME=]FILES",
        help="text: .txt, .jsonl or .parquet")  # fmt: skip
    add("--own", action="store_true", help="in place of text: what the model itself says")
    add("--documents", type=command.count, default=64, metavar="N", help="most documents of each text (64)")
    add("--length", type=partial(command.count, least=2), metavar="N", help="most tokens of a document of text (128)")
    add("--mergekit", type=partial(command.output, suffixes=(".yml", ".yaml")), metavar="FILE",
        help="also write the configuration by which mergekit makes the same model")  # fmt: skip
    add("--json", type=command.output, metavar="FILE", help="write the result as JSON")
    return command.run(parser, _export, arguments)


def _export(options: argparse.Namespace) -> int:
    with command.importing():  # torch: seconds that --help need not wait for
        from orchestrator.forensics.weights.hub import local

    return (_import if options.imports else _write)(local(options.source), options)


def _write(source: Path, options: argparse.Namespace) -> int:
    with command.importing():
        import yaml

        from orchestrator.interventions import export as library
        from orchestrator.interventions.documents import refuse_two_texts, texts
        from orchestrator.interventions.export_report import report
        from orchestrator.interventions.progress import shown
        from orchestrator.interventions.pruning import mergekit

    if options.evidence is not None and not options.drop:
        raise UserError("--evidence predicts what dropping layers costs: name them with --drop, or leave it out.")
    if options.mergekit is not None:
        library.refuse_ours(source, "--mergekit")
    refuse_two_texts(options.own, options.data)
    text = texts(options.data)
    chosen = library.Options(options.drop or "", options.evidence, text, options.documents, options.length, options.own)
    with shown("exporting", lambda *_: f"Interrupted: {options.directory} is not written.") as progress:
        result = library.export(source, options.directory, chosen, progress)
    command.write_json(result, options.json)
    if options.mergekit is not None:
        recipe = mergekit(options.source, result["dropped"], result["layers"], result["dtype"])
        with command.writing(options.mergekit):
            options.mergekit.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    command.console().print(report(result))
    return 0 if library.keeps_its_promise(result) else 1


def _import(source: Path, options: argparse.Namespace) -> int:
    for name in ("drop", "evidence", "data", "own", "mergekit", "json"):
        if getattr(options, name):
            raise UserError(f"--{name} does not go with --import, which writes no model: leave one of them out.")
    with command.importing():
        from orchestrator.interventions.imported import write_choice

    command.console().print(write_choice(source, options.directory), highlight=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
