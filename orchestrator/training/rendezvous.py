"""How the processes that train one cell form a process group: their ranks, and the store through which they meet."""

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

from orchestrator.training.distributed import SINGLE_PROCESS, DistributedWorld, RankError, World, describe

START_TIMEOUT = timedelta(minutes=5)  # for all ranks to start
COLLECTIVE_TIMEOUT = timedelta(minutes=30)  # for one rank's work while others wait, such as writing a checkpoint


class RankInfo(NamedTuple):
    """This process among those that train its cell, in torchrun's terms."""

    rank: int
    world_size: int
    local_rank: int  # among the processes of its machine


def this_rank() -> RankInfo | None:
    """The rank that torchrun's variables or a task of a job give this process; None for a process that trains alone."""
    env = os.environ
    if _by_torchrun():
        found = RankInfo(int(env["RANK"]), int(env["WORLD_SIZE"]), int(env.get("LOCAL_RANK", 0)))
    elif job := _job():
        found = RankInfo(job.global_rank, job.num_tasks, job.local_rank)
    else:
        return None
    return found if found.world_size > 1 else None


def is_rank_0() -> bool:
    """True for rank 0, which writes, and for a process that trains alone."""
    info = this_rank()
    return info is None or info.rank == 0


@contextmanager
def join(restart: int = 0) -> Iterator[World]:
    """The process group of this cell's ranks, for the length of the block.

    `restart`: how often the ranks' job was started before.

    Raises `RankError` where the others do not join.
    """
    info = this_rank()
    if info is None:
        yield SINGLE_PROCESS
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "cpu:gloo"
    try:
        job = None if _by_torchrun() else _job()
        attempt = f"{job.job_id}-{restart}" if job else ""
        file = _store_file(job, attempt) if job else None
        store = _store(info, job, attempt, file)
        dist.init_process_group(
            backend, store=store, rank=info.rank, world_size=info.world_size, timeout=COLLECTIVE_TIMEOUT
        )
    except (RuntimeError, ValueError, OSError) as error:
        raise RankError(
            f"Process {info.rank} did not meet the {info.world_size - 1} others that train the cell with it "
            f"({describe(error)}): see their logs for what kept them, and run the same command again."
        ) from error
    world = DistributedWorld(*info, dist.PrefixStore("cell", store))
    try:
        with world.failing_together(), world.watchdog():
            yield world
        if file is not None and info.rank == 0:  # after a failure the others may still read its cause there
            file.unlink(missing_ok=True)
    finally:
        gc.collect()  # a sharded model is full of cycles, and what it holds of the group would outlive the group
        dist.destroy_process_group()


def _store(info: RankInfo, job: submitit.JobEnvironment | None, attempt: str, file: Path | None) -> dist.Store:
    """The store of all ranks: torchrun's, a file on one machine, or a port of the first of several machines."""
    if job is None:
        from torch.distributed.rendezvous import rendezvous

        store, _, _ = next(rendezvous("env://", timeout=START_TIMEOUT))
        return store
    if file is not None:
        store = dist.FileStore(str(file), info.world_size)
        store.set_timeout(START_TIMEOUT)
        return store
    # Between machines file locks are unreliable. These ports are below the range that systems hand out.
    port = 10_000 + zlib.crc32(attempt.encode()) % 20_000
    return dist.TCPStore(job.hostnames[0], port, info.world_size, is_master=info.rank == 0, timeout=START_TIMEOUT)


def _store_file(job: submitit.JobEnvironment, attempt: str) -> Path | None:
    """A file beside the logs of a job on one machine, which unlike a port is free; None for a job on several machines.

    Its name tells this attempt from all others, even where a process id returns: it has the time at which the job's
    pickle was written, which every submission and requeue does anew.
    """
    if job.num_nodes > 1:
        return None
    written = job.paths.submitted_pickle.stat().st_mtime_ns
    return Path(job.paths.folder) / f"{attempt}-{written}.ranks"


def _by_torchrun() -> bool:
    return all(name in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))


def _job() -> submitit.JobEnvironment | None:
    """The job that this process is a task of; None in a shell inside an allocation, whatever its variables say."""
    if "SUBMITIT_FOLDER" not in os.environ:  # the wrapper that runs a task sets it
        return None
    try:
        return submitit.JobEnvironment()
    except RuntimeError:
        return None
