"""Make W&B's rows and summaries of cells and comparisons.

A run ends with a summary, whose entries are columns in W&B's table of runs.
"""

from __future__ import annotations

from collections import Counter

from models.spec import num_params
from orchestrator.analysis import Comparison
from orchestrator.analysis.cells import CellResult
from orchestrator.analysis.conservation import REFERENCES, REGIONS
from orchestrator.analysis.flops import spent
from orchestrator.analysis.pairs import MEAN, METRICS, domains_of, loss_gaps, losses
from orchestrator.analysis.sections.costs import verdict_cost, whole_cost
from orchestrator.experiments.experiment import decoder_spec
from orchestrator.forensics.reading import centre, profile, total
from orchestrator.forensics.render.row import role_counts
from orchestrator.tracking.rows import STEP, Row, without_dots

# entries of an arm's summary → fields of `Conservation`
BUDGET = {
    "a": "budget_a", "b": "budget_b", "ratio": "ratio", "low": "low", "high": "high", "distance": "distance",
    "verdict": "verdict", "a_by_chance": "expected_a", "b_by_chance": "expected_b", "p": "p",
    "layers_a": "layers_a", "layers_b": "layers_b", "moved_p": "moved_p",
}  # fmt: skip
CENTRE = {
    "a": "centre_a", "b": "centre_b", "delta": "centre_shift", "low": "centre_low", "high": "centre_high",
    "p": "centre_p",
}  # fmt: skip


def cell_summary(cell: CellResult) -> Row:
    """Return a cell's losses (nats/token), roles and budgets at its newest reading, and its cost."""
    row: Row = {"parameters": num_params(decoder_spec(cell.config))}
    if cell.metrics:
        last = cell.metrics[-1]
        row |= {"step": last["step"], "tokens": last.get("tokens"), "flops": spent(cell)[last["step"]]}
    if cell.missing is None:
        row |= {f"{metric}/{domain}": x for (metric, domain), x in losses(cell, domains_of([cell])).items()}
    if (reading := cell.last_reading) is not None:
        row |= {f"roles/{role}": count for role, count in role_counts(reading).items()}
        row["pathology"] = len(reading.pathology)
        for reference in REFERENCES:
            if (budget := profile(reading, reference)) is not None:
                row[f"budget/{reference}"] = float(budget.sum())
                row[f"budget_by_chance/{reference}"] = total(reading, f"{reference}_expected")
                row[f"centre/{reference}"] = centre(budget)
    return without_dots({f"final/{name}": value for name, value in row.items()})


def comparison_summary(c: Comparison) -> Row:
    """Return every arm's comparison with the baseline as `arm/<arm>/…`, the first arm's also as `pair/…`.

    Names in `pair/` contain no arm, so that experiments with different arms share their columns.
    """
    row: Row = {"pairs": len(c.pairs), "left_out": len(c.left_out), "baseline": c.baseline}
    row |= {f"cost/{key}": value for key, value in vars(whole_cost(c)).items()}
    for arm in c.experiment.arms:
        finals = [losses(cell, c.domains) for cell in c.cells_of(arm) if cell.missing is None]
        if values := [found[METRICS[0], MEAN] for found in finals if (METRICS[0], MEAN) in found]:
            row[f"{METRICS[0]}/{arm}"] = sum(values) / len(values)
    for index, arm in enumerate(c.compared):
        found = _compared_with_baseline(c, arm)
        row |= {f"arm/{arm}/{name}": value for name, value in found.items()}
        if index == 0:
            row |= {"pair/arm": arm, **{f"pair/{name}": value for name, value in found.items()}}
    if c.expectations:  # lines of all arms
        verdicts = Counter(one.verdict for one in c.expectations)
        row |= {"expect/of": len(c.expectations), "expect/delivered": verdicts["delivered"]}
        row["expect/not_delivered"] = verdicts["not delivered"]
    for one in c.contrasts:
        name = f"contrast/{one.contrast}/{one.metric}"
        row |= {f"{name}/{key}": getattr(one, key) for key in ("value", "low", "high", "verdict")}
        row[f"{name}/p"] = one.p_adjusted
    return without_dots(row)


def delta_rows(c: Comparison) -> list[Row]:
    """Return rows of each arm's held-out loss minus the baseline's, mean over the pairs: `delta/<arm>/<domain>`."""
    rows: dict[int, Row] = {}
    for arm in c.compared:
        for domain, gaps in loss_gaps(c.pairs, arm, c.domains).items():
            for step in gaps[0]:
                if all(step in gap for gap in gaps):
                    mean = sum(gap[step] for gap in gaps) / len(gaps)
                    rows.setdefault(step, {STEP: step})[f"delta/{arm}/{domain}"] = mean
    return [without_dots(rows[step]) for step in sorted(rows)]


def _compared_with_baseline(c: Comparison, arm: str) -> Row:
    """Return losses, budgets, centres, roles and spread: of a (baseline), b (`arm`), Δ, interval and verdict."""
    row: Row = {"n": sum(pair.arm == arm for pair in c.pairs)}
    row |= {f"cost/{key}": value for key, value in vars(verdict_cost(c, arm)).items()}
    for r in (r for r in c.statistics if r.arm == arm):
        if r.domain == MEAN or r.metric == METRICS[0]:
            name = r.metric if r.domain == MEAN else f"{r.metric}/{r.domain}"
            row |= {f"{name}/{key}": getattr(r, key) for key in ("a", "b", "delta", "low", "high", "verdict")}
            row[f"{name}/p"] = r.p_adjusted
    for s in (s for s in c.conservation if s.arm == arm):
        of = s.reference if s.region == REGIONS[0] else f"{s.reference}_{s.region}"
        row |= {f"budget/{of}/{key}": getattr(s, name) for key, name in BUDGET.items()}
        row |= {f"centre/{of}/{key}": getattr(s, name) for key, name in CENTRE.items()}
    for shift in (shift for shift in c.role_shifts if shift.arm == arm):
        row |= {f"role_shift/{key}": getattr(shift, key) for key in ("distance", "p", "smallest_p")}
    for t in (t for t in c.symmetry if t.arm == arm):
        row |= {f"attention_spread/{key}": getattr(t, key) for key in ("a", "b", "delta", "low", "high", "p")}
    return row
