"""The terminal's table of experts: a line for each mixture, with the spread over its experts and the extremes."""

from __future__ import annotations

from collections.abc import Callable

from rich.text import Text

from orchestrator.common.formatting import Column, dash
from orchestrator.forensics.measures.expert_report import ExpertReport
from orchestrator.forensics.reading import LayerReport


def _routed(layer: LayerReport) -> list[ExpertReport]:
    return [expert for expert in layer.experts if expert.expert is not None]


def _experts(layer: LayerReport) -> str:
    shared = len(layer.experts) - len(_routed(layer))
    return f"{len(_routed(layer))}" + (f" + {shared}" if shared else "")


def _shares(layer: LayerReport) -> Text:
    """The experts that the router takes least and most, with their shares."""
    known = [(of.router_share, of.expert) for of in _routed(layer) if of.router_share is not None]
    if not known:
        return dash()
    ends = [f"{share:.1%} ({number})" for share, number in (min(known), max(known))]
    return Text(" … ", "dim").join(map(Text, ends))


def _spread(measure: str, form: str) -> Callable[[LayerReport], Text]:
    """The cells of a column that shows the least and the largest value of a measure over the experts."""

    def cell(layer: LayerReport) -> Text:
        known = [value for of in _routed(layer) if (value := of.measures.get(measure)) is not None]
        return Text(" … ", "dim").join(Text(format(end, form)) for end in (min(known), max(known))) if known else dash()

    return cell


def _loudest(layer: LayerReport) -> Text:
    """The expert whose loudest position is furthest above its others, and by how much."""
    known = [(value, of.expert) for of in _routed(layer) if (value := of.measures.get("loudest_gain")) is not None]
    return Text(f"×{max(known)[0]:.1f} ({max(known)[1]})") if known else dash()


EXPERTS = [  # of a table of layers
    Column("", lambda layer: str(layer.layer), 99),
    Column("experts", _experts, 98),
    Column("router's share", _shares, 97, True, "of the places, least … most (expert); even is 1 / experts"),
    Column("cv", _spread("cv", ".2f"), 96, True, "over the experts, least … most"),
    Column("rank down", _spread("effective_rank.down_fraction", ".0%"), 95),
    Column("saturated", _spread("saturated_robust", ",d"), 93),
    Column("loudest", _loudest, 94, True, "gain of a position over the expert's median (expert)"),
]
