"""Build the table of `expect`: the layers as intended and as measured."""

from __future__ import annotations

from orchestrator.analysis.comparison import Comparison
from orchestrator.analysis.formatting import grouped_notes, low_to_high, number
from orchestrator.analysis.late_changes import late_names
from orchestrator.analysis.sections.section import Section, TableCell
from orchestrator.experiments.decision import ALPHA, FEWEST_PAIRS


def verdicts(c: Comparison) -> Section:
    """Return every line of `expect` with its numbers and verdict; no rows where nothing is expected."""
    rows: list[list[TableCell]] = []
    late = late_names(c.experiment, "expect")
    for e in c.expectations:
        digits = 1 if max((abs(v) for v in e.values.values() if v is not None), default=0.0) > 1 else 2
        figures = [number(e.mean, digits), low_to_high(e.low, e.high, digits), f"{e.holding} of {e.n}"]
        beside = [number(e.untrained, digits), "" if e.arm == c.baseline else number(e.baseline, digits)]
        rows.append([e.wanted + (" (added afterwards)" if e.wanted in late else ""), *figures, *beside, e.verdict])
    notes = [
        "The number of a role is the share of the line's layers that have it; centre (0 = first layer, 1 = last) and "
        f"budget are of positions above the robust threshold. Then: the number at step 0 and in {c.baseline}.",
        "Delivered: the interval of the mean lies inside the bounds, and so do significantly more than half of the "
        f"seeds (sign test, p ≤ {ALPHA}: all of {FEWEST_PAIRS} to 9; 9 of 10). Not delivered: both outside.",
    ]
    if len(rows) > 1:
        notes.append("Each line is tested alone: of twenty that hold in half of all seeds, chance may deliver one.")
    notes += grouped_notes(
        ((e.wanted, e.sentence) for e in c.expectations), everything=len(rows) if len(rows) > 1 else None
    )
    steps = dict.fromkeys(str(e.step) for e in c.expectations if e.step is not None)
    when = f"step {', '.join(steps)}" if steps else "no step"
    columns = ["wanted", "mean", "95 % interval", "seeds", "step 0", c.baseline, "verdict"]
    heads = ("mean", "interval", "seeds", "mean", "mean", "verdict")
    terms = {head: f"expect_{name}" for head, name in zip(columns[1:], heads, strict=True)}
    return Section(f"Intended organisation: complete cells at {when}", columns, rows, notes, terms)
