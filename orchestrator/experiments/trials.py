"""The trials of a search (`search/trials.json` of the experiment that compares the best of them)."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from orchestrator.common.errors import UserError
from orchestrator.storage.files import write_whole

FOLDER = "search"
STUDY = "study.log"  # of Optuna
BASELINE = "baseline"


@dataclass(frozen=True)
class Trial:
    """One setting that a search tried."""

    name: str  # the arm that it is in the search, and in the experiment where it was chosen
    settings: dict[str, str] = field(default_factory=dict)  # key → value, as an override has it; empty: the baseline
    losses: dict[int, float] = field(default_factory=dict)  # steps of a run → validation loss at its end, nats/token
    failed: str = ""  # the reason why it has no loss
    chosen: bool = False  # it is compared with the baseline at other seeds

    @property
    def overrides(self) -> list[str]:
        return [f"{key}={value}" for key, value in self.settings.items()]


def write(experiment_dir: Path, trials: Iterable[Trial]) -> None:
    """Write the trials. Raises `UserError` where the disk refuses."""
    rows = [asdict(trial) for trial in trials]
    write_whole(path_of(experiment_dir), json.dumps(rows, indent=1) + "\n")


def read(experiment_dir: Path) -> list[Trial]:
    """The trials of the search from which the experiment's arms come; empty where there was none.

    Raises `UserError` where the file holds something else.
    """
    path = path_of(experiment_dir)
    if not path.exists():
        return []
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        return [Trial(**row | {"losses": {int(k): float(v) for k, v in row["losses"].items()}}) for row in rows]
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{path} does not hold the trials of a search ({error}): repeat the search's command."
        ) from error


def is_explored(experiment_dir: Path) -> bool:
    """True for the directory of a search's experiment, two below the one that compares the best of it."""
    return experiment_dir.parent.name == FOLDER and (experiment_dir.parent / STUDY).is_file()


def path_of(experiment_dir: Path) -> Path:
    return experiment_dir / FOLDER / "trials.json"
