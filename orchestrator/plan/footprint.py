"""Estimate the bytes that a cell writes besides checkpoints: metrics log, readings, interventions and W&B run."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from orchestrator.config.schema import TrackerMode
from orchestrator.forensics.render.row import reading_row
from orchestrator.plan.arm import ArmPlan
from orchestrator.plan.benchmark import Benchmark
from orchestrator.tracking.rows import record_row
from orchestrator.tracking.run import MANY

# A W&B row is protobuf: per item its name, its value as JSON and about 8 bytes; three items that W&B adds; and a
# summary record that repeats every item outside `MANY`.
ITEM, ROW = 8, 90
RUN = 22_000  # bytes of a run's log besides its rows: configuration, metrics, the last summary
KEY = 120  # bytes of the key in a reading
COPIES = 3  # of a table: one as the row's media, two as a staged artifact
TABLE_VALUE = 17  # bytes of one value of a table in JSON
BESIDE, SIDECAR = 16, 9  # values per layer besides its measures in `layers` and `role_migration`; per sidecar unit
FIGURES = 70_000  # bytes of a cell's figures without points
POINT = 25  # bytes of one point of a figure, with its hover text
PER_LAYER = 11  # points per layer and reading in all figures
DAMAGE = 11  # values of a row of the table `damage`
NUMBER = 1.2345678901234567  # as long in JSON as a double can be


@dataclass(frozen=True)
class Footprint:
    """Bytes of one cell's files and W&B run."""

    metrics: int
    readings: int
    interventions: int
    rows: int  # number of W&B rows
    log: int  # of those rows
    tables: int  # W&B tables
    figures: int

    @property
    def wandb(self) -> int:
        return self.log + self.tables + self.figures


def footprint_of(plan: ArmPlan, benchmark: Benchmark) -> Footprint:
    """Return the footprint, from the sizes of one record and of one reading."""
    reading = benchmark.reading_of(plan.spec)
    record, heldout, decision = _record(plan)
    counts = (len(plan.records), len(plan.evaluations), plan.decisions)
    parts = (record, {"heldout": heldout}, {"sidecar": decision})
    metrics = sum(count * _json(part) for count, part in zip(counts, parts, strict=True))
    readings = len(plan.readings) * (len(json.dumps(reading.to_json(), indent=1)) + KEY)
    interventions = len(plan.interventions) * _json(_intervention(plan), indent=1)
    if plan.config.tracker.mode == TrackerMode.off:
        return Footprint(metrics, readings, interventions, rows=0, log=0, tables=0, figures=0)
    rows = len(plan.records) + len(plan.readings) + 2
    logged = [record_row(part) for part in parts] + [reading_row(reading)]
    items = sum(n * _items(row) for n, row in zip((*counts, len(plan.readings)), logged, strict=True))
    layers, units = len(plan.readings) * len(plan.spec.layers), sum(map(len, plan.units.values()))
    changed = len(plan.interventions) * len(plan.spec.layers)
    rises = changed * len(plan.config.interventions.edits) * len(plan.config.data.domains)
    measured = len(reading.layers[0].measures) + BESIDE
    return Footprint(
        metrics,
        readings,
        interventions,
        rows,
        log=RUN + rows * ROW + items,
        tables=COPIES * TABLE_VALUE * (layers * measured + units * SIDECAR + rises * DAMAGE),
        figures=FIGURES + POINT * (layers * PER_LAYER + changed + plan.decisions * units),
    )


def _record(plan: ArmPlan) -> tuple[dict[str, Any], dict[str, float], dict[str, Any]]:
    """Return a record of the metrics log, and two parts that only some have: held-out losses, a sidecar's decision."""
    record = {
        "step": plan.config.train.steps, "tokens": plan.tokens, "lr": NUMBER, "loss": NUMBER,
        "grad_norm": NUMBER, "digest": "0" * 64, "seconds": 12345.678, "tokens_per_second": 12345.6,
        "mfu": 0.1234, "attempt": 1,
    }  # fmt: skip
    heldout = dict.fromkeys(plan.config.data.domains, NUMBER)
    each = dict.fromkeys(plan.units, NUMBER)
    summary = dict.fromkeys(("min", "mean", "max", "at_bound"), NUMBER)
    rewards = dict.fromkeys(("reward", "baseline", "deviation", "advantage"), NUMBER)
    decision = {
        "step": plan.config.train.steps, **rewards, "evaluations": 12345, "backwards": 12345, "sigma": each,
        "entropy": each, "summary": dict.fromkeys(plan.units, summary),
        "values": {channel: dict.fromkeys(units, NUMBER) for channel, units in plan.units.items()},
    }  # fmt: skip
    return record, heldout, decision


def _intervention(plan: ArmPlan) -> dict[str, Any]:
    """Return the interventions on one checkpoint, as long as they are in JSON."""
    config = plan.config
    domains = list(config.data.domains)
    result = dict.fromkeys(("mean", "low", "high", "kl", "breadth", "lengthening"), NUMBER)
    damage = {edit.value: dict.fromkeys(domains, result) for edit in config.interventions.edits}
    layer = {
        "layer": 10, "role": "specialist", "margin": NUMBER, "relative_write": NUMBER, "block_influence": NUMBER,
        "damage": damage,
    }  # fmt: skip
    counts = dict.fromkeys(domains, 12345)
    return {"key": "0" * KEY, "documents": counts, "tokens": counts, "layers": [layer] * len(plan.spec.layers)}


def _items(row: dict[str, Any]) -> int:
    """Return the bytes of a row's items; those that the summary repeats count twice."""
    sizes = {name: len(name) + _json(value) + ITEM for name, value in row.items()}
    return sum(size * (1 if name.split("/")[0] in MANY else 2) for name, size in sizes.items())


def _json(value: Any, indent: int | None = None) -> int:
    return len(json.dumps(value, indent=indent)) + 1
