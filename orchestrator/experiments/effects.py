"""The effects of a search's keys, as its screen found them (`search/effects.csv`)."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from orchestrator.common.errors import UserError
from orchestrator.experiments.trials import FOLDER
from orchestrator.storage.files import write_whole


@dataclass(frozen=True)
class Effect:
    """The mean difference in validation loss between two values of a key, over the values of the other keys."""

    key: str
    low: float
    high: float
    effect: float  # loss at `high` less that at `low`, nats/token
    error: float  # its standard error

    @property
    def t(self) -> float:
        """The effect in standard errors."""
        if self.error == 0.0:
            return math.copysign(math.inf, self.effect) if self.effect else 0.0
        return self.effect / self.error

    def written(self) -> list[str]:
        """The row of a table, under `HEADS`."""
        return [
            self.key, f"{self.low:g} → {self.high:g}", f"{self.effect:+.4f}", f"{self.error:.4f}", f"{self.t:+.1f}",
        ]  # fmt: skip


HEADS = ["key", "from → to", "loss", "±", "t"]
COLUMNS = [field.name for field in fields(Effect)]


def write(experiment_dir: Path, effects: Iterable[Effect]) -> None:
    """Write the effects, with t. Raises `UserError` where the disk refuses."""
    text = io.StringIO()
    table = csv.DictWriter(text, [*COLUMNS, "t"], lineterminator="\n")
    table.writeheader()
    table.writerows(asdict(one) | {"t": one.t} for one in effects)
    write_whole(_path_of(experiment_dir), text.getvalue())


def read(experiment_dir: Path) -> list[Effect]:
    """The effects; empty where no search has screened. Raises `UserError` where the file holds something else."""
    path = _path_of(experiment_dir)
    if not path.exists():
        return []
    try:
        table = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8")))
        if table.fieldnames != [*COLUMNS, "t"]:
            raise ValueError(f"its columns are {table.fieldnames}")
        return [Effect(row["key"], *(float(row[name]) for name in COLUMNS[1:])) for row in table]
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise UserError(
            f"{path} does not hold the effects of a search ({error}): repeat the search's command."
        ) from error


def ranked(effects: Iterable[Effect]) -> list[Effect]:
    """The effects, the clearest first."""
    return sorted(effects, key=lambda one: -abs(one.t))


def _path_of(experiment_dir: Path) -> Path:
    return experiment_dir / FOLDER / "effects.csv"
