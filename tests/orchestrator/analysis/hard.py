"""Experiments of which little or nothing can be said, and what is said instead, on every page and screen."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from orchestrator.forensics.reading import DEFINITIONS

Write = Callable[..., Path]


def one_arm_failed(write: Write) -> Path:
    root = write()
    for log in root.glob("variable/*/metrics.jsonl"):
        log.write_text("".join(log.read_text().splitlines(keepends=True)[:1]))
    return root


def nothing_started(write: Write) -> Path:
    root = write()
    for file in [*root.rglob("metrics.jsonl"), *root.rglob("step_*.json")]:
        file.unlink()
    return root


def older_definitions(write: Write) -> Path:
    root = write()
    path = root / "variable/seed=1/forensics/step_00000100.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"definitions": DEFINITIONS - 1}))
    return root


def unequal_depth(write: Write) -> Path:
    return write(budget=lambda arm, *_: [7.0] * (3 if arm == "uniform" else 5))


HARD: dict[str, tuple[Callable[[Write], Path], list[str]]] = {
    "one arm": (
        lambda write: write(arms=("uniform",)),
        ["One arm", "Test loss", "uniform/seed=1", "passthrough"],
    ),
    "one arm failed": (one_arm_failed, ["No pair is complete", "unfinished at step 0", "0 of 2 complete"]),
    "nothing started": (nothing_started, ["No pair is complete", "never started"]),
    "one seed": (lambda write: write(seeds=(0,)), ["1 pair ", "two pairs"]),
    "untrained": (lambda write: write(steps=(0,)), ["Layers at step 0"]),
    "one checkpoint": (lambda write: write(read_at=(100,)), ["won?", "Layers at step 100"]),
    "never read": (lambda write: write(read_at=()), ["were never read", "not measured"]),
    "zero budget": (lambda write: write(budget=lambda *_: [0.0] * 4), ["no larger", "without a ratio"]),
    "unmeasured": (lambda write: write(budget=lambda *_: [None] * 4, chance=None), ["not measured"]),
    "one layer": (lambda write: write(budget=lambda *_: [7.0]), ["Layers at step 100"]),
    "older definitions": (
        older_definitions,
        ["Readings of variable/seed=1 (step 100) follow older definitions and are left out"],
    ),
    "unequal depth": (unequal_depth, ["differ in depth"]),
}
