"""Several processes that train one cell together: each has its share of every batch and of every tensor (FSDP2).

`Ranks` is a cell in one process, where all of this is nothing; `rendezvous` finds out what this process is part of.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from models.transformer import Decoder, PreNormBlock
from orchestrator.common.errors import UserError
from orchestrator.config.schema import Config
from sidecar.sharded import from_first, mean, whole

T = TypeVar("T")
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
        """Whether this is the rank that writes: ledger, checkpoints, readings, events, W&B."""
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
                from_first((None, said(error)))
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
            own = first = json.dumps([kind is UserError, LOST if _is_lost(error) else said(error)])
            with suppress(RuntimeError):  # the store may have been the lost rank's
                first = self.store.compare_set("failed", "", own).decode()
            if kind or (first == own and not _is_lost(error)):
                raise
            mendable, reason = json.loads(first)
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


def said(error: Exception) -> str:
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"


def _is_lost(error: Exception) -> bool:
    """Whether it says no more than that another rank is gone."""
    words = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)
