"""Two readings side by side, layer by layer: the paper's A/B tables (SCIENCE §4)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from orchestrator.common.formatting import Column, FittedTable, counted, dash, labelled, page, ranges, signed
from orchestrator.forensics.architecture.holdings import USUAL
from orchestrator.forensics.measures.change import Changes
from orchestrator.forensics.reading import SCHEMA, LayerReport, Reading, rows_of
from orchestrator.forensics.render import terminal
from orchestrator.forensics.render.change import change_lines
from orchestrator.forensics.render.missing import missing

Pair = tuple[LayerReport, LayerReport]  # A's and B's layer of one index


@dataclass(frozen=True)
class SideBySide:
    """Two readings to compare, layer by layer."""

    a: Reading
    b: Reading
    change: Changes | None = None  # of the tensors that both have, from A to B

    @property
    def pairs(self) -> list[Pair]:
        """The layers of each index that both have."""
        return list(zip(self.a.layers, self.b.layers, strict=False))

    def to_json(self) -> dict[str, Any]:
        """Both readings, for each common index how the two layers differ, and the change of each common tensor."""
        layers = [compared(*pair) for pair in self.pairs]
        change = None if self.change is None else asdict(self.change)
        return {"schema": SCHEMA, "a": self.a.to_json(), "b": self.b.to_json(), "layers": layers, "change": change}


def compared(a: LayerReport, b: LayerReport) -> dict[str, Any]:
    """The roles of two layers, their flattening (cv A over cv B) and their main measures; null where absent."""
    row: dict[str, Any] = {"layer": a.layer, "role_a": a.role, "role_b": b.role}
    x, y = a.measures, b.measures
    x_cv, y_cv, x_rank, y_rank = x["cv"], y["cv"], x["effective_rank.o"], y["effective_rank.o"]
    row["flattening"] = x_cv / y_cv if x_cv is not None and y_cv else None
    row["effective_rank_o_delta"] = None if x_rank is None or y_rank is None else y_rank - x_rank
    for key in ("cv", "saturated", "saturated_robust", "max_abs", "effective_rank.o", "attention_share"):
        row |= {f"{key.replace('.', '_')}_a": x[key], f"{key.replace('.', '_')}_b": y[key]}
    return row


def rows(both: SideBySide) -> list[dict[str, Any]]:
    """CSV: one row per common layer; what `rows_of` gives of each model under `_a` and `_b`, and the comparison."""
    table = []
    for pair, *values in zip(both.pairs, rows_of(both.a), rows_of(both.b), strict=False):
        row = {key: compared(*pair)[key] for key in ("layer", "flattening", "effective_rank_o_delta")}
        for arm, of_arm in zip("ab", values, strict=True):
            row |= {f"{key}_{arm}": value for key, value in of_arm.items() if key != "layer"}
        table.append(row)
    return table


def report(both: SideBySide, seconds: float) -> Group:
    """All that is printed: the two models, the layers side by side, totals, both lists of findings."""
    heading = Table.grid(padding=(0, 2, 0, 0))
    for name, reading in (("A", both.a), ("B", both.b)):
        about_it = (f"  {terminal.about(reading)}", "dim")
        heading.add_row(Text(name, "bold"), Text.assemble((reading.source, "bold"), about_it, overflow="fold"))
    return page(heading, _headline(both), FittedTable(both.pairs, _columns(both)), _summary(both, seconds))


def _headline(both: SideBySide) -> Text:
    """A sentence that names the layers with another role in B."""
    a, b, pairs = both.a, both.b, both.pairs
    changed = [x.layer for x, y in pairs if terminal.settled(x.role) != terminal.settled(y.role)]
    verb = "has" if len(changed) == 1 else "have"
    text = Text(f"{len(changed)} of {counted(len(pairs), 'layer')} {verb} another role in B", "bold")
    text.append(f": {ranges(changed, 'L')}." if changed else ".", "not bold")
    if a.family != b.family:
        text.append(f" A is {a.family} and B {b.family}: two families are compared.", "not bold yellow")
    if len(a.layers) != len(b.layers):
        depths = f"{len(a.layers)} and {len(b.layers)}"
        text.append(f" A and B have {depths} layers: the first {len(pairs)} are compared, by index.", "not bold yellow")
    return text


def _both(key: str, form: str) -> Callable[[Pair], Text]:
    """The cells of a column that shows a measure of A → of B."""
    return lambda pair: terminal.arrow((layer.measures[key] for layer in pair), form)


def _flattening(pair: Pair) -> Text | str:
    """cv A over cv B, bold where one is more than half as large again as the other."""
    ratio = compared(*pair)["flattening"]
    return dash() if ratio is None else Text(f"{ratio:.2f}", "" if 1 / 1.5 < ratio < 1.5 else "bold")


def _rank(pair: Pair) -> Text | str:
    delta = compared(*pair)["effective_rank_o_delta"]
    return dash() if delta is None else signed(delta, 1)


COLUMNS = [  # of a table of `Pair`s
    Column("", lambda pair: str(pair[0].layer), 99),
    Column("holds", lambda pair: _held(pair), 98, False),
    Column("role A", lambda pair: terminal.role_text(pair[0]), 98, False),
    Column("role B", lambda pair: terminal.role_text(pair[1]), 98, False),
    Column("cv", _both("cv", ".2f"), 97, True, terminal.CV),
    Column("A/B", _flattening, 96, True, "cv A over cv B, above 1 where B is flatter"),
    Column("saturated", _both("saturated_robust", ",d"), 95, True, terminal.SATURATED.partition(" /")[0]),
    Column("Δ rank o", _rank, 94, True, "effective rank, B − A"),
    Column("max |w|", _both("max_abs", ".2f"), 92, True, "largest absolute entry of the layer's matrices"),
    Column("att.", _both("attention_share", ".2f"), 93, True, terminal.ATTENTION),
]


def _columns(both: SideBySide) -> list[Column]:
    """The table's columns; what the layers hold is among them where it is not the usual."""
    unusual = any(layer.holds not in ([], USUAL) for pair in both.pairs for layer in pair)
    return [column for column in COLUMNS if unusual or column.name != "holds"]


def _held(pair: Pair) -> Text:
    """The parts of the two layers, once where they are the same."""
    return Text(" → ", "dim").join(map(terminal.holds_text, dict.fromkeys(tuple(layer.holds) for layer in pair)))


def _summary(both: SideBySide, seconds: float) -> Table:
    a, b = both.a, both.b
    lines = {
        "roles": _per_model(a, b, lambda reading: [terminal.counts(reading, reading.scoring)]),
        "saturated": _per_model(a, b, lambda reading: terminal.totals(reading.totals)),
        "pathology": _per_model(a, b, terminal.pathology),
        "change": [] if both.change is None else change_lines(both.change),
        "assumed": _per_model(a, b, lambda reading: [*terminal.heads(reading), *terminal.assumed(reading)]),
        "missing": _per_model(a, b, missing),
        "time": [Text(f"both read in {seconds:.1f} s", "dim")],
    }
    return labelled(lines)


def _per_model(a: Reading, b: Reading, lines: Callable[[Reading], list[Text]]) -> list[Text]:
    """The lines of each model, once where both have the same."""
    of_a, of_b = lines(a), lines(b)
    found = [("A, B ", line) for line in of_a if line in of_b]
    found += [("A ", line) for line in of_a if line not in of_b] + [("B ", line) for line in of_b if line not in of_a]
    return [Text.assemble((arm, "bold"), line) for arm, line in found]
