"""Build the tables of cost and provenance: cost of one run, differences between the cells, facts they share."""

from __future__ import annotations

from typing import Any

from orchestrator.analysis.comparison import Comparison
from orchestrator.analysis.provenance import constant, differences
from orchestrator.analysis.sections.section import Section, TableCell
from orchestrator.common.formatting import signed


def costs(c: Comparison) -> Section:
    """Return parameters and FLOPs of every arm."""
    rows: list[list[TableCell]] = []
    base = c.experiment.models.get(c.baseline)
    for arm, model in c.experiment.models.items():
        widths = f"{min(model.widths)} … {max(model.widths)}" if model.widths else "–"
        flops = "–" if model.training_flops is None else f"{model.training_flops:.3g}"
        against = "" if base is None or arm == c.baseline else signed(100 * (model.params / base.params - 1), 2) + " %"
        rows.append([arm, f"{model.params:,}", against, widths, flops])
    columns = ["arm", "parameters", "Δ", "width", "FLOPs"]
    return Section("Size and cost of one run", columns, rows, terms={"Δ": "parameters", "FLOPs": "training_flops"})


def differing(c: Comparison) -> Section:
    """Return the configuration, code and environment in which cells differ, arm by arm."""
    arms = c.experiment.arms
    rows: list[list[TableCell]] = [
        [one.kind, one.key, *(", ".join(map(_text, one.values.get(arm, []))) or "–" for arm in arms)]
        for one in differences(c.experiment)
    ]
    declared = ", ".join(c.experiment.declared) or "nothing"
    notes = [f"Declared: {declared}. A difference in any other key of the configuration is an error."]
    no_terms = dict.fromkeys(arms)  # an arm may have the name of a term
    return Section("Differences between cells", ["kind", "key", *arms], rows, notes, no_terms)


def shared(c: Comparison) -> Section:
    """Return the code and environment that all attempts of all cells share."""
    rows: list[list[TableCell]] = [[key, _text(value)] for key, value in constant(c.experiment).items()]
    return Section("Code and environment of all cells", ["key", "value"], rows, terms={"value": None})


def _text(value: Any) -> str:
    return "–" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
