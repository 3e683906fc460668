"""The readings of a training: when they are due, their files, and where their numbers are logged."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from orchestrator.common.errors import UserError, nearest
from orchestrator.forensics.callbacks.background import NICE, Background, Outcome
from orchestrator.forensics.callbacks.loggers import Log, append
from orchestrator.forensics.reading import Reading, roles_of
from orchestrator.forensics.render.row import reading_row
from orchestrator.forensics.roles.scoring import SCORINGS
from orchestrator.storage.files import write_whole
from orchestrator.storage.steps import name_of

FILE = "forensics.jsonl"
WHEN_BUSY = ("skip", "wait")

log = logging.getLogger(__name__)


class Readings:
    """Reads a model every `every` steps and after the last one, one reading at a time, in the background.

    While a reading is in progress, a step that is due is skipped, so that training does not wait and at most one copy
    of the weights is held; with `when_busy="wait"` training waits and no step is left out. Each reading is written to
    `directory/step_<step>.json`, and its numbers go to every logger. `directory/forensics.jsonl` has one line per step
    that was due: the numbers, or `skipped` or `failed` with the reason. A failure is logged as a warning, once per
    reason, and never raised.
    """

    def __init__(
        self,
        every: int,
        directory: Path,
        loggers: Sequence[Log],
        scoring: str = "calibrated",
        when_busy: str = "skip",
        submodule: str = "",
    ) -> None:
        """`submodule`: the name of the model within the module that is trained. Raises `UserError` as `check` does."""
        check(every, scoring, when_busy)
        self.every, self.directory, self.when_busy, self.submodule = every, directory, when_busy, submodule
        self._loggers = list(loggers)
        self._background = Background(directory, scoring)
        self._newest = -1  # step of the reading that began last
        self._skipped: dict[str, Any] | None = None  # the record of a step that may turn out to be the last
        self._warned: set[str] = set()

    def after_step(self, step: int, module: nn.Module) -> None:
        """Log the readings that have ended; begin one where `step` is due."""
        self._log_ended()
        self._settle_skipped(step)
        if step % self.every or step == self._newest:
            return
        if self._background.is_busy and self.when_busy == "skip":
            self._skipped = {"step": step, "skipped": f"the reading of step {self._newest} was in progress"}
        else:
            self._begin(step, module)

    def finish(self, step: int, module: nn.Module) -> None:
        """Wait for the reading in progress, and read `step`, the last, where that was not it."""
        self._settle_skipped(step)
        if step != self._newest:
            self._begin(step, module, nice=0)  # training waits for it
        self._background.wait()
        self._log_ended()

    def close(self) -> None:
        """End a reading in progress."""
        self._background.close()

    def _begin(self, step: int, module: nn.Module, nice: int = NICE) -> None:
        self._background.wait()
        self._newest = step
        try:
            self._background.start(step, module.get_submodule(self.submodule), nice)
        except Exception as error:  # a model that cannot be read, or no memory for its copy: training goes on
            self._fail(step, str(error) or type(error).__name__)

    def _settle_skipped(self, step: int) -> None:
        """Record the step that was skipped, unless it is `step`."""
        if self._skipped is not None and self._skipped["step"] != step:
            self._record(self._skipped)
        self._skipped = None

    def _log_ended(self) -> None:
        for outcome in self._background.outcomes():
            if outcome.reading is None:
                self._fail(outcome.step, outcome.reason)
            else:
                self._log(outcome, outcome.reading)

    def _log(self, outcome: Outcome, reading: Reading) -> None:
        row = reading_row(reading)
        about = {"step": outcome.step, "seconds": round(outcome.seconds, 3), "roles": roles_of(reading)}
        try:
            write_whole(self.directory / f"{name_of(outcome.step)}.json", json.dumps(reading.to_json(), indent=1))
        except UserError as error:
            self._warn(str(error))
        self._record({**about, **row})
        for to in self._loggers:
            try:
                to(row, outcome.step)
            except Exception as error:  # whatever a logger raises, training goes on
                self._warn(f"The reading of step {outcome.step} could not be logged: {error!r}")

    def _fail(self, step: int, reason: str) -> None:
        self._record({"step": step, "failed": reason})
        self._warn(f"Step {step} was not read, and training goes on: {reason}", reason)

    def _record(self, record: dict[str, Any]) -> None:
        try:
            append(self.directory / FILE, record)
        except OSError as error:
            self._warn(f"{self.directory / FILE} cannot be written: {error}")

    def _warn(self, sentence: str, reason: str = "") -> None:
        if (reason or sentence) not in self._warned:
            self._warned.add(reason or sentence)
            log.warning("%s", sentence)


def check(every: int, scoring: str, when_busy: str) -> None:
    """Raise `UserError` for an option that cannot work, before training begins."""
    if every < 1:
        raise UserError(f"every={every} is no number of steps: use 1 or more.")
    for name, value, known in (("scoring", scoring, SCORINGS), ("when_busy", when_busy, WHEN_BUSY)):
        if value not in known:
            raise UserError(f"{name}={value} is unknown{nearest(value, known)}: choose one of {', '.join(known)}.")
