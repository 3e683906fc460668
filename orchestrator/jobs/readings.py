"""A job that reads a cell's checkpoints.

`python -m orchestrator.jobs.readings CELL` reads what a run left unread; `--watch` goes on while the cell is training.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from pathlib import Path

import torch

from orchestrator.common.errors import UserError
from orchestrator.config import load
from orchestrator.experiments.readings import Readings
from orchestrator.storage import lease

POLL_SECONDS = 1.0


def watch(cell_dir: Path, once: bool = False) -> None:
    """Read what is due, as it is saved, until no process trains the cell and nothing is left; or only `once`."""
    readings = Readings(cell_dir, load.from_file(cell_dir / "config.yaml"))
    torch.set_num_threads(readings.config.train.threads)
    while True:
        training = lease.is_held(cell_dir)  # asked first: all that it saved is then seen below
        for path in readings.unread():
            if readings.read(path):
                print(readings.path_of(path), flush=True)
        if once or not training:
            return
        time.sleep(POLL_SECONDS)


def main(arguments: list[str] | None = None) -> int:
    """Exit code: 0, 2 where something cannot be read or written, 130 when interrupted.

    The process may be killed at any moment: readings are written whole.
    """
    parser = argparse.ArgumentParser(prog="python -m orchestrator.jobs.readings", description=__doc__)
    parser.add_argument("cell", type=Path, help="a cell's directory, such as outputs/<name>/<arm>/seed=0")
    parser.add_argument("--watch", action="store_true", help="go on until the cell has ended and nothing is left")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # submitit's own handler, in a job, ignores it
    try:
        watch(options.cell, once=not options.watch)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
