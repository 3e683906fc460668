"""The losses of a run from a file: CSV, JSON or JSON lines."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

from orchestrator.common.errors import UserError
from orchestrator.common.shapes import one_line
from orchestrator.forensics.trajectory.loss_drops import Curve

CURE = "give a CSV, JSON or JSON lines file of records with a step and one or more columns named …loss…"


def read_losses(path: Path) -> dict[str, Curve]:
    """Column → curve, for every column whose name has `loss` in it; an absent or empty value is left out.

    Raises `UserError`, naming the file, for what is not that: no step, no such column, a step twice, no number.
    """
    try:
        records = _records(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({(error.strerror or one_line(error)).lower()}): {CURE}.") from error
    except (ValueError, RecursionError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as losses ({_reason(error, path)}): {CURE}.") from error
    curves: dict[str, dict[int, float]] = {}
    for index, record in enumerate(records):
        if not isinstance(record, dict) or "step" not in record:
            raise UserError(f"Record {index} of {path} has no step: {CURE}.")
        step = _number(record["step"], "step", index, path)
        for name, value in record.items():
            if "loss" in str(name).lower() and value not in (None, ""):
                curve = curves.setdefault(str(name), {})
                if int(step) in curve:
                    raise UserError(f"{path} has step {int(step)} twice in '{name}': keep one of them.")
                curve[int(step)] = _number(value, str(name), index, path)
    if not curves:
        raise UserError(f"{path} holds no loss: {CURE}.")
    return {name: sorted(curve.items()) for name, curve in curves.items()}


def _reason(error: Exception, path: Path) -> str:
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8"
    if isinstance(error, json.JSONDecodeError | RecursionError):
        return "a line of it is not JSON" if path.suffix == ".jsonl" else "it is not JSON"
    return one_line(error)


def _records(path: Path) -> list[Any]:
    with path.open(encoding="utf-8", newline="") as file:
        if path.suffix == ".csv":
            return list(csv.DictReader(file))
        text = file.read()
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    found = json.loads(text)
    if not isinstance(found, list):
        raise ValueError("it is no list of records")
    return found


def _number(value: Any, name: str, index: int, path: Path) -> float:
    try:
        found = float(value)
    except (TypeError, ValueError):
        found = math.nan
    if not math.isfinite(found) or (name == "step" and (found < 0 or found != int(found))):
        raise UserError(f"Record {index} of {path} has {name}={value!r}, which is no such number: correct it.")
    return found
