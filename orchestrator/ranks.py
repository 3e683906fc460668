"""Several processes that train one cell together: each has its share of every batch and of every tensor (FSDP2).

`Ranks` is a cell in one process, where all of this is nothing; `join` finds out what this process is part of.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import submitit
import torch
import torch.distributed as dist
from torch import Tensor, nn

from models.transformer import Decoder, PreNormBlock
from orchestrator.errors import UserError
from orchestrator.schema import Config
from sidecar.sharded import from_first, mean, whole

T = TypeVar("T")
MEETING = timedelta(minutes=5)  # for all ranks to start
PATIENCE = timedelta(minutes=30)  # for one rank's work while others wait, such as a checkpoint's writing
WATCH_SECONDS = 5.0  # between two looks whether another rank has failed
GRACE_SECONDS = 120.0  # for a rank to notice, to record it, and to end by itself
LOST = "another of its processes ended without a word (killed, or out of memory)"


class RankError(Exception):
    """What ended another rank, and so this one, and was nobody's fault who could be told to mend it."""


class Told(UserError):
    """What failed on the first rank, as the others hear it."""


class Ranks:
    """A cell in one process."""

    rank, size = 0, 1

    @property
    def is_first(self) -> bool:
        """Whether this is the rank that writes: ledger, checkpoints, readings, manifest, W&B."""
        return self.rank == 0

    def own(self, device: torch.device) -> torch.device:
        """The device of this kind that is this rank's."""
        return device

    def place(self, model: Decoder, device: torch.device, low: bool) -> None:
        """Move `model` to `device`; of several ranks, each keeps its shards. `low`: matrices are used in bf16."""
        model.to(device)

    def share(self, rows: Tensor) -> tuple[Tensor, int]:
        """This rank's of `rows`, and the factor that makes the mean over ranks of sums over them the whole sum."""
        return rows, 1

    def mean(self, tensor: Tensor) -> Tensor:
        """The mean over ranks."""
        return tensor

    def agree(self, flag: bool) -> bool:
        """Whether any rank says so, on all ranks. None of them is further than this before all have come here."""
        return flag

    def first(self, act: Callable[[], T]) -> T:
        """What `act` returns or raises, on all ranks, done by the first alone."""
        return act()

    def tell(self, word: str = "") -> str:
        """What the first rank says, on all ranks."""
        return word

    def gather(self, named: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors as wholes, for the rank that writes; nothing on the others."""
        return dict(named)

    def blame(self) -> AbstractContextManager[None]:
        """Around what all ranks do: an error of one is the error of all."""
        return nullcontext()


ALONE = Ranks()


class Together(Ranks):
    """One of several processes, which have met at `store` and have a process group."""

    def __init__(self, rank: int, size: int, local: int, store: dist.Store) -> None:
        self.rank, self.size, self.local, self.store = rank, size, local, store

    def own(self, device: torch.device) -> torch.device:
        if device.type != "cuda":
            return device
        # a scheduler may show every task all of the machine's GPUs, or its own alone
        device = torch.device("cuda", self.local % torch.cuda.device_count())
        torch.cuda.set_device(device)
        return device

    def place(self, model: Decoder, device: torch.device, low: bool) -> None:
        """Shard `model`, one group of collectives for each block, masters and reduction in fp32.

        With `low`, a block's matrices are gathered in bf16, to which autocast would cast them. Everything else stays
        what it is in one process: norm scales, which belong to the root's group, are fp32, and so is the stream.
        """
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        mesh = init_device_mesh(device.type, (self.size,))
        matrices = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16 if low else None, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
        rest = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
        # Resharded after every forward pass, the root too: between passes a parameter is always its shard, which is
        # what the optimizer, the sidecar and a checkpoint know.
        for layer in model.model.layers:
            assert isinstance(layer, PreNormBlock)
            branches: list[nn.Module] = [layer.self_attn, layer.mlp]
            fully_shard(branches, mesh=mesh, mp_policy=matrices, reshard_after_forward=True)
        fully_shard(model, mesh=mesh, mp_policy=rest, reshard_after_forward=True)

    def share(self, rows: Tensor) -> tuple[Tensor, int]:
        if len(rows) < self.size:  # every rank takes part in every pass: all do all
            return rows, 1
        return rows[self.rank :: self.size], self.size

    def mean(self, tensor: Tensor) -> Tensor:
        return mean(tensor)

    def agree(self, flag: bool) -> bool:
        flags = torch.tensor(int(flag))  # of the CPU's: by gloo, which waits for no GPU and sees a rank that is gone
        dist.all_reduce(flags, dist.ReduceOp.MAX)
        return bool(flags)

    def first(self, act: Callable[[], T]) -> T:
        outcome: tuple[Any, str | None] = (None, None)
        if self.is_first:
            try:
                outcome = (act(), None)
            except Exception as error:
                from_first((None, _said(error)))
                raise
        result, failure = from_first(outcome)
        if failure is not None:
            raise Told(failure)
        return result

    def tell(self, word: str = "") -> str:
        return str(from_first(word))

    def gather(self, named: Mapping[str, Tensor]) -> dict[str, Tensor]:
        gathered = {}
        for name, tensor in named.items():
            full = whole(tensor.detach())
            if self.is_first:
                gathered[name] = full.cpu()
        return gathered

    @contextmanager
    def blame(self) -> Iterator[None]:
        try:
            yield
        except Told:
            raise
        except Exception as error:
            # Whoever fails says why before it goes, and only then do the others miss it: what was said first is why.
            kind = next((kind for kind in (UserError, RankError) if isinstance(error, kind)), None)
            own = said = json.dumps([kind is UserError, LOST if _is_lost(error) else _said(error)])
            with suppress(RuntimeError):  # the store may have been the lost rank's
                said = self.store.compare_set("failed", "", own).decode()
            if kind or (said == own and not _is_lost(error)):
                raise
            mendable, reason = json.loads(said)
            raise (UserError if mendable else RankError)(reason) from error

    @contextmanager
    def watched(self) -> Iterator[None]:
        """End this process where another failed and this one does not notice: a collective on GPUs waits for it."""
        ended = threading.Event()
        watch = threading.Thread(target=self._watch, args=(ended,), name="ranks", daemon=True)
        watch.start()
        try:
            yield
        finally:
            ended.set()
            watch.join()

    def _watch(self, ended: threading.Event) -> None:
        while not (reason := self._failure()):
            if ended.wait(WATCH_SECONDS):
                return
        if not ended.wait(GRACE_SECONDS):
            print(f"Process {self.rank} ends, for it still waits after another's failure: {reason}", file=sys.stderr)
            sys.stderr.flush()
            os._exit(1)

    def _failure(self) -> str:
        """What another rank said as it failed; empty where none did."""
        try:
            return json.loads(self.store.get("failed"))[1] if self.store.check(["failed"]) else ""
        except RuntimeError:  # the store was the lost rank's
            return LOST


def check(config: Config, size: int) -> None:
    """Raise `UserError` where the batches of `config` cannot be shared among `size` ranks."""
    name = "batch_size" if config.train.micro_batch_size is None else "micro_batch_size"
    rows = getattr(config.train, name)
    if rows % size:
        multiple = max(rows // size, 1) * size
        raise UserError(
            f"train.{name}={rows} cannot be shared equally among {size} processes (launcher.ranks): "
            f"choose a multiple of {size}, such as {multiple}, or a number of processes that divides it."
        )


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
            f"({_said(error)}): see their logs for what kept them, and run the same command again."
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


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"


def _is_lost(error: Exception) -> bool:
    """Whether it says no more than that another rank is gone."""
    words = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)
