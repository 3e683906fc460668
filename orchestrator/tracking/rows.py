"""What metrics records, readings, cells and comparisons are called in W&B: metric name → plain value.

A row is logged at a step; a summary is what a run ends with, and a column each in W&B's table of runs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orchestrator.analysis import Comparison
    from orchestrator.analysis.cells import CellResult
    from orchestrator.forensics.reading import Reading

# The comparison's modules (pandas, scipy) are imported where they are used: a tracker that is off does without.

STEP, READING = "step", "forensics/step"  # the two axes; each kind of row has its own
TIMING = ("seconds", "tokens_per_second", "attempt")
PER_LAYER = ("cv", "saturated_robust", "effective_rank.o", "attention_share", "momentum_alignment.down")
LONGEST_TAG = 64  # characters that W&B takes

Row = dict[str, Any]


def record_row(record: dict[str, Any]) -> Row:
    """A metrics record: `train/loss`, `heldout/<domain>`, `time/seconds`, …"""
    row: Row = {}
    for key, value in record.items():
        if isinstance(value, dict):
            row |= {f"{key}/{name}": leaf for name, leaf in _leaves(value) if name != STEP}
        elif key not in (STEP, "digest") and value is not None:
            row[f"{'time' if key in TIMING else 'train'}/{key}"] = value
    return _named(row)


def reading_row(reading: Reading) -> Row:
    """A reading: role counts, budgets and their centres, and per layer scores, margin and headlines."""
    from orchestrator.analysis.conservation import REFERENCES
    from orchestrator.forensics.reading import centre, profile

    row: Row = {f"roles/{role}": count for role, count in _role_counts(reading).items()}
    row |= reading.totals
    row |= {f"centre/{name}": centre(b) for name in REFERENCES if (b := profile(reading, name)) is not None}
    row["pathology"] = len(reading.pathology)
    for layer in reading.layers:
        values = {f"score_{role}": score for role, score in layer.scores.items()} | {"margin": layer.margin}
        values |= {name: layer.measures.get(name) for name in PER_LAYER}
        row |= {f"{name}/layer_{layer.layer:02d}": value for name, value in values.items()}
    return _named({f"forensics/{name}": value for name, value in row.items()})


def cell_summary(cell: CellResult) -> Row:
    """What a cell came to: losses (nats/token), roles and budgets at its newest reading, and what it cost."""
    from models.transformer import num_params
    from orchestrator.analysis.conservation import REFERENCES
    from orchestrator.analysis.flops import spent
    from orchestrator.analysis.pairs import domains_of, losses
    from orchestrator.experiments.experiment import decoder_spec
    from orchestrator.forensics.reading import centre, profile, total

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
    return _named({f"final/{name}": value for name, value in row.items()})


def comparison_summary(c: Comparison) -> Row:
    """Every arm beside the baseline, as `arm/<arm>/…`; the first of them also as `pair/…`.

    The latter have no arm in their names, so that experiments with other arms share the columns.
    """
    row: Row = {"pairs": len(c.pairs), "left_out": len(c.left_out), "baseline": c.baseline}
    for index, arm in enumerate(c.compared):
        found = _beside_baseline(c, arm)
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
    return _named(row)


def delta_rows(c: Comparison) -> list[Row]:
    """Held-out loss of every arm minus the baseline's over training, mean over the pairs: `delta/<arm>/<domain>`."""
    from orchestrator.analysis.pairs import shown, validation_curves

    rows: dict[int, Row] = {}
    for arm in c.compared:
        own = [
            tuple({d: dict(curve) for d, curve in validation_curves(x, c.domains).items()} for x in (pair.a, pair.b))
            for pair in c.pairs
            if pair.arm == arm
        ]
        for domain in shown(c.domains):
            gaps = [{s: b[domain][s] - a[domain][s] for s in a[domain] if s in b[domain]} for a, b in own]
            for step in gaps[0]:
                if all(step in gap for gap in gaps):
                    mean = sum(gap[step] for gap in gaps) / len(gaps)
                    rows.setdefault(step, {STEP: step})[f"delta/{arm}/{domain}"] = mean
    return [_named(rows[step]) for step in sorted(rows)]


def tags(*labels: str) -> list[str]:
    """Labels as W&B takes them: each once, none empty, none too long."""
    return list(dict.fromkeys(label[:LONGEST_TAG] for label in labels if label))


def _beside_baseline(c: Comparison, arm: str) -> Row:
    """Losses, budgets, their centres, roles and the layers' spread: a (baseline), b (`arm`), Δ, interval, verdict."""
    from orchestrator.analysis.pairs import MEAN, METRICS

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
    """How many layers have each role, none or two counted as `tie`."""
    from orchestrator.analysis.migration import STATES, state
    from orchestrator.forensics.reading import roles_of

    counts = Counter(map(state, roles_of(reading)))
    return {role: counts[role] for role in STATES}


def _named(row: Row) -> Row:
    """What is known, under names without a dot: W&B takes one for nesting, and no `group/*` then matches.

    Of names that then are one (arms `v1.5` and `v1_5`), the later ones end in as many more `_`.
    """
    named: Row = {}
    for name, value in row.items():
        if value is not None:
            plain = name.replace(".", "_")
            while plain in named:
                plain += "_"
            named[plain] = value
    return named


def _leaves(node: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, dict):
            yield from ((f"{key}/{name}", leaf) for name, leaf in _leaves(value))
        elif value is not None:
            yield key, value
