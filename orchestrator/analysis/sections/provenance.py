"""Tables of the cells' origin: what one run of each arm costs, what differs between the cells, what they share."""

from __future__ import annotations

from typing import Any

from orchestrator.analysis.comparison import Comparison
from orchestrator.analysis.formatting import signed
from orchestrator.analysis.provenance import constant, differences
from orchestrator.analysis.sections.section import Section, TableCell


def costs(c: Comparison) -> Section:
    """Parameters and floating-point operations of every arm."""
    rows: list[list[TableCell]] = []
    base = c.experiment.models.get(c.baseline)
    for arm, model in c.experiment.models.items():
        widths = f"{min(model.widths)} … {max(model.widths)}" if model.widths else "–"
        flops = "–" if model.training_flops is None else f"{model.training_flops:.3g}"
        against = "" if base is None or arm == c.baseline else signed(100 * (model.params / base.params - 1), 2) + " %"
        rows.append([arm, f"{model.params:,}", against, widths, flops])
    columns = ["arm", "parameters", "Δ", "width", "FLOPs"]
    return Section("Size and cost of one run", columns, rows, terms={"Δ": "parameters"})


def differing(c: Comparison) -> Section:
    """Configuration, code and environment in which cells differ, arm by arm."""
    arms = c.experiment.arms
    rows: list[list[TableCell]] = [
        [one.kind, one.key, *(", ".join(map(_text, one.values.get(arm, []))) or "–" for arm in arms)]
        for one in differences(c.experiment)
    ]
    declared = ", ".join(c.experiment.declared) or "nothing"
    notes = [f"Declared: {declared}. Any other key of the configuration in which arms differ is refused."]
    no_terms = dict.fromkeys(arms)  # an arm may be called as a term is
    return Section("In what the arms differ", ["kind", "key", *arms], rows, notes, no_terms)


def shared(c: Comparison) -> Section:
    """Code and environment that all attempts of all cells have in common."""
    rows: list[list[TableCell]] = [[key, _text(value)] for key, value in constant(c.experiment).items()]
    return Section("Code and environment of all cells", ["key", "value"], rows, terms={"value": None})


def _text(value: Any) -> str:
    return "–" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
