"""Read the checkpoints of a cell that are due and unread: `python -m orchestrator.jobs.read_checkpoints CELL`."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

import torch

from orchestrator.common import command
from orchestrator.config import load
from orchestrator.experiments.readings import Readings
from orchestrator.storage import lease

POLL_SECONDS = 1.0


def watch(cell_dir: Path, once: bool = False) -> None:
    """Read due checkpoints as they are saved, until no process trains the cell and none is left; or only `once`."""
    readings = Readings(cell_dir, load.from_file(cell_dir / "config.yaml"))
    torch.set_num_threads(readings.config.train.threads)
    while True:
        training = lease.is_held(cell_dir)  # asked first, so that what it saved last is seen below
        for path in readings.wanted():
            if readings.read(path):
                print(readings.path_of(path), flush=True)
        if once or not training:
            return
        time.sleep(POLL_SECONDS)


def main(arguments: list[str] | None = None) -> int:
    """Exit code: 0, 2 where something cannot be read or written, 130 when interrupted."""
    parser = command.parser("orchestrator.jobs.read_checkpoints", __doc__)
    parser.add_argument("cell", type=Path, help="a cell's directory, such as outputs/<name>/<arm>/seed=0")
    parser.add_argument("--watch", action="store_true", help="go on until the cell has ended and nothing is left")
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # submitit's handler would ignore it; readings are written whole
    return command.run(parser, lambda options: watch(options.cell, once=not options.watch), arguments)


if __name__ == "__main__":
    sys.exit(main())
