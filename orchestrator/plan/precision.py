"""The smallest difference that an experiment's seeds can find, from the spread of pairs that are there already."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from orchestrator.common.errors import UserError
from orchestrator.config import load
from orchestrator.config.keys import differences
from orchestrator.config.schema import Config
from orchestrator.experiments.experiment import Experiment

SAME = ("model", "data", "train.steps", "train.batch_size", "train.seq_len")  # keys that a pilot shares
PRIMARY = {"metric": "test_loss", "domain": "mean"}


@dataclass(frozen=True)
class Pilot:
    """Pairs whose differences scatter as those of the planned experiment may."""

    directory: Path
    pairs: int  # of the arm with the most
    std: float  # of a pair's difference, nats/token, pooled over the arms
    loss: float  # of the baseline, nats/token


def pilot_of(experiment: Experiment) -> Pilot | None:
    """The experiment's own pairs, or else those of the newest experiment beside it that trains such a model."""
    (baseline, *_) = experiment.arms.values()
    own, *others = experiment.directory, *_newest_first(experiment.directory.parent)
    candidates = (own, *(path for path in others if path != own))
    return next((pilot for path in candidates if _alike(path, baseline) and (pilot := _read(path))), None)


def _newest_first(root: Path) -> Iterator[Path]:
    found = [(path.stat().st_mtime, path.parents[2]) for path in root.glob("*/comparison/tables/paired_eval.csv")]
    return (path for _, path in sorted(found, reverse=True))


def _alike(directory: Path, baseline: Config) -> bool:
    """True where some cell in `directory` shares the keys of `SAME` with the baseline."""
    for path in sorted(directory.glob("*/seed=*/config.yaml"))[:1]:
        try:
            differing = differences(load.from_file(path), baseline)
        except UserError:  # another experiment's file, whose own commands report it
            return False
        return not any(key == same or key.startswith(f"{same}.") for key in differing for same in SAME)
    return False


def _read(directory: Path) -> Pilot | None:
    """The pilot in the tables of `directory`; None under two pairs."""
    path = directory / "comparison/tables/paired_eval.csv"
    if not path.is_file():
        return None
    by_arm: dict[str, list[float]] = {}
    losses = []
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if all(row.get(key) == value for key, value in PRIMARY.items()):
                by_arm.setdefault(row.get("arm") or "", []).append(float(row["delta"]))
                losses.append(float(row["a"]))
    several = [deltas for deltas in by_arm.values() if len(deltas) > 1]
    if not several:
        return None
    std = float(np.sqrt(np.mean([np.var(deltas, ddof=1) for deltas in several])))
    return Pilot(directory, max(map(len, several)), std, float(np.mean(losses)))
