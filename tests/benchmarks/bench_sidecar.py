"""The cost of a sidecar: whole steps with it over those without, in one run. Asserts nothing."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from orchestrator.training.callbacks import DecideMultipliers
from tests.benchmarks.bench_training import per_step, ratio
from tests.benchmarks.trainers import steps_of, trainer_of

ARMS = {
    "multipliers applied": ["sidecar=decay", "sidecar.mode=fixed"],
    "the same, learned at the default interval": ["sidecar=decay"],
    "all three channels learned": ["sidecar=all"],
}


def stepped(overrides: list[str], root: Path) -> Callable[[], float]:
    """Seconds of a step of the default cell with `overrides`, over whole intervals of decisions."""
    trainer = trainer_of(["train.steps=100000", *overrides], root, [DecideMultipliers()])
    if trainer.sidecar and trainer.config.sidecar.mode == "fixed":
        decay = trainer.sidecar.channels["decay"]
        decay.set([1.5] * len(decay.units))
    return per_step(lambda: steps_of(trainer, 1), 2 * trainer.config.sidecar.interval)


def main() -> None:
    """Print one line per arm."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as root:
        without = stepped([], Path(root, "without"))
        for number, (name, overrides) in enumerate(ARMS.items()):
            print(
                f"a step with a sidecar, over without: {name:42}",
                ratio(without, stepped(overrides, Path(root, str(number)))),
            )


if __name__ == "__main__":
    main()
