"""Bytes beside the checkpoints: what a cell writes to its metrics log, its readings, and W&B."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from orchestrator.config.schema import TrackerMode
from orchestrator.plan.arm import ArmPlan
from orchestrator.plan.sample import Sample
from orchestrator.tracking.rows import reading_row, record_row
from orchestrator.tracking.run import MANY

# A row of W&B's log is protobuf: the name and the value as JSON of every item and about 8 bytes about them, three items
# of its own, and a summary record that repeats the items whose last value is shown (all but those of `MANY`).
ITEM, ROW = 8, 90
RUN = 22_000  # bytes of a run's log beside its rows: configuration, metrics, the last summary
KEY = 120  # bytes of the key under which a reading is filed
COPIES = 3  # of a table: as media of the row, and twice staged as an artifact
TABLE_VALUE = 17  # bytes of one value of a table in JSON
BESIDE, SIDECAR = 16, 9  # values of one layer beside its measures, in `layers` and `role_migration`; of one unit
FIGURES = 70_000  # bytes of a cell's figures, without what grows with the readings and the sidecar's decisions
POINT = 25  # bytes of one value that a figure draws, with what its hover says
PER_LAYER = 11  # such values of one layer at one reading, over all figures
DOMAIN_LOSS = 1.2345678901234567  # stands for any number of double precision


@dataclass(frozen=True)
class Volume:
    """Of one cell; bytes, but for the rows."""

    metrics: int
    readings: int
    rows: int  # of W&B
    log: int  # those rows
    tables: int  # in W&B
    figures: int

    @property
    def wandb(self) -> int:
        return self.log + self.tables + self.figures


def volume(plan: ArmPlan, sample: Sample) -> Volume:
    """What one cell writes, by the sizes of a record and of a reading made as the run makes them."""
    reading = sample.reading_of(plan.spec)
    record, heldout, decision = _record(plan)
    counts = (len(plan.records), len(plan.evaluations), plan.decisions)
    parts = (record, {"heldout": heldout}, {"sidecar": decision})
    ledger = sum(count * _json(part) for count, part in zip(counts, parts, strict=True))
    readings = len(plan.readings) * (len(json.dumps(reading, indent=1)) + KEY)
    if plan.config.tracker.mode == TrackerMode.off:
        return Volume(ledger, readings, rows=0, log=0, tables=0, figures=0)
    rows = len(plan.records) + len(plan.readings) + 2
    logged = [record_row(part) for part in parts] + [reading_row(reading)]
    items = sum(n * _items(row) for n, row in zip((*counts, len(plan.readings)), logged, strict=True))
    layers, units = len(plan.readings) * len(plan.spec.layers), sum(map(len, plan.units.values()))
    measured = len(reading["layers"][0]["measures"]) + BESIDE
    return Volume(
        ledger,
        readings,
        rows,
        log=RUN + rows * ROW + items,
        tables=COPIES * TABLE_VALUE * (layers * measured + units * SIDECAR),
        figures=FIGURES + POINT * (layers * PER_LAYER + plan.decisions * units),
    )


def _record(plan: ArmPlan) -> tuple[dict[str, Any], dict[str, float], dict[str, Any]]:
    """A metrics log's record, and what some have beside: held-out losses, a decision of the sidecar."""
    record = {
        "step": plan.config.train.steps, "tokens": plan.tokens, "lr": DOMAIN_LOSS, "loss": DOMAIN_LOSS,
        "grad_norm": DOMAIN_LOSS, "digest": "0" * 64, "seconds": 12345.678, "tokens_per_second": 12345.6, "attempt": 1,
    }  # fmt: skip
    heldout = dict.fromkeys(plan.config.data.domains, DOMAIN_LOSS)
    each = dict.fromkeys(plan.units, DOMAIN_LOSS)
    summary = dict.fromkeys(("min", "mean", "max", "at_bound"), DOMAIN_LOSS)
    told = dict.fromkeys(("reward", "baseline", "deviation", "advantage"), DOMAIN_LOSS)
    decision = {
        "step": plan.config.train.steps, **told, "evaluations": 12345, "backwards": 12345, "sigma": each,
        "entropy": each, "summary": dict.fromkeys(plan.units, summary),
        "values": {channel: dict.fromkeys(units, DOMAIN_LOSS) for channel, units in plan.units.items()},
    }  # fmt: skip
    return record, heldout, decision


def _items(row: dict[str, Any]) -> int:
    """Bytes of a row's items, of those that a summary repeats twice."""
    sizes = {name: len(name) + _json(value) + ITEM for name, value in row.items()}
    return sum(size * (1 if name.split("/")[0] in MANY else 2) for name, size in sizes.items())


def _json(value: Any) -> int:
    return len(json.dumps(value)) + 1
