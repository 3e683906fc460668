"""What the body should become beside what it became: the summary's table of `expect`."""

from __future__ import annotations

from orchestrator.analysis.comparison import Comparison
from orchestrator.analysis.expectations import least_seeds
from orchestrator.analysis.sections.section import Cell, Section
from orchestrator.analysis.stated import stated_afterwards
from orchestrator.analysis.statistics import ALPHA
from orchestrator.analysis.wording import number, span


def delivery(c: Comparison) -> Section:
    """Every line of `expect` with its figures and verdict; no rows where nothing is expected."""
    rows: list[list[Cell]] = []
    late = stated_afterwards(c.experiment, "expect")
    said: dict[str, list[str]] = {}  # sentence → what it is said of
    for e in c.expectations:
        digits = 1 if max((abs(v) for v in e.values.values() if v is not None), default=0.0) > 1 else 2
        figures = [number(e.mean, digits), span(e.low, e.high, digits), f"{e.holding} of {e.n}"]
        beside = [number(e.untrained, digits), "" if e.arm == c.baseline else number(e.baseline, digits)]
        name = e.wanted + (" (stated afterwards)" if e.wanted in late else "")
        rows.append([name, *figures, *beside, e.verdict])
        if e.sentence:
            said.setdefault(e.sentence, []).append(e.wanted)
    notes = [
        "A role: the share of those layers that carry it. Centre (0 first layer, 1 last), budget: of positions over "
        f"the robust threshold. Beside the means at step 0 and of {c.baseline}.",
        f"Delivered: the mean's interval lies where it is wanted, and so do more seeds than even odds explain at "
        f"{ALPHA} in each direction (all of {least_seeds()}, 6 or 7; 7 of 8); not delivered: both lie outside.",
    ]
    if len(rows) > 1:
        notes.append("Every line is judged by itself: of twenty at even odds, up to one is called in each direction.")
    notes += [
        sentence if len(names) == len(rows) > 1 else f"{'; '.join(names)}: {sentence}"
        for sentence, names in said.items()
    ]
    steps = dict.fromkeys(str(e.step) for e in c.expectations if e.step is not None)
    when = f"step {', '.join(steps)}" if steps else "no step"
    columns = ["wanted", "mean", "95 % interval", "seeds", "step 0", c.baseline, "verdict"]
    heads = ("mean", "interval", "seeds", "mean", "mean", "verdict")
    terms = {head: f"expect_{name}" for head, name in zip(columns[1:], heads, strict=True)}
    return Section(f"Intended organisation: complete cells at {when}", columns, rows, notes, terms)
