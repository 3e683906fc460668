"""Two models side by side, layer by layer: the paper's A/B tables (SCIENCE §4)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from orchestrator.forensics.export import rows_of
from orchestrator.forensics.layout import Column, Fitted, dash, labelled, number, ranges
from orchestrator.forensics.terminal import ATTENTION, Layer, Result, counts, missing, pathology, role_text, totals

SCHEMA = 1

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
        about = f"{result['family']}{step} · {len(result['layers'])} layers"
        grid.add_row(
            Text(name, "bold"), Text.assemble((result["source"], "bold"), (f"  {about}", "dim"), overflow="fold")
        )
    return grid


def _headline(document: Mapping[str, Any]) -> Text:
    """How many layers change their role, and how far the spread of co-magnitude goes."""
    a, b, pairs = document["a"], document["b"], document["layers"]
    changed = [p["layer"] for p in pairs if _settled(p["role_a"]) != _settled(p["role_b"])]
    text = Text(f"{len(changed)} of {len(pairs)} layers have another role in B", "bold")
    text.append(f": {ranges(changed)}." if changed else ".", "not bold")
    if len(a["layers"]) != len(b["layers"]):
        depths = f"{len(a['layers'])} and {len(b['layers'])}"
        text.append(f" A and B have {depths} layers: the first {len(pairs)} are compared, by index.", "not bold yellow")
    return text


def _settled(role: str) -> str:
    """All ties are one: no role leads."""
    return "" if "/" in role else role


def _columns() -> list[Column]:
    """Of a `Pair`."""

    def values(key: str, form: str) -> list[Any]:
        return [
            lambda pair: number(pair[0]["measures"][key], form),
            lambda pair: number(pair[1]["measures"][key], form),
        ]

    (cv_a, cv_b), (att_a, att_b) = values("cv", ".2f"), values("attention_share", ".2f")
    return [
        Column("", lambda pair: str(pair[0]["layer"]), 99),
        Column("role A", lambda pair: role_text(pair[0]), 98, right=False),
        Column("role B", lambda pair: role_text(pair[1]), 98, right=False),
        Column("cv A", cv_a, 97),
        Column("cv B", cv_b, 97),
        Column("A/B", _flattening, 96, True, "cv A over cv B, above 1 where B is flatter"),
        Column("saturated", _saturated, 95, True, "positions above median + 3 robust std"),
        Column("Δ rank o", _rank, 94, True, "effective rank, B − A"),
        Column("att. A", att_a, 92, True, ATTENTION),
        Column("att. B", att_b, 92),
    ]


def _flattening(pair: Pair) -> Text | str:
    """Bold where one spread is more than half as large again as the other."""
    ratio = compared(*pair)["flattening"]
    return dash() if ratio is None else Text(f"{ratio:.2f}", "" if 1 / 1.5 < ratio < 1.5 else "bold")


def _saturated(pair: Pair) -> str:
    return " → ".join(str(layer["measures"]["saturated_robust"]) for layer in pair)


def _rank(pair: Pair) -> Text | str:
    return number(compared(*pair)["effective_rank_o_delta"], "+.1f")


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
    if of_a == of_b:
        return [Text.assemble(("A, B ", "bold"), line) for line in of_a]
    return [Text.assemble((f"{arm} ", "bold"), line) for arm, lines in (("A", of_a), ("B", of_b)) for line in lines]
