"""The process group of a cell: the rank of this process, and the store through which the ranks meet."""

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
from torch.distributed.rendezvous import rendezvous

from orchestrator.training.distributed import SINGLE_PROCESS, RankError, World, describe

START_TIMEOUT = timedelta(minutes=5)  # for all ranks to start
COLLECTIVE_TIMEOUT = timedelta(minutes=30)  # for one rank's work while others wait, such as writing a checkpoint


class RankInfo(NamedTuple):
    """This process among those that train its cell, in torchrun's terms."""

    rank: int
    world_size: int
    local_rank: int  # among the processes of its machine


def this_rank() -> RankInfo | None:
    """This process's rank, by torchrun's variables or its task of a job; None where it trains alone."""
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
    """The process group of this cell's ranks, for the length of the block. Raises `RankError` where others do not join.

    `restart`: how often the ranks' job was started before.
    """
    info = this_rank()
    if info is None:
        yield SINGLE_PROCESS
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "cpu:gloo"
    try:
        store = _store(info, restart)
        dist.init_process_group(
            backend, store=store, rank=info.rank, world_size=info.world_size, timeout=COLLECTIVE_TIMEOUT
        )
    except (RuntimeError, ValueError, OSError) as error:
        raise RankError(
            f"Process {info.rank} did not meet the {info.world_size - 1} others that train the cell with it "
            f"({describe(error)}): find the reason in their logs, and run the same command again."
        ) from error
    world = World(*info, dist.PrefixStore("cell", store))
    try:
        with world.failing_together(), world.watchdog():
            yield world
        # not after a failure, whose cause the others may still read there
        if isinstance(store, dist.FileStore) and world.is_rank_0:
            Path(store.path).unlink(missing_ok=True)  # type: ignore[attr-defined]
    finally:
        gc.collect()  # a sharded model is full of cycles, and what it holds of the group would outlive the group
        dist.destroy_process_group()


def _store(info: RankInfo, restart: int) -> dist.Store:
    """The store of all ranks: torchrun's, a file on one machine, or a port of the first of several machines."""
    job = None if _by_torchrun() else _job()
    if job is None:
        store, _, _ = next(rendezvous("env://", timeout=START_TIMEOUT))
        return store
    attempt = f"{job.job_id}-{restart}"
    if job.num_nodes == 1:
        # A file, unlike a port, cannot be taken already. The time makes its name unique even where a process id
        # returns: every submission and requeue writes the job's pickle anew.
        written = job.paths.submitted_pickle.stat().st_mtime_ns
        file = dist.FileStore(str(Path(job.paths.folder) / f"{attempt}-{written}.ranks"), info.world_size)
        file.set_timeout(START_TIMEOUT)
        return file
    # Between machines file locks are unreliable. These ports are below the range that systems hand out.
    port = 10_000 + zlib.crc32(attempt.encode()) % 20_000
    return dist.TCPStore(job.hostnames[0], port, info.world_size, is_master=info.rank == 0, timeout=START_TIMEOUT)


def _by_torchrun() -> bool:
    return all(name in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))


def _job() -> submitit.JobEnvironment | None:
    """The job whose task this process is; None outside a task, even in a shell inside an allocation."""
    if "SUBMITIT_FOLDER" not in os.environ:  # the wrapper that runs a task sets it
        return None
    try:
        return submitit.JobEnvironment()
    except RuntimeError:
        return None
