"""A trace in words: where the answer appears, what writes it, and what the bands are. The pages share these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.common.formatting import printable

MARKS = {"\n": "⏎", "\t": "⇥", "\r": "␍", " ": "␣"}


@dataclass(frozen=True)
class Writer:
    """A part of the model, and what it adds to the answer's logit."""

    name: str
    layer: int | None  # None for the embedding
    logit: float


def shown(text: str) -> str:
    """A token on one line: white space that would not be seen as marks, control characters escaped."""
    if text.isspace():
        return "".join(MARKS.get(character, "␣") for character in text)
    return printable("".join(c if c == " " else MARKS.get(c, c) for c in text))


def quoted(text: str) -> str:
    """A token in quotation marks."""
    return f"“{shown(text)}”"


def added(result: Mapping[str, Any]) -> str:
    """The text that the model itself added to the user's."""
    tokens = result["tokens"][len(result["tokens"]) - result["continued"] :]
    return "".join(token["text"] for token in tokens)


def depth(layer: int) -> str:
    """A depth of the lens: `layer 7`, or the embedding."""
    return "the embedding" if layer < 0 else f"layer {layer}"


def percent(share: float) -> str:
    return f"{100 * share:.0f}\N{NO-BREAK SPACE}%"


def branch_writers(result: Mapping[str, Any]) -> list[Writer]:
    """The embedding, and attention and FFN of each layer, the largest part of the logit first."""
    if result["embedding"]["attribution"] is None:
        return []
    parts = [Writer("embedding", None, result["embedding"]["attribution"]["logit"])]
    for layer in result["layers"]:
        for key, name in (("attention", "attention"), ("ffn", "FFN")):
            parts.append(Writer(f"L{layer['layer']} {name}", layer["layer"], layer["attribution"][key]))
    return sorted(parts, key=lambda part: -part.logit)


def heads(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The heads of all layers, those that add most to the answer's logit first."""
    of = [
        {**head, "layer": layer["layer"]}
        for layer in result["layers"]
        for head in (layer["attribution"] or {}).get("heads") or ()
    ]
    return sorted(of, key=lambda head: -head["logit"])


def positions(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The FFN positions that are kept of all layers, those that add most to the answer's logit first."""
    of = [
        {**neuron, "layer": layer["layer"]}
        for layer in result["layers"]
        for neuron in layer["neurons"]
        if neuron["logit"] is not None
    ]
    return sorted(of, key=lambda neuron: -neuron["logit"])


def appears(result: Mapping[str, Any]) -> str:
    """The sentence that says where the answer appears and stays."""
    answer, layers = result["answer"], len(result["layers"])
    stays = answer["stays"]
    where = f"{quoted(answer['text'])} is ranked first from {depth(stays)} on"
    if stays >= 0:
        where += f", {percent((stays + 1) / layers)} of the depth"
    if answer["first"] < stays:
        where += f"; for the first time after {depth(answer['first'])}"
    return where + "."


def banded(result: Mapping[str, Any]) -> str:
    """The sentence that compares the bands with the Layer Structure document's."""
    of, layers = result["bands"], len(result["layers"])
    said = " and ".join(percent(share) for share in of["document"])
    middle, late = of["middle"], of["late"]
    if late <= middle:
        return (
            f"No middle: the lens settles from layer {late} on ({percent(of['shares'][1])} of the depth), before its "
            f"divergence from the model is halved for good, at layer {middle}. The Layer Structure document: {said}."
        )
    return (
        f"Early {_range(0, middle)}, middle {_range(middle, late)}, late {_range(late, layers)}: the bands end at "
        f"{percent(of['shares'][0])} and {percent(of['shares'][1])} of the depth. The Layer Structure document: {said}."
    )


def _range(first: int, end: int) -> str:
    return "–" if first >= end else f"L{first}" if end - first == 1 else f"L{first}–{end - 1}"


def opener(neuron: Mapping[str, Any], tokens: Sequence[Mapping[str, Any]]) -> str:
    """The token that opens a position most."""
    return str(tokens[neuron["opened_by"]]["text"])
