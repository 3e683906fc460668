"""How the processes that train one cell meet: where each of them stands, and the store that they share at first."""

from __future__ import annotations

import gc
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import submitit
import torch
import torch.distributed as dist

from orchestrator.training.distributed import ALONE, RankError, Ranks, Together, said

MEETING = timedelta(minutes=5)  # for all ranks to start
PATIENCE = timedelta(minutes=30)  # for one rank's work while others wait, such as a checkpoint's writing


class Place(NamedTuple):
    """Which of a cell's processes this is."""

    rank: int
    size: int
    local: int  # among those of its machine


def place() -> Place | None:
    """As torchrun's variables say, or the job that this process is a task of; None where it trains alone."""
    env = os.environ
    if _is_torchruns():
        found = Place(int(env["RANK"]), int(env["WORLD_SIZE"]), int(env.get("LOCAL_RANK", 0)))
    elif job := _job():
        found = Place(job.global_rank, job.num_tasks, job.local_rank)
    else:
        return None
    return found if found.size > 1 else None


def is_first() -> bool:
    """Whether this process writes: it trains alone, or is the first rank."""
    here = place()
    return here is None or here.rank == 0


@contextmanager
def join() -> Iterator[Ranks]:
    """Meet the other processes that train the same cell, for the length of the block.

    Raises `RankError` where they do not come.
    """
    here = place()
    if here is None:
        yield ALONE
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "cpu:gloo"
    try:
        job = None if _is_torchruns() else _job()
        file = _meeting_file(job) if job else None
        store = _store(here, job, file)
        dist.init_process_group(backend, store=store, rank=here.rank, world_size=here.size, timeout=PATIENCE)
    except (RuntimeError, ValueError, OSError) as error:
        raise RankError(
            f"Process {here.rank} did not meet the {here.size - 1} others that train the cell with it "
            f"({said(error)}): see their logs for what kept them, and run the same command again."
        ) from error
    together = Together(*here, dist.PrefixStore("cell", store))
    try:
        with together.blame(), together.watched():
            yield together
        if file is not None and here.rank == 0:  # after a failure others may have to read there why
            file.unlink(missing_ok=True)
    finally:
        gc.collect()  # a sharded model is full of cycles, and what it holds of the group would outlive it
        dist.destroy_process_group()


def _store(here: Place, job: submitit.JobEnvironment | None, file: Path | None) -> dist.Store:
    """Where the ranks meet: where torchrun says, in a file on one machine, at a port of the first of several."""
    if job is None:
        from torch.distributed.rendezvous import rendezvous

        store, _, _ = next(rendezvous("env://", timeout=MEETING))
        return store
    if file is not None:
        store = dist.FileStore(str(file), here.size)
        store.set_timeout(MEETING)
        return store
    # between machines a file's locks cannot be relied on; these ports are below those that systems hand out
    port = 10_000 + zlib.crc32(_attempt(job).encode()) % 20_000
    return dist.TCPStore(job.hostnames[0], port, here.size, is_master=here.rank == 0, timeout=MEETING)


def _meeting_file(job: submitit.JobEnvironment) -> Path | None:
    """Beside the logs of a job on one machine: unlike a port, nobody else can have it.

    Its name tells this attempt from all others, even where a process's number comes again: by when the job's pickle
    was written, which it is for every submission and requeue. None for a job on several machines.
    """
    if job.num_nodes > 1:
        return None
    written = job.paths.submitted_pickle.stat().st_mtime_ns
    return Path(job.paths.folder) / f"{_attempt(job)}-{written}.ranks"


def _attempt(job: submitit.JobEnvironment) -> str:
    return f"{job.job_id}-{os.environ.get('SLURM_RESTART_COUNT') or 0}"


def _is_torchruns() -> bool:
    return all(name in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))


def _job() -> submitit.JobEnvironment | None:
    """The job that this process is a task of. A shell inside an allocation is none, whatever its variables say."""
    if "SUBMITIT_FOLDER" not in os.environ:  # set in a task by what runs it
        return None
    try:
        return submitit.JobEnvironment()
    except RuntimeError:
        return None
