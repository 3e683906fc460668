"""Cells as training leaves them, written by hand: their configuration, metrics log and readings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from orchestrator.config import load
from orchestrator.config.schema import Config, DataConfig, DomainConfig, TrackerConfig, TrackerMode
from orchestrator.forensics.reading import Reading
from tests.orchestrator.reading import layer_json, reading_json


def config_of(mode: TrackerMode, seed: int = 3) -> Config:
    domains = {"code": DomainConfig(), "facts": DomainConfig()}
    return Config(
        name="width", arm="uniform", seed=seed, data=DataConfig(domains=domains), tracker=TrackerConfig(mode=mode)
    )


def record(step: int) -> dict[str, Any]:
    return {
        "step": step, "tokens": step * 64, "lr": 1e-3, "loss": 3.0 - step / 100 if step else None, "digest": "ab",
        "heldout": {"code": 3.5, "facts": 4.5}, "seconds": 1.5, "tokens_per_second": 64.0, "attempt": 1,
        "sidecar": {
            "step": max(0, step - 1), "reward": 0.25, "baseline": None, "advantage": None, "evaluations": 1 + step,
            "backwards": step,
            "sigma": {"decay": 0.3}, "summary": {"decay": {"min": 0.5, "mean": 1.0, "max": 2.0}},
            "values": {"decay": {"model.layers.0.mlp.up_proj.weight": 0.5}},
        },
    }  # fmt: skip


def reading(step: int) -> Reading:
    roles = ("hub", "specialist", "damper/hub")
    scores = {"hub": 0.6, "damper": 0.4, "passthrough": 0.3, "specialist": 0.5}
    measures = {"cv": 0.5 + step, "saturated_robust_expected": 1.0, "effective_rank.o": 9.0, "attention_share": None}
    layers = [
        layer_json(i, role, margin=0.1, scores=scores, measures=measures | {"saturated_robust": i})
        for i, role in enumerate(roles)
    ]
    totals = {"saturated_robust": 3.0, "saturated_fixed": None}
    return Reading.from_json(reading_json(layers, step, totals=totals))


def write_cell(cell: Path, steps: tuple[int, ...] = (0, 10, 20)) -> Path:
    (cell / "forensics").mkdir(parents=True)
    (cell / "config.yaml").write_text(load.to_yaml(config_of(TrackerMode.offline)))
    (cell / "metrics.jsonl").write_text("".join(json.dumps(record(step)) + "\n" for step in steps))
    for step in steps:
        (cell / f"forensics/step_{step:08d}.json").write_text(json.dumps(reading(step).to_json()))
    return cell
