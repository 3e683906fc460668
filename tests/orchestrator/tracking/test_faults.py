"""Faults of W&B are one warning and cost no training."""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.config.schema import TrackerMode
from orchestrator.tracking.run import Tracker
from tests.naming import names
from tests.orchestrator.tracking.cells import config_of, reading, record


def services() -> list[int]:
    """Process ids of the W&B services that this process started."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, rest = status.read_text().split("(", 1)[1].rsplit(")", 1)
        except OSError:  # gone meanwhile
            continue
        if name.startswith("wandb-core") and int(rest.split()[1]) == os.getpid():
            found.append(int(status.parent.name))
    return found


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The warnings of the tracker; W&B's own log goes to its own file."""
    return [r.message for r in caplog.records if r.name == "orchestrator.tracking.run"]


def test_a_killed_service_is_one_warning(cell: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = Tracker(config_of(TrackerMode.offline))
    found.start(cell, [record(0)])
    (service,) = services()
    os.kill(service, signal.SIGKILL)
    with caplog.at_level(logging.WARNING):
        for step in range(10, 200, 10):
            found.log(record(step))
            found.forensics(reading(step))
        found.alert("title", "text")
        found.finish()
    (said,) = warnings(caplog)
    assert re.search(r"W&B .*\(\w+: .*\).* metrics log", said)

    again = Tracker(config_of(TrackerMode.offline, seed=4))  # the next cell of this process is not harmed
    again.start(cell, [record(0)])
    again.finish()
    assert len(warnings(caplog)) == 1


def test_a_killed_service_leaves_no_trace_at_exit(cell: Path) -> None:
    program = f"""
import os, signal, sys
from pathlib import Path
sys.path[:0] = [{str(Path(__file__).parents[3])!r}]
from orchestrator.config.schema import TrackerMode
from orchestrator.tracking.run import Tracker
from tests.orchestrator.tracking.cells import config_of, record
from tests.orchestrator.tracking.test_faults import services
tracker = Tracker(config_of(TrackerMode.offline))
tracker.start(Path({str(cell)!r}), [record(0)])
os.kill(services()[0], signal.SIGKILL)
for step in range(10, 100):
    tracker.log(record(step))
tracker.finish()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert names(done.stderr, "W&B", "metrics log")


def bad_row(found: Tracker, cell: Path) -> None:
    found.start(cell, [])
    found.log({"step": 1, "loss": object()})


def bad_table(found: Tracker, cell: Path) -> None:
    found.start(cell, [])
    (cell / "forensics/step_00000010.json").write_text("{")
    found.finish()


def unusable_directory(found: Tracker, cell: Path) -> None:
    (cell / "wandb").write_text("a file")
    found.start(cell, [record(0)])


@pytest.mark.parametrize("harm", [bad_row, bad_table, unusable_directory])
def test_other_failures_are_one_warning_too(
    cell: Path, caplog: pytest.LogCaptureFixture, harm: Callable[[Tracker, Path], None]
) -> None:
    found = Tracker(config_of(TrackerMode.offline))
    with caplog.at_level(logging.WARNING):
        harm(found, cell)
        found.log(record(20))
        found.finish()
    (warning,) = warnings(caplog)
    assert names(warning, "W&B", "metrics log")
