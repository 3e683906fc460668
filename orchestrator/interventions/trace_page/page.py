"""Render a trace as HTML: the lens at every layer and token, and the details of each layer a click away."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from plotly.io import to_json
from plotly.offline import get_plotlyjs

from orchestrator.common.formatting import signed
from orchestrator.common.web.pages import environment, packed
from orchestrator.forensics.roles.palette import background, letter
from orchestrator.interventions.trace_page.figures import figures
from orchestrator.interventions.trace_page.glossary import GLOSSARY
from orchestrator.interventions.trace_words import (
    Writer,
    added,
    appears,
    banded,
    branch_writers,
    heads,
    percent,
    positions,
    quoted,
    shown,
)

LAST = 128  # tokens at the end of the text whose columns are drawn; the JSON has all

ENVIRONMENT = environment("orchestrator.interventions.trace_page", GLOSSARY)
ENVIRONMENT.filters |= {
    "letter": letter,
    "signed": signed,
    "background": background,
    "percent": percent,
    "quoted": quoted,
    "shown": shown,
}


def page(result: Mapping[str, Any]) -> str:
    """The whole page."""
    first = max(0, len(result["tokens"]) - LAST)
    drawn = figures(result)
    writers = branch_writers(result)
    return (
        ENVIRONMENT.get_template("trace.html.j2").render(
            r=result,
            first=first,
            tokens=result["tokens"][first:],
            added=added(result),
            appears=appears(result),
            banded=banded(result),
            writers=writers,
            by_kind=_by_kind(writers),
            heads=heads(result),
            positions=positions(result),
            scales=_scales(result, first),
            chosen=next((of.layer for of in writers if of.layer is not None), max(0, result["answer"]["stays"])),
            tops_data=_tops(result, first),
            figures={name: figure.layout.height for name, figure in drawn.items()},
            parts=[
                ("plotly", packed(get_plotlyjs())),
                *((f"figure-{name}", packed(to_json(figure, validate=False))) for name, figure in drawn.items()),
            ],
        )
        + "\n"
    )


def _by_kind(writers: list[Writer]) -> dict[str, float]:
    """The answer's logit by attention and by FFNs, summed over the layers."""
    return {kind: sum(of.logit for of in writers if of.name.endswith(kind)) for kind in ("attention", "FFN")}


def _scales(result: Mapping[str, Any], first: int) -> dict[str, float]:
    """The value that fills a bar of each kind: the largest on the page."""
    layers = result["layers"]

    def largest(values: Any) -> float:
        return max((abs(value) for value in values if value is not None), default=0.0) or 1.0

    last = [of[key][-1] for of in layers for key in ("attention_write", "ffn_write") if of[key] is not None]
    ordered = sorted((value for value in last if value is not None), reverse=True)
    shares = [of["attribution"] for of in layers if of["attribution"] is not None]
    written = [of[key] for of in shares for key in ("attention", "ffn")]
    return {
        "write": ordered[min(len(ordered) - 1, len(ordered) // 10)]
        if ordered
        else 1.0,  # a first layer writes far more
        "logit": largest(written),
        "head": largest(head["logit"] for head in heads(result)),
        "neuron": largest(neuron["logit"] for neuron in positions(result)),
    }


def _tops(result: Mapping[str, Any], first: int) -> list[list[Any]]:
    """Per depth and drawn place, what a hover shows: [[text, probability] …], divergence, the answer's rank."""
    return [
        [
            [
                [[shown(token["text"]), round(token["probability"], 4)] for token in place],
                round(of["divergence"][first + index], 3),
                of["answer"]["rank"][first + index] + 1,
            ]
            for index, place in enumerate(of["lens"][first:])
        ]
        for of in (result["embedding"], *result["layers"])
    ]
