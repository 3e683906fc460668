"""The figures of a trace's page: the way to the answer, and what each layer adds to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go

from orchestrator.common.palette import COLOURS
from orchestrator.interventions.trace_words import quoted

ATTENTION, FFN = COLOURS[2], COLOURS[1]
BAND = {"early": "rgba(128,128,128,0.05)", "middle": "rgba(128,128,128,0.16)", "late": "rgba(128,128,128,0.05)"}
LAYOUT: dict[str, Any] = {
    "height": 320,
    "margin": {"l": 56, "r": 56, "t": 52, "b": 46},
    "font": {"family": "system-ui, sans-serif", "size": 13},
    "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
    "hovermode": "x unified",
    "template": "none",
}


def figures(result: Mapping[str, Any]) -> dict[str, go.Figure]:
    """Name → figure; without attribution where the trace has none."""
    found = {"way": _way(result)}
    if result["embedding"]["attribution"] is not None:
        found["attribution"] = _attribution(result)
    return found


def _way(result: Mapping[str, Any]) -> go.Figure:
    """The answer's probability at the last token, and the divergence over all, after every layer."""
    depths = [result["embedding"], *result["layers"]]
    x = list(range(-1, len(result["layers"])))
    answer = [of["answer"]["probability"][-1] for of in depths]
    divergence = [
        sum(of["divergence"]) / len(of["divergence"]) for of in result["layers"]
    ]  # the embedding's is far off
    figure = go.Figure(
        [
            go.Scatter(
                x=x, y=answer, name=f"probability of {quoted(result['answer']['text'])}", mode="lines+markers",
                line={"color": ATTENTION, "width": 3}, hovertemplate="%{y:.3f}",
            ),
            go.Scatter(
                x=x[1:], y=divergence, name="divergence (nats)", mode="lines", yaxis="y2",
                line={"color": FFN, "width": 2, "dash": "dot"}, hovertemplate="%{y:.2f}",
            ),
        ]
    )  # fmt: skip
    figure.update_layout(
        **LAYOUT,
        xaxis={"title": {"text": "after layer"}, **_ticks(x), "showgrid": False, "zeroline": False},
        yaxis={"range": [0, 1.02], "zeroline": False},
        yaxis2={
            "overlaying": "y",
            "side": "right",
            "range": [0, 1.02 * max(divergence) or 1],
            "showgrid": False,
            "zeroline": False,
            "tickmode": "auto",
            "nticks": 6,
        },
        shapes=list(_bands(result)),
    )
    return figure


def _attribution(result: Mapping[str, Any]) -> go.Figure:
    """Draw the parts of the answer's logit by attention and FFN of every layer."""
    layers = result["layers"]
    x = list(range(-1, len(layers)))
    of_embedding = result["embedding"]["attribution"]["logit"]
    figure = go.Figure(
        [
            go.Bar(x=[-1], y=[of_embedding], name="embedding", marker={"color": COLOURS[0]}, hovertemplate="%{y:+.2f}"),
            *(
                go.Bar(
                    x=x[1:], y=[layer["attribution"][key] for layer in layers], name=name, marker={"color": shade},
                    hovertemplate="%{y:+.2f}",
                )
                for key, name, shade in (("attention", "attention", ATTENTION), ("ffn", "FFN", FFN))
            ),
        ]
    )  # fmt: skip
    figure.update_layout(
        **LAYOUT,
        barmode="relative",
        bargap=0.25,
        xaxis={"title": {"text": "layer"}, **_ticks(x), "showgrid": False, "zeroline": False},
        yaxis={"title": {"text": f"adds to {quoted(result['answer']['text'])}"}},
    )
    return figure


def _ticks(x: list[int]) -> dict[str, Any]:
    every = 1 if len(x) <= 16 else len(x) // 6
    at = [-1, *range(every - 1, len(x) - 1, every)]
    return {"tickvals": at, "ticktext": ["in", *map(str, at[1:])], "tickangle": 0, "range": [-1.6, len(x) - 1.4]}


def _bands(result: Mapping[str, Any]) -> Any:
    """The middle band as a shade, and the document's two borders as dashed lines."""
    of, layers = result["bands"], len(result["layers"])
    whole: dict[str, Any] = {"yref": "paper", "y0": 0, "y1": 1, "layer": "below"}
    if of["middle"] < of["late"]:
        x0, x1 = of["middle"] - 0.5, of["late"] - 0.5
        yield {"type": "rect", "x0": x0, "x1": x1, "fillcolor": BAND["middle"], "line": {"width": 0}, **whole}
    for share in of["document"]:
        x = share * layers - 0.5
        yield {"type": "line", "x0": x, "x1": x, "line": {"color": "#888", "width": 1, "dash": "dash"}, **whole}
