"""Make W&B's rows: metric name → plain value, logged at a step.

Rows that need the analysis (pandas, scipy) are in `summaries`, which a tracker that is off never imports.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

STEP, READING = "step", "forensics/step"  # the axes of metrics and of readings
TIMING = ("seconds", "tokens_per_second", "mfu", "attempt")
LONGEST_TAG = 64  # characters that W&B accepts

Row = dict[str, Any]


def record_row(record: dict[str, Any]) -> Row:
    """Return the row of a metrics record: `train/loss`, `heldout/<domain>`, `time/seconds`, …"""
    row: Row = {}
    for key, value in record.items():
        if isinstance(value, dict):
            row |= {f"{key}/{name}": leaf for name, leaf in _leaves(value) if name != STEP}
        elif key not in (STEP, "digest", "trunk") and value is not None:
            row[f"{'time' if key in TIMING else 'train'}/{key}"] = value
    return without_dots(row)


def tags(*labels: str) -> list[str]:
    """Return `labels` as W&B accepts them: unique, not empty, not too long."""
    return list(dict.fromkeys(label[:LONGEST_TAG] for label in labels if label))


def without_dots(row: Row) -> Row:
    """Return the values of `row` that are not None, with `_` for every dot in a name.

    W&B reads a dot as nesting, so `group/*` would not match. Where two names become equal (arms `v1.5` and `v1_5`), the
    later one gets one more `_`.
    """
    renamed: Row = {}
    for name, value in row.items():
        if value is not None:
            plain = name.replace(".", "_")
            while plain in renamed:
                plain += "_"
            renamed[plain] = value
    return renamed


def _leaves(node: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, dict):
            yield from ((f"{key}/{name}", leaf) for name, leaf in _leaves(value))
        elif value is not None:
            yield key, value
