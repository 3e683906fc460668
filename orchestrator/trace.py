"""`python -m orchestrator.trace SOURCE "text"`: what each layer does to this text."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial

from orchestrator.common import command

FEW, MANY = 5, 15  # FFN positions of a layer that are kept for each reason; those of --neurons


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0, or 2 for input that cannot be used."""
    parser = command.parser("orchestrator.trace", __doc__)
    add, number = parser.add_argument, partial(command.count, least=0)
    add("source", help="a cell, a checkpoint, a GGUF file, or org/name[@revision] on the hub")
    add("text", help="the text to run through the model")
    add("--chat", action="store_true", help="put the text into the chat template of the model's tokenizer")
    add("--continue", type=number, default=0, metavar="N", dest="more", help="let the model add N tokens first")
    add("--neurons", type=number, metavar="LAYER", help="list FFN positions of a layer: what opens them, what they say")
    add("--html", type=partial(command.output, suffixes=(".html",)), metavar="FILE", help="write the page to show")
    add("--json", type=command.output, metavar="FILE", help="write the whole result as JSON")
    return command.run(parser, _trace, arguments)


def _trace(options: argparse.Namespace) -> None:
    with command.importing():  # torch: seconds that --help need not wait for
        from orchestrator.forensics.weights.hub import local
        from orchestrator.interventions.trace import Options, trace
        from orchestrator.interventions.trace_report import report

    few = FEW if options.neurons is None else MANY
    chosen = Options(options.chat, options.more, few, options.neurons)
    result = trace(local(options.source), options.text, chosen)
    command.write_json(result, options.json)
    if options.html is not None:
        from orchestrator.interventions.trace_page.page import page

        with command.writing(options.html):
            options.html.write_text(page(result), encoding="utf-8")
    command.console().print(report(result, options.neurons))


if __name__ == "__main__":
    sys.exit(main())
