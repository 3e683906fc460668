"""An offline W&B run read back by W&B's own reader, and its tables from their files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd

WANDB = Path(sys.executable).with_name("wandb")


def runs_of(directory: Path) -> list[Path]:
    """The offline runs of a cell or of a comparison, oldest first."""
    return sorted((directory / "wandb").glob("offline-run-*"))


def inspect(run: Path) -> list[dict[str, Any]]:
    """Every record of a run's log, as `wandb leet inspect --json` prints them."""
    done = subprocess.run([WANDB, "leet", "inspect", "--json", run], capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def summary_of(run: Path) -> dict[str, Any]:
    """The summary that W&B's table of runs would show."""
    command = [WANDB, "leet", "inspect", "--summary", "--json", run]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)["summary"]


def of_kind(records: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [r[kind] for r in records if r["type"] == kind]


def rows_with(records: list[dict[str, Any]], key: str) -> list[dict[str, Any]]:
    return [h["item"] for h in of_kind(records, "history") if key in h["item"]]


def media_of(records: list[dict[str, Any]], group: str) -> dict[str, dict[str, Any]]:
    """Name → what its row says of it, for every table or figure of a run."""
    found: dict[str, dict[str, Any]] = {}
    for item in (h["item"] for h in of_kind(records, "history")):
        for key, value in item.items():
            if key.startswith(f"{group}/"):
                name, _, field = key.removeprefix(f"{group}/").partition(".")
                found.setdefault(name, {})[field] = value
    return found


def table_in(run: Path, media: dict[str, Any]) -> dict[str, Any]:
    """Columns and data of a table's file."""
    return json.loads((run / "files" / media["path"]).read_text())


def assert_same(table: dict[str, Any], expected: pd.DataFrame) -> None:
    """Columns, row count and every value; what a frame lacks is null."""
    assert table["columns"] == list(expected.columns)
    assert len(table["data"]) == len(expected)
    for row, record in zip(table["data"], expected.to_dict("records"), strict=True):
        for name, value in zip(table["columns"], row, strict=True):
            assert (value is None) if pd.isna(record[name]) else (value == record[name]), (name, value, record[name])
