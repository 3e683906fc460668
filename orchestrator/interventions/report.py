"""The page of an intervention in the terminal, and its rows for a CSV."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from rich.console import Group
from rich.text import Text

from orchestrator.common.formatting import Column, FittedTable, dash, page, signed
from orchestrator.config.edits import EditName
from orchestrator.forensics.roles.palette import colour
from orchestrator.interventions.advice_report import advice_section

FEW = 3  # edits whose intervals are shown


def heading(edit: str) -> str:
    """The head of an edit's column: `−layer`; of so many consecutive layers `−3 layers`."""
    named = EditName.__members__.get(edit)
    return f"−{edit.removeprefix('delete_')} layers" if named is None else named.heading


def report(result: Mapping[str, Any]) -> Group:
    """A line per layer and domain, a rise whose interval holds 0 dim; then the advice, where the result has it."""
    domains = list(result["documents"])
    lines = [(layer, domain) for layer in result["layers"] for domain in domains]
    columns = [
        Column("", lambda line: str(line[0]["layer"]) if line[1] == domains[0] else "", 100),
        Column("role", lambda line: _role(line[0]["role"]) if line[1] == domains[0] else "", 99, right=False),
        *([Column("domain", lambda line: Text(line[1]), 98, right=False)] if len(domains) > 1 else []),
        *(
            Column(
                heading(edit),
                partial(_cell, edit, len(result["edits"]) <= FEW),
                90 - place,
                meaning=named.meaning if (named := EditName.__members__.get(edit)) else "",
            )
            for place, edit in enumerate(result["edits"])
        ),
    ]
    advice = [advice_section(result["advice"], result["unit"])] if "advice" in result else []
    return page(_title(result), FittedTable(lines, columns), Text(_legend(result), "dim"), *advice)


def _role(role: str) -> Text:
    return dash() if role == "none" else Text(role, colour(role))


def _cell(edit: str, with_interval: bool, line: tuple[Mapping[str, Any], str]) -> Text:
    layer, domain = line
    if (of_edit := layer["damage"][edit]) is None:
        return dash()
    rise = of_edit[domain]
    mean, low, high = rise["mean"], rise["low"], rise["high"]
    if low is None:
        return Text(signed(mean, 3))
    interval = f" ({signed(low, 3)}…{signed(high, 3)})" if with_interval else ""
    return Text(f"{signed(mean, 3)}{interval}", "" if low > 0 or high < 0 else "dim")


def _title(result: Mapping[str, Any]) -> Text:
    title = Text(result["source"], "bold", overflow="fold")
    step = "" if result["step"] is None else f" · step {result['step']:,}"
    title.append(f"\n{result['family']}{step} · {len(result['layers'])} layers", "not bold dim")
    held = ", ".join(
        f"{count} of {domain}" + (f" at {loss:.3f}" if (loss := result["intact"][domain]) is not None else "")
        for domain, count in result["documents"].items()
    )
    title.append(f"\nDocuments: {held}{' nats/token' if result['unit'] == 'nats/token' else ''}", "not bold")
    return title


def _legend(result: Mapping[str, Any]) -> str:
    what = "Rise of the loss" if result["unit"] == "nats/token" else "1 − cosine of the embedding with the intact one"
    interval = "" if len(result["edits"]) > FEW else ", with its 95 % interval over documents"
    return f"{what} where the layer is changed so{interval}; dim where the interval holds 0."


def rows(result: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A row per layer, edit and domain."""
    for layer in result["layers"]:
        for edit, of_edit in layer["damage"].items():
            for domain, rise in (of_edit or {}).items():
                yield {"layer": layer["layer"], "role": layer["role"], "edit": edit, "domain": domain, **rise}
