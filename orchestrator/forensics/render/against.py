"""Two models side by side, layer by layer: the paper's A/B tables (SCIENCE §4)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from orchestrator.common.formatting import Column, Fitted, counted, dash, labelled, number, ranges
from orchestrator.forensics.analyze import SCHEMA
from orchestrator.forensics.render.export import rows_of
from orchestrator.forensics.render.terminal import (
    ATTENTION,
    SATURATED,
    Layer,
    Result,
    counts,
    missing,
    pathology,
    role_text,
    settled,
    totals,
)

Pair = tuple[Layer, Layer]  # A's and B's layer of one index


def against(a: Result, b: Result) -> dict[str, Any]:
    """Both results and, for each index that both have a layer at, how the two layers differ."""
    pairs = zip(a["layers"], b["layers"], strict=False)  # of unequal depth: the common indices
    return {"schema": SCHEMA, "a": a, "b": b, "layers": [compared(one, other) for one, other in pairs]}


def compared(a: Layer, b: Layer) -> dict[str, Any]:
    """One row of `flattening` (DESIGN), and the roles. Absent values are None."""
    row: dict[str, Any] = {"layer": a["layer"], "role_a": a["role"], "role_b": b["role"]}
    x, y = a["measures"], b["measures"]
    ranks = x["effective_rank.o"], y["effective_rank.o"]
    row["flattening"] = x["cv"] / y["cv"] if x["cv"] is not None and y["cv"] else None
    row["effective_rank_o_delta"] = None if None in ranks else ranks[1] - ranks[0]
    for key in ("cv", "saturated", "saturated_robust", "effective_rank.o", "attention_share"):
        row |= {f"{key.replace('.', '_')}_a": x[key], f"{key.replace('.', '_')}_b": y[key]}
    return row


def rows(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """CSV: one row per common layer; what `rows_of` gives of each model under `_a` and `_b`, and the comparison."""
    table = []
    for pair, *both in zip(document["layers"], rows_of(document["a"]), rows_of(document["b"]), strict=False):
        row = {"layer": pair["layer"], "flattening": pair["flattening"]}
        row["effective_rank_o_delta"] = pair["effective_rank_o_delta"]
        for arm, values in zip("ab", both, strict=True):
            row |= {f"{key}_{arm}": value for key, value in values.items() if key != "layer"}
        table.append(row)
    return table


def report(document: Mapping[str, Any], seconds: float) -> Group:
    """All that is printed: who is compared, the layers side by side, totals, both lists of findings."""
    a, b = document["a"], document["b"]
    return Group(
        _heading(a, b),
        Text(),
        _headline(document),
        Text(),
        Fitted(list(zip(a["layers"], b["layers"], strict=False)), _columns()),
        Text(),
        _summary(a, b, seconds),
    )


def _heading(a: Result, b: Result) -> Table:
    grid = Table.grid(padding=(0, 2, 0, 0))
    for name, result in (("A", a), ("B", b)):
        step = "" if result["step"] is None else f" · step {result['step']:,}"
        about = f"{result['family']}{step} · {counted(len(result['layers']), 'layer')}"
        grid.add_row(
            Text(name, "bold"), Text.assemble((result["source"], "bold"), (f"  {about}", "dim"), overflow="fold")
        )
    return grid


def _headline(document: Mapping[str, Any]) -> Text:
    """How many layers change their role, and how far the spread of co-magnitude goes."""
    a, b, pairs = document["a"], document["b"], document["layers"]
    changed = [p["layer"] for p in pairs if settled(p["role_a"]) != settled(p["role_b"])]
    verb = "has" if len(changed) == 1 else "have"
    text = Text(f"{len(changed)} of {counted(len(pairs), 'layer')} {verb} another role in B", "bold")
    text.append(f": {ranges(changed, 'L')}." if changed else ".", "not bold")
    if len(a["layers"]) != len(b["layers"]):
        depths = f"{len(a['layers'])} and {len(b['layers'])}"
        text.append(f" A and B have {depths} layers: the first {len(pairs)} are compared, by index.", "not bold yellow")
    return text


def _columns() -> list[Column]:
    """Of a `Pair`."""
    return [
        Column("", lambda pair: str(pair[0]["layer"]), 99),
        Column("role A", lambda pair: role_text(pair[0]), 98, right=False),
        Column("role B", lambda pair: role_text(pair[1]), 98, right=False),
        Column("cv", lambda pair: _both(pair, "cv", ".2f"), 97, True, "spread of FFN co-magnitude"),
        Column("A/B", _flattening, 96, True, "cv A over cv B, above 1 where B is flatter"),
        Column("saturated", lambda pair: _both(pair, "saturated_robust", ",d"), 95, True, SATURATED.partition(" /")[0]),
        Column("Δ rank o", _rank, 94, True, "effective rank, B − A"),
        Column("att.", lambda pair: _both(pair, "attention_share", ".2f"), 93, True, ATTENTION),
    ]


def _flattening(pair: Pair) -> Text | str:
    """Bold where one spread is more than half as large again as the other."""
    ratio = compared(*pair)["flattening"]
    return dash() if ratio is None else Text(f"{ratio:.2f}", "" if 1 / 1.5 < ratio < 1.5 else "bold")


def _both(pair: Pair, key: str, form: str) -> Text:
    """A's value → B's."""
    values = (number(layer["measures"][key], form) for layer in pair)
    return Text(" → ", "dim").join(Text.assemble(value) for value in values)


def _rank(pair: Pair) -> Text | str:
    delta = compared(*pair)["effective_rank_o_delta"]
    return dash() if delta is None else f"{round(delta, 1) + 0.0:+.1f}"  # never -0.0


def _summary(a: Result, b: Result, seconds: float) -> Table:
    lines = {
        "roles": _told(a, b, lambda result: [counts(result, result["scoring"])]),
        "saturated": _told(a, b, lambda result: [totals(result["totals"])]),
        "pathology": _told(a, b, pathology),
        "assumed": _told(a, b, lambda result: [Text(line, "yellow") for line in result["assumed"]]),
        "missing": _told(a, b, lambda result: [Text(line, "dim") for line in missing(result)]),
        "time": [Text(f"both read in {seconds:.1f} s", "dim")],
    }
    return labelled(lines)


def _told(a: Result, b: Result, tell: Callable[[Result], list[Text]]) -> list[Text]:
    """What there is to say of each model, once where it is the same."""
    of_a, of_b = tell(a), tell(b)
    told = [("A, B ", line) for line in of_a if line in of_b]
    told += [("A ", line) for line in of_a if line not in of_b] + [("B ", line) for line in of_b if line not in of_a]
    return [Text.assemble((arm, "bold"), line) for arm, line in told]
