"""One reading at a time, in a process of its own beside training."""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Thread

from safetensors.torch import save_file
from torch import Tensor, nn

from orchestrator.common.errors import UserError
from orchestrator.forensics.architecture.live import live
from orchestrator.forensics.reading import Reading
from orchestrator.forensics.weights.state_dict import StateDict

ROOT = Path(__file__).parents[3]  # where `orchestrator` is imported from
COMMAND = (sys.executable, "-m", "orchestrator.forensics")
# One thread, no accelerator: training keeps the rest.
ENVIRONMENT = {
    **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
    "CUDA_VISIBLE_DEVICES": "",
}
# Training counts three times as much. At the least priority a reading would get nothing beside other jobs, and training
# waits for the last one.
NICE = 5
WEIGHTS = "model.safetensors"
READ = (0, 1)  # exit codes with a reading; 1 reports a pathology


@dataclass(frozen=True)
class Outcome:
    """The end of one reading: the reading, or the reason why there is none."""

    step: int
    reading: Reading | None
    reason: str
    seconds: float


class Background:
    """Reads the weights of a live model in another process, at a lower priority and with one thread.

    `start` copies the weights to the CPU before it returns, so that training may change them. They go through a file in
    `directory`, which is removed after the reading. Memory: one copy of the weights until that file is written.
    """

    def __init__(self, directory: Path, scoring: str = "calibrated") -> None:
        self.directory = directory
        self.scoring = scoring
        self._outcomes: list[Outcome] = []
        self._thread: Thread | None = None
        self._process: subprocess.Popen[str] | None = None
        self._is_closed = False
        atexit.register(self.close)

    @property
    def is_busy(self) -> bool:
        """True while a reading is in progress."""
        return self._thread is not None and self._thread.is_alive()

    def start(self, step: int, module: nn.Module, nice: int = NICE) -> None:
        """Copy the weights of `module` and begin to read them. Raises `UserError` where they are not whole.

        `nice`: by how much the reading's priority is lower than training's.
        """
        assert not self.is_busy, "one reading at a time"
        model = live(module)
        weights = StateDict(model.state, model.name).copy()
        self._thread = Thread(target=self._run, args=(step, model.name, weights, dict(model.config), nice), daemon=True)
        self._thread.start()

    def outcomes(self) -> list[Outcome]:
        """The readings that ended since the last call, in order."""
        ended, self._outcomes = self._outcomes, []
        return ended

    def wait(self) -> None:
        """Return when no reading is in progress."""
        if self._thread is not None:
            self._thread.join()

    def close(self) -> None:
        """End a reading in progress and remove its files."""
        atexit.unregister(self.close)
        self._is_closed = True
        if self._process is not None:
            self._process.kill()
        self.wait()

    def _run(self, step: int, name: str, weights: dict[str, Tensor], config: dict[str, object], nice: int) -> None:
        start = time.perf_counter()
        reading, reason = None, ""
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".weights-", dir=self.directory) as scratch:
                reading = self._read(Path(scratch), name, weights, config, nice)
                reading = replace(reading, step=step, source=name)
        except Exception as error:  # no failure of a reading may reach training
            reason = str(error) or type(error).__name__
        self._outcomes.append(Outcome(step, reading, reason, time.perf_counter() - start))

    def _read(
        self, scratch: Path, name: str, weights: dict[str, Tensor], config: dict[str, object], nice: int
    ) -> Reading:
        """The reading of the weights, which are dropped once they are written."""
        save_file(weights, scratch / WEIGHTS)
        weights.clear()
        if config:
            (scratch / "config.json").write_text(json.dumps(config, default=str))
        if self._is_closed:
            raise UserError(f"The reading of {name} was ended.")
        target = scratch / "reading.json"
        options = ("--json", str(target), "--scoring", self.scoring, "--device", "cpu")
        paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        self._process = subprocess.Popen(
            (*COMMAND, str(scratch), *options),
            env={**os.environ, **ENVIRONMENT, "PYTHONPATH": paths},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, self._process.pid, os.getpriority(os.PRIO_PROCESS, 0) + nice)
        _, said = self._process.communicate()
        if self._process.returncode not in READ:
            last = (said.strip().splitlines() or [f"the reading ended with {self._process.returncode}"])[-1]
            raise UserError(last.replace(str(scratch / WEIGHTS), name).replace(str(scratch), name))
        return Reading.from_json(json.loads(target.read_text(encoding="utf-8")))
