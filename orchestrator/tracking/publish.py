"""Sending finished cells to W&B from their files, where the tracker was off or its files are gone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from orchestrator.analysis import Comparison
from orchestrator.common.errors import UserError
from orchestrator.config.schema import Config, TrackerMode
from orchestrator.experiments.readings import Readings
from orchestrator.experiments.run_directory import reopen
from orchestrator.forensics.reading import read_reading
from orchestrator.storage import metrics_log
from orchestrator.tracking import run
from orchestrator.tracking.run import Tracker


def publish(comparison: Comparison) -> Iterator[str]:
    """Send every finished cell and the comparison as their runs; yield a sentence on each cell, and on where they are.

    With the experiment's tracker; where that is off, online if there is a login, else offline. Sent again, rows replace
    themselves. Raises `UserError` where W&B cannot be used.
    """
    experiment = reopen(comparison.experiment.path)
    mode = experiment.config.tracker.mode
    if mode == TrackerMode.off:
        mode = TrackerMode.offline if run.login_problem() else TrackerMode.online
    config = _in_mode(experiment.config, mode)
    run.check(config)
    for cell in experiment.cells:
        if metrics_log.trained_to(cell.directory / "metrics.jsonl") is None:
            yield f"{cell.id} is not finished: left out."
        elif not _replay(cell.directory, _in_mode(cell.config, mode)):
            raise UserError(f"W&B refused {cell.id}, as said above: mend that, and the same command sends the rest.")
        else:
            yield f"{cell.id} is sent."
    run.log_comparison(config, comparison)
    if mode == TrackerMode.offline:
        where = config.tracker.dir or experiment.directory
        yield f"The runs are on disk: find {where} -name 'offline-run-*' -prune -exec wandb sync {{}} +   sends them."


def _replay(cell_dir: Path, config: Config) -> bool:
    """Send the metrics log and the readings of a cell as its run; False where W&B failed."""
    tracker = Tracker(config)
    tracker.start(cell_dir, metrics_log.read(cell_dir / "metrics.jsonl"))
    for path in Readings(cell_dir, config).on_disk().values():
        tracker.forensics(read_reading(path))
    tracker.finish()
    return not tracker.has_failed


def _in_mode(config: Config, mode: TrackerMode) -> Config:
    return replace(config, tracker=replace(config.tracker, mode=mode))
