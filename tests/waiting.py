"""Waiting for an event: the bound is generous, because no test may depend on how fast a machine is."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

PATIENCE = 900.0  # seconds; only a test that fails waits this long
POLL_SECONDS = 0.02


def wait_for(
    condition: Callable[[], object],
    *,
    process: subprocess.Popen[bytes] | None = None,
    log: Path | None = None,
    poll: float = POLL_SECONDS,
    patience: float = PATIENCE,
) -> None:
    """Return once `condition()` is true; fail after `patience` seconds, or when `process` ends first, showing `log`."""
    deadline = time.monotonic() + patience
    while not condition():
        said = log.read_text() if log else ""
        assert time.monotonic() < deadline, f"nothing happened within {patience:.0f} s. {said}"
        assert process is None or process.poll() is None or condition(), f"the process ended first. {said}"
        time.sleep(poll)
