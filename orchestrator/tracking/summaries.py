"""Readings, cells and comparisons as rows and summaries of W&B.

A run ends with a summary, each entry of which is a column in W&B's table of runs.
"""

from __future__ import annotations

from collections import Counter

from models.spec import num_params
from orchestrator.analysis import Comparison
from orchestrator.analysis.cells import CellResult
from orchestrator.analysis.conservation import REFERENCES
from orchestrator.analysis.flops import spent
from orchestrator.analysis.migration import STATES, state
from orchestrator.analysis.pairs import MEAN, METRICS, domains_of, losses, shown, validation_curves
from orchestrator.experiments.experiment import decoder_spec
from orchestrator.forensics.reading import Reading, centre, profile, roles_of, total
from orchestrator.tracking.rows import PER_LAYER, STEP, Row, without_dots


def reading_row(reading: Reading) -> Row:
    """The row of a reading: role counts, budgets and their centres, and per layer scores, margin and headlines."""
    row: Row = {f"roles/{role}": count for role, count in _role_counts(reading).items()}
    row |= reading.totals
    row |= {f"centre/{name}": centre(b) for name in REFERENCES if (b := profile(reading, name)) is not None}
    row["pathology"] = len(reading.pathology)
    for layer in reading.layers:
        values = {f"score_{role}": score for role, score in layer.scores.items()} | {"margin": layer.margin}
        values |= {name: layer.measures.get(name) for name in PER_LAYER}
        row |= {f"{name}/layer_{layer.layer:02d}": value for name, value in values.items()}
    return without_dots({f"forensics/{name}": value for name, value in row.items()})


def cell_summary(cell: CellResult) -> Row:
    """A cell's losses (nats/token), roles and budgets at its newest reading, and its cost."""
    row: Row = {"parameters": num_params(decoder_spec(cell.config))}
    if cell.metrics:
        last = cell.metrics[-1]
        row |= {"step": last["step"], "tokens": last.get("tokens"), "flops": spent(cell)[last["step"]]}
    if cell.missing is None:
        row |= {f"{metric}/{domain}": x for (metric, domain), x in losses(cell, domains_of([cell])).items()}
    if (reading := cell.last_reading) is not None:
        row |= {f"roles/{role}": count for role, count in _role_counts(reading).items()}
        row["pathology"] = len(reading.pathology)
        for reference in REFERENCES:
            if (budget := profile(reading, reference)) is not None:
                row[f"budget/{reference}"] = float(budget.sum())
                row[f"budget_by_chance/{reference}"] = total(reading, f"{reference}_expected")
                row[f"centre/{reference}"] = centre(budget)
    return without_dots({f"final/{name}": value for name, value in row.items()})


def comparison_summary(c: Comparison) -> Row:
    """Every arm compared with the baseline, as `arm/<arm>/…`; the first arm also as `pair/…`.

    Names with `pair/` contain no arm, so that experiments with different arms share these columns.
    """
    row: Row = {"pairs": len(c.pairs), "left_out": len(c.left_out), "baseline": c.baseline}
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
    """Held-out loss of every arm minus the baseline's over training, mean over the pairs: `delta/<arm>/<domain>`."""
    rows: dict[int, Row] = {}
    for arm in c.compared:
        curves = [
            tuple({d: dict(curve) for d, curve in validation_curves(x, c.domains).items()} for x in (pair.a, pair.b))
            for pair in c.pairs
            if pair.arm == arm
        ]
        for domain in shown(c.domains):
            gaps = [{s: b[domain][s] - a[domain][s] for s in a[domain] if s in b[domain]} for a, b in curves]
            for step in gaps[0]:
                if all(step in gap for gap in gaps):
                    mean = sum(gap[step] for gap in gaps) / len(gaps)
                    rows.setdefault(step, {STEP: step})[f"delta/{arm}/{domain}"] = mean
    return [without_dots(rows[step]) for step in sorted(rows)]


def _compared_with_baseline(c: Comparison, arm: str) -> Row:
    """Losses, budgets, their centres, roles and the layers' spread: a (baseline), b (`arm`), Δ, interval, verdict."""
    row: Row = {"n": sum(pair.arm == arm for pair in c.pairs)}
    for r in (r for r in c.statistics if r.arm == arm):
        if r.domain == MEAN or r.metric == METRICS[0]:
            name = r.metric if r.domain == MEAN else f"{r.metric}/{r.domain}"
            row |= {f"{name}/{key}": getattr(r, key) for key in ("a", "b", "delta", "low", "high", "verdict")}
            row[f"{name}/p"] = r.p_adjusted
    for s in (s for s in c.conservation if s.arm == arm):
        row |= {
            f"budget/{s.reference}/{key}": value
            for key, value in (
                ("a", s.budget_a), ("b", s.budget_b), ("ratio", s.ratio), ("low", s.low), ("high", s.high),
                ("distance", s.distance), ("verdict", s.verdict), ("a_by_chance", s.expected_a),
                ("b_by_chance", s.expected_b), ("ratio_by_chance", s.chance_ratio),
            )
        }  # fmt: skip
        row |= {
            f"centre/{s.reference}/{key}": value
            for key, value in (
                ("a", s.centre_a), ("b", s.centre_b), ("delta", s.centre_shift), ("low", s.centre_low),
                ("high", s.centre_high), ("p", s.centre_p),
            )
        }  # fmt: skip
    for shift in (shift for shift in c.role_shifts if shift.arm == arm):
        row |= {f"role_shift/{key}": getattr(shift, key) for key in ("distance", "p", "smallest_p")}
    for t in (t for t in c.symmetry if t.arm == arm):
        row |= {f"attention_spread/{key}": getattr(t, key) for key in ("a", "b", "delta", "low", "high", "p")}
    return row


def _role_counts(reading: Reading) -> dict[str, int]:
    """Role → number of layers; a layer with no role or two counts as `tie`."""
    counts = Counter(map(state, roles_of(reading)))
    return {role: counts[role] for role in STATES}
