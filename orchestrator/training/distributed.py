"""The processes that train one cell (FSDP2): each holds its shards of the tensors and sees its rows of a batch."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from models.transformer import Decoder, PreNormBlock
from orchestrator.common.errors import UserError
from orchestrator.config.schema import Config
from sidecar.sharded import broadcast, gather, is_sharded

T = TypeVar("T")
WATCH_SECONDS = 5.0  # between two checks whether another rank has failed
GRACE_SECONDS = 120.0  # for a rank to notice a failure, to record it, and to end by itself
LOST = "another of its processes ended without a message (killed, or out of memory)"


class RankError(Exception):
    """Another rank failed or did not start, for a reason that the user cannot mend."""


class Rank0Error(UserError):
    """An error of rank 0, raised on the other ranks."""


class World:
    """All processes that train a cell, seen from one of them. Without arguments: this process trains alone."""

    def __init__(self, rank: int = 0, size: int = 1, local_rank: int = 0, store: dist.Store | None = None) -> None:
        self.rank, self.size, self.local_rank, self.store = rank, size, local_rank, store

    @property
    def is_rank_0(self) -> bool:
        """True in the process that writes: metrics log, checkpoints, readings, events, W&B."""
        return self.rank == 0

    def device(self, device: torch.device) -> torch.device:
        """`device`; where several ranks train on GPUs, the GPU of this rank."""
        if self.size == 1 or device.type != "cuda":
            return device
        # a scheduler may show a task all GPUs of the machine, or one
        device = torch.device("cuda", self.local_rank % torch.cuda.device_count())
        torch.cuda.set_device(device)
        return device

    def shard(self, model: Decoder, device: torch.device, bf16: bool) -> None:
        """Move `model` to `device`. Several ranks shard it: one FSDP group per layer's matrices, one for the rest.

        Masters are fp32. With `bf16` a layer's matrices are gathered in bf16, to which autocast would cast them; norm
        scales, which are in the root's group, and the residual stream stay fp32, as in one process.
        """
        if self.size == 1:
            model.to(device)
            return
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        mesh = init_device_mesh(device.type, (self.size,))
        matrices = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16 if bf16 else None, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
        rest = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
        # Resharded after every forward pass, the root too: between passes optimizer, sidecar and checkpoint see shards.
        for layer in model.model.layers:
            assert isinstance(layer, PreNormBlock)
            branches: list[nn.Module] = [layer.self_attn, layer.mlp]
            fully_shard(branches, mesh=mesh, mp_policy=matrices, reshard_after_forward=True)
        fully_shard(model, mesh=mesh, mp_policy=rest, reshard_after_forward=True)

    def shard_rows(self, rows: Tensor) -> tuple[Tensor, int]:
        """This rank's `rows`, and the factor that turns the mean over ranks of its sums into the sum over `rows`."""
        if len(rows) < self.size:  # every rank must run every pass: each takes all rows
            return rows, 1
        return rows[self.rank :: self.size], self.size

    def any_rank(self, flag: bool) -> bool:
        """True on every rank if `flag` is true on any. Acts as a barrier."""
        if self.size == 1:
            return flag
        flags = torch.tensor(int(flag))  # on the CPU: gloo waits for no GPU and notices a rank that is gone
        dist.all_reduce(flags, dist.ReduceOp.MAX)
        return bool(flags)

    def on_rank_0(self, act: Callable[[], T]) -> T:
        """Call `act` on rank 0 alone; return its result, or raise its error, on every rank. Acts as a barrier."""
        outcome: tuple[Any, str | None] = (None, None)
        if self.is_rank_0:
            try:
                outcome = (act(), None)
            except Exception as error:
                broadcast((None, describe(error)))
                raise
        result, failure = broadcast(outcome)
        if failure is not None:
            raise Rank0Error(failure)
        return result

    def broadcast(self, text: str = "") -> str:
        """Rank 0's `text`, on every rank."""
        return str(broadcast(text))

    def gather(self, named: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The full tensors on rank 0, on the CPU where they were sharded; nothing on the other ranks."""
        gathered = {}
        for name, tensor in named.items():
            full = gather(tensor.detach())
            if self.is_rank_0:
                gathered[name] = full.cpu() if is_sharded(tensor) else full
        return gathered

    @contextmanager
    def failing_together(self) -> Iterator[None]:
        """Raise on every rank an error that one of them raises in the block."""
        try:
            yield
        except Exception as error:
            if self.store is None or isinstance(error, Rank0Error):
                raise
            # A rank that fails stores its reason before it ends, and only its end makes others fail: the reason that
            # was stored first is the cause.
            kind = next((kind for kind in (UserError, RankError) if isinstance(error, kind)), None)
            reason = cause = json.dumps([kind is UserError, LOST if _is_lost(error) else describe(error)])
            with suppress(RuntimeError):  # the store may have been the lost rank's
                cause = self.store.compare_set("failed", "", reason).decode()
            if kind or (cause == reason and not _is_lost(error)):
                raise
            mendable, message = json.loads(cause)
            raise (UserError if mendable else RankError)(message) from error

    @contextmanager
    def watchdog(self) -> Iterator[None]:
        """End this process if it still waits long after another one failed: a collective on GPUs waits for ever."""
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
            print(
                f"Process {self.rank} ends, for it still waits after another's failure: {reason}",
                file=sys.stderr,
                flush=True,
            )
            os._exit(1)

    def _failure(self) -> str:
        """The reason that a failed rank stored; empty where none failed."""
        assert self.store is not None
        try:
            return json.loads(self.store.get("failed"))[1] if self.store.check(["failed"]) else ""
        except RuntimeError:  # the store was the lost rank's
            return LOST


SINGLE_PROCESS = World()


def check(config: Config, size: int) -> None:
    """Raise `UserError` where the batches of `config` do not divide among `size` ranks."""
    name = "batch_size" if config.train.micro_batch_size is None else "micro_batch_size"
    rows = getattr(config.train, name)
    if rows % size:
        multiple = max(rows // size, 1) * size
        raise UserError(
            f"train.{name}={rows} cannot be shared equally among {size} processes (launcher.ranks): "
            f"choose a multiple of {size}, such as {multiple}, or a number of processes that divides it."
        )


def describe(error: Exception) -> str:
    """The message of a `UserError`; of any other error also its type."""
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"


def _is_lost(error: Exception) -> bool:
    """True for an error that only says that another rank is gone."""
    phrases = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited")
    return isinstance(error, RuntimeError) and any(phrase in str(error) for phrase in phrases)
