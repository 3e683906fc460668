"""Some ranks of one cell, as torchrun would start them, but imported once and forked: CELL_DIR SIZE [ACT RANK STEP].

At STEP, RANK acts: `term` signals itself, `kill` dies, `raise` fails, `block` puts a file where checkpoints go,
`deaf` fails while the other one waits for something that will not come. `chunk` splits every rank's loss of the head.
Prints the ranks' exit codes, as `python -m orchestrator.job` has them.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sys
import time
from pathlib import Path

from models import head_loss
from orchestrator.common.errors import UserError
from orchestrator.config.schema import Config
from orchestrator.jobs import worker
from orchestrator.training import distributed, loop
from orchestrator.training.callbacks import NewReader
from orchestrator.training.distributed import World
from orchestrator.training.trainer import Callback, Trainer


class ActAt(Callback):
    def __init__(self, act: str, rank: int, step: int) -> None:
        self.act, self.rank, self.step = act, rank, step

    def after_step(self, run: Trainer) -> None:
        if self.act == "deaf" and run.step == self.step and run.world.rank != self.rank:
            time.sleep(600)
        if (run.world.rank, run.step) != (self.rank, self.step):
            return
        if self.act == "term":
            os.kill(os.getpid(), signal.SIGTERM)
        elif self.act == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.act == "deaf":
            raise RuntimeError("CUDA out of memory, say")
        elif self.act == "raise":
            raise UserError("rank 1 has something to say.")
        elif self.act == "block":
            shutil.rmtree(run.files.checkpoints)
            run.files.checkpoints.write_text("in the way")


def main(cell: str, size: str, act: str = "", rank: str = "0", step: str = "0") -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), WORLD_SIZE=size)
    theirs = loop.callbacks_for

    def callbacks_for(config: Config, new_reader: NewReader, world: World) -> list[Callback]:
        return [*theirs(config, new_reader, world), ActAt(act, int(rank), int(step))]

    loop.callbacks_for = callbacks_for
    if act == "deaf":
        distributed.WATCH_SECONDS, distributed.GRACE_SECONDS = 0.2, 2.0
    if act == "chunk":
        head_loss.AT_ONCE = 1
    pids = []
    for i in range(int(size)):
        pid = os.fork()
        if pid == 0:
            os.environ.update(RANK=str(i), LOCAL_RANK=str(i))
            code = worker.main(cell)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        pids.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    Path(cell, "codes.json").write_text(json.dumps(codes))


if __name__ == "__main__":
    main(*sys.argv[1:])
