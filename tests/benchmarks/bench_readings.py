"""The cost of a reading as a share of its cell's wall time: `make bench`. Asserts nothing."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from orchestrator.config.compose import CONF, compose
from orchestrator.experiments.experiment import experiment_of
from orchestrator.experiments.run_directory import open_directory
from orchestrator.jobs.readers import reader_for
from orchestrator.training.loop import StopSignal, train_cell

STEPS, OFTEN = 60, 6  # steps of a run, and between readings in the run that reads often
REPEATS = 3
EVERY = 5000  # steps between readings for which the share is told


def seconds(model: str, every: int) -> float:
    """Wall time of a whole cell, saved as often either way and read every so many steps."""
    with tempfile.TemporaryDirectory() as root, StopSignal() as stop:
        overrides = [
            f"model={model}", f"train.steps={STEPS}", f"train.checkpoint_every={OFTEN}", f"forensics.every={every}",
            "tracker=off", f"root={root}",
        ]  # fmt: skip
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(CONF), version_base="1.3"):
            experiment = experiment_of(overrides, compose)
        open_directory(experiment)
        started = time.perf_counter()
        train_cell(Path(experiment.cells[0].directory), stop, reader_for)
        return time.perf_counter() - started


def main() -> None:
    """Print one line per model."""
    for model in ("tiny", "small"):
        costs, steps = [], []
        for _ in range(REPEATS):
            often, seldom = seconds(model, OFTEN), seconds(model, STEPS)
            costs.append((often - seldom) / (STEPS // OFTEN - 1))
            steps.append(seldom / STEPS)
        reading, step = statistics.median(costs), statistics.median(steps)
        print(
            f"model={model}: a reading adds {reading:.2f} s ({min(costs):.2f} ... {max(costs):.2f}), a step takes "
            f"{step:.3f} s: {reading / (EVERY * step):.2%} of the time at forensics.every={EVERY}"
        )


if __name__ == "__main__":
    main()
