"""A cell that was trained to its end: it is never trained again by itself, whatever became of its checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from orchestrator.common.errors import UserError
from orchestrator.config.schema import Config
from orchestrator.experiments.readings import Readings
from orchestrator.storage import checkpoint, metrics_log, steps
from orchestrator.storage.cell_files import CellFiles
from orchestrator.storage.event_log import EventLog


def needs_no_trainer(cell_dir: Path, config: Config) -> bool:
    """True where a cell was trained to its end and no trainer could take up its last step.

    What is left of it is to read the checkpoints that it still has, which `read` does.
    """
    try:
        resumed, _ = CellFiles(cell_dir).newest_checkpoint()
        trained = _is_trained(cell_dir, config)
    except UserError:  # a broken line, which the trainer reports
        return False
    if resumed is None:
        events = EventLog(cell_dir.parents[1]).of(f"{cell_dir.parent.name}/{cell_dir.name}")
        begun = (cell_dir / "metrics.jsonl").is_file()  # else deleted, to train it again
        return begun and (trained or any(event["state"] == "done" for event in events))
    last = checkpoint.path_of(cell_dir / "checkpoints", config.train.steps)
    readable = steps.reading_of(cell_dir, config.train.steps).is_file() or checkpoint.corruption(last) is None
    return trained and readable and resumed != last


def read(cell_dir: Path, config: Config, give_up: Callable[[], bool]) -> bool:
    """Make the readings and interventions that are left; False where `give_up` returned True before the last one.

    Raises `UserError` where the cell cannot be finished without a checkpoint that is gone.
    """
    readings, last = Readings(cell_dir, config), config.train.steps
    for path in readings.wanted():
        readings.read(path, give_up)
        if give_up():
            return False
    cure = f"restore it, or delete {cell_dir} to train the cell again."
    if not _is_trained(cell_dir, config):
        raise UserError(
            f"{cell_dir / 'metrics.jsonl'} ends before step {last}, where the cell was done, and no checkpoint is left "
            f"to resume from: {cure}"
        )
    if not (reading := steps.reading_of(cell_dir, last)).is_file():
        raise UserError(f"{reading} is missing, and its checkpoint is gone: {cure}")
    return True


def _is_trained(cell_dir: Path, config: Config) -> bool:
    return metrics_log.trained_to(cell_dir / "metrics.jsonl") == config.train.steps
