"""The page of a trace in the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from orchestrator.common.formatting import (
    Column,
    FittedTable,
    bar,
    counted,
    dash,
    labelled,
    number,
    page,
    plain_table,
    printable,
    signed,
)
from orchestrator.forensics.roles.palette import colour
from orchestrator.interventions.trace_words import (
    added,
    appears,
    banded,
    branch_writers,
    heads,
    opener,
    positions,
    quoted,
    shown,
)

FEW = 3  # of each kind of writer
LEGEND = (
    "attention, FFN: what the branch writes at the last token / the stream that the layer reads. lens: what the final "
    "norm and head make of the stream after the layer, with its probability. answer: the probability there of what the "
    "model says in the end. → logit: what both branches add to the answer's logit (docs/SCIENCE.md, §9.1)."
)


def report(result: Mapping[str, Any], neurons_of: int | None = None) -> Group:
    """A line per layer, and what writes the answer. `neurons_of`: the layer whose FFN positions are listed."""
    columns = [
        Column("", lambda layer: str(layer["layer"]), 100),
        Column("role", lambda layer: _role(layer["role"]), 80, right=False),
        Column("band", lambda layer: Text(layer["band"], "dim"), 70, right=False),
        Column("attention", lambda layer: number(_last(layer["attention_write"]), ".2f"), 90),
        Column("FFN", lambda layer: number(_last(layer["ffn_write"]), ".2f"), 90),
        Column("lens", lambda layer: _lens(layer, result), 99, right=False),
        Column("p", lambda layer: f"{layer['lens'][-1][0]['probability']:.2f}", 98),
        Column("answer", lambda layer: bar(layer["answer"]["probability"][-1], 1.0, ".2f"), 97),
        Column("→ logit", _logit, 95),
    ]
    parts: list[RenderableType] = [
        _title(result),
        FittedTable(result["layers"], columns),
        labelled(_lines(result)),
        Text(LEGEND, "dim"),
    ]
    if neurons_of is not None:
        parts.append(_neurons(result, neurons_of))
    return page(*parts)


def _last(values: list[float | None] | None) -> float | None:
    return None if values is None else values[-1]


def _role(role: str) -> Text:
    return dash() if role == "none" else Text(role, colour(role))


def _lens(layer: Mapping[str, Any], result: Mapping[str, Any]) -> Text:
    text = quoted(layer["lens"][-1][0]["text"])
    stands = layer["layer"] >= result["answer"]["stays"]
    return Text(text if len(text) <= 18 else text[:17] + "…", "bold" if stands else "")


def _logit(layer: Mapping[str, Any]) -> Text | str:
    of = layer["attribution"]
    return dash() if of is None else signed(of["attention"] + of["ffn"], 2)


def _title(result: Mapping[str, Any]) -> Text:
    title = Text(result["source"], "bold", overflow="fold")
    step = "" if result["step"] is None else f" · step {result['step']:,}"
    what = f"\n{result['family']}{step} · {len(result['layers'])} layers · {counted(len(result['tokens']), 'token')}"
    title.append(what, "not bold dim")
    answer = result["answer"]
    title.append(f"\n{printable(result['text'])}", "not bold")
    title.append(shown(added(result)), "not bold dim")
    title.append(f" → {quoted(answer['text'])}", "bold")
    title.append(f" {answer['probability']:.2f}", "not bold dim")
    return title


def _lines(result: Mapping[str, Any]) -> dict[str, list[Text]]:
    tokens = result["tokens"]
    writers = [f"{of.name} {signed(of.logit, 2)}" for of in branch_writers(result)[: 2 * FEW]]
    of_heads = [
        f"L{of['layer']} H{of['head']} {signed(of['logit'], 2)}"
        + ("" if of["attends"] is None else f" (reads {quoted(tokens[of['attends']]['text'])})")
        for of in heads(result)[:FEW]
    ]
    of_ffn = [
        f"L{of['layer']} [{of['position']}] {signed(of['logit'], 2)} "
        f"(promotes {', '.join(quoted(token['text']) for token in (of['promotes'] or [])[:2])})"
        for of in positions(result)[:FEW]
    ]
    return {
        "answer": [Text(appears(result))],
        "bands": [Text(banded(result))],
        "writers": [Text(" · ".join(writers))] if writers else [],
        "heads": [Text(" · ".join(of_heads))] if of_heads else [],
        "FFN": [Text(" · ".join(of_ffn))] if of_ffn else [],
        "missing": [Text(f"{name}: {why}") for name, why in result["missing"].items()],
    }


def _neurons(result: Mapping[str, Any], layer: int) -> Group:
    """A line per FFN position of the layer."""
    tokens = result["tokens"]
    found = result["layers"][layer]["neurons"]
    if not found:
        return page(Text(f"The FFN positions of layer {layer} are not told apart.", "dim"))
    table = plain_table(("position", "why", "opened by", "activation", "→ logit", "promotes"), left=("why", "promotes"))
    for neuron in found:
        table.add_row(
            str(neuron["position"]),
            Text(", ".join(neuron["why"])),
            Text(quoted(opener(neuron, tokens))),
            signed(neuron["activation"], 2),
            number(neuron["logit"], "+.2f"),
            Text(" ".join(quoted(token["text"]) for token in (neuron["promotes"] or [])[:4])),
        )
    return page(Text(f"FFN positions of layer {layer}", "bold"), table)
