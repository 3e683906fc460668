"""Kills at random moments, of cells and of launchers: how many were tried, and how many changed what a cell ends as.

python -m tests.benchmarks.bench_faults [kills of cells] [kills of launchers]
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from orchestrator.storage import lease, metrics_log
from orchestrator.storage.event_log import EventLog
from tests.conftest import SMALL

CELL = "main/seed=0"
# Every fourth step is saved, so that kills meet savings, and every attempt that gets as far gets on.
CELL_OF = (
    *SMALL, "name=x", "train.steps=4000", "train.checkpoint_every=4", "forensics.every=200", "train.eval_every=500",
    "train.keep_checkpoints=3", "launcher.retries=1000000", "launcher.backoff_seconds=0.01", "launcher.parallel=1",
)  # fmt: skip


def launched(root: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "orchestrator", *CELL_OF, f"root={root}"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)


def result_of(directory: Path) -> tuple[object, ...]:
    cell = directory / CELL
    newest = max((cell / "checkpoints").glob("step_????????"))
    weights = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in newest.glob("*.safetensors")}
    records = [(r["step"], r["loss"], r["digest"]) for r in metrics_log.read(cell / "metrics.jsonl")]
    readings = sorted(path.name for path in (cell / "forensics").glob("step_*.json"))
    return weights, records, readings


def kill_cells(launcher: subprocess.Popen[bytes], directory: Path, kills: int, dice: random.Random) -> dict[str, int]:
    """Kill the cell's process again and again, each time a random while after it began; what it was doing."""
    met: dict[str, int] = {}
    last = 0
    for _ in range(kills):
        while (claim := lease.newest(directory / CELL)) is None or claim.number <= last or not claim.pid:
            if launcher.poll() is not None:
                return met  # it was done before
            time.sleep(0.005)
        last = claim.number
        time.sleep(dice.uniform(0.2, 1.6))
        saving = any((directory / CELL / "checkpoints").glob(".step_*.partial"))
        with suppress(ProcessLookupError):
            os.kill(claim.pid, signal.SIGKILL)
            met["while saving" if saving else "elsewhere"] = met.get("while saving" if saving else "elsewhere", 0) + 1
    return met


def main() -> None:
    kills, launchers = (int(word) for word in (*sys.argv[1:], "50", "10")[:2])
    dice = random.Random(0)
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        launched(root / "whole").wait()
        expected = result_of(root / "whole/x")

        process = launched(root / "cells")
        met = kill_cells(process, root / "cells/x", kills, dice)
        code = process.wait()
        same = result_of(root / "cells/x") == expected
        deaths = EventLog(root / "cells/x").counted("crashed").get(CELL, 0)
        print(
            f"kill -9 of a cell: {sum(met.values())} tried ({met}), {deaths} recorded, exit code {code}, same: {same}"
        )

        for _ in range(launchers):
            process = launched(root / "launchers")
            time.sleep(dice.uniform(1.0, 9.0))
            process.kill()
            process.wait()
        code = launched(root / "launchers").wait()
        same = result_of(root / "launchers/x") == expected
        attempts = lease.newest(root / "launchers/x" / CELL)
        print(f"kill -9 of the launcher: {launchers} tried, exit code {code}, same: {same}")
        print(f"  attempts of the cell: {attempts.number if attempts else 0}")


if __name__ == "__main__":
    main()
