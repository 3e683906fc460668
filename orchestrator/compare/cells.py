"""An experiment directory as its own files tell it: arms × seeds, each cell with ledger and readings."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from orchestrator import ledger
from orchestrator.errors import UserError
from orchestrator.manifest import Entry, Manifest


@dataclass(frozen=True)
class Cell:
    """One arm at one seed. `missing` says why it cannot be compared; null where it is complete."""

    arm: str
    seed: int
    path: Path
    ledger: list[dict[str, Any]]  # ascending steps
    readings: dict[int, dict[str, Any]]  # step → forensics result, ascending steps
    missing: str | None

    @property
    def label(self) -> str:
        return f"{self.arm}/seed={self.seed}"

    @property
    def last_reading(self) -> dict[str, Any] | None:
        return self.readings[max(self.readings)] if self.readings else None


@dataclass(frozen=True)
class Experiment:
    """What was asked and what there is. The first arm is the baseline."""

    path: Path
    name: str
    question: str
    arms: list[str]
    seeds: list[int]
    declared: list[str]
    parameters: dict[str, int]  # arm → number of parameters, where experiment.yaml records it
    cells: list[Cell]  # arm by arm, seed by seed

    def cell(self, arm: str, seed: int) -> Cell:
        return next(c for c in self.cells if (c.arm, c.seed) == (arm, seed))


def read_experiment(path: Path) -> Experiment:
    """Every cell that `experiment.yaml` names, whatever became of it.

    Raises `UserError` where the directory is not an experiment or one of its files cannot be read.
    """
    source = path / "experiment.yaml"
    if not source.is_file():
        raise UserError(f"{path} holds no experiment.yaml: name an experiment's directory, such as outputs/<name>.")
    try:
        # libyaml where it is there: the recorded git diff is one long scalar, slow to scan in Python
        spec = yaml.load(source.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError as error:
        raise UserError(f"{source} is not YAML ({error}): restore it or run the experiment again.") from error
    if not isinstance(spec, dict) or not spec.get("arms") or not spec.get("seeds"):
        raise UserError(f"{source} names no arms or no seeds: there is nothing to compare.")
    arms, seeds = [str(arm) for arm in spec["arms"]], [int(seed) for seed in spec["seeds"]]
    last = Manifest(path).last()
    models = spec.get("models") or {}
    return Experiment(
        path=path,
        name=str(spec.get("name") or path.name),
        question=str(spec.get("question") or ""),
        arms=arms,
        seeds=seeds,
        declared=[str(key) for key in spec.get("declared") or []],
        parameters={arm: int(models[arm]["params"]) for arm in arms if arm in models},
        cells=[
            read_cell(path / arm / f"seed={seed}", arm, seed, last.get(f"{arm}/seed={seed}"))
            for arm in arms
            for seed in seeds
        ],
    )


def read_cell(path: Path, arm: str, seed: int, entry: Entry | None = None) -> Cell:
    """The cell in `path`; `entry`, the manifest's last word on it, explains a missing end."""
    records = ledger.read(path / "ledger.jsonl")
    readings = [read_json(file) for file in (path / "forensics").glob("step_*.json")]
    by_step = {reading["step"]: reading for reading in sorted(readings, key=lambda r: r["step"])}
    return Cell(arm, seed, path, records, by_step, _missing(records, entry))


def _missing(records: list[ledger.Record], entry: Entry | None) -> str | None:
    """Why a cell with this ledger cannot be compared, or null."""
    final = records[-1] if records else {}
    if "test" not in final:
        if not final and entry is None:
            return "never started"
        state = "unfinished" if entry is None or entry.state == "done" else entry.state
        where = f"at step {final['step']}" if final else "before its first record"
        return f"{state} {where}" + (f": {entry.reason}" if entry and entry.reason else "")
    for split in ("heldout", "test"):
        for domain, loss in final.get(split, {}).items():
            if not math.isfinite(loss):
                return f"its final {split} loss on {domain} is {loss}"
    return None


def read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not JSON ({error}): delete it and run the experiment again.") from error
