"""One training run: its model, data and optimizer, one update at a time, and its checkpoints."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.transformer import Decoder, init_weights
from orchestrator.common.errors import UserError
from orchestrator.config.schema import Config
from orchestrator.experiments import corpora
from orchestrator.experiments.experiment import decoder_spec
from orchestrator.experiments.extension import is_of_this_run
from orchestrator.storage import checkpoint, metrics_log
from orchestrator.storage.cell_files import CellFiles, Writing, unfenced
from orchestrator.training import distributed, initial_weights, trunk
from orchestrator.training.compute import compute_of
from orchestrator.training.distributed import SINGLE_PROCESS, World
from orchestrator.training.heldout import HeldoutLoss
from orchestrator.training.optimizer import DecoupledAdamW, learning_rate
from orchestrator.training.sidecar import sidecar_of
from sidecar.sharded import all_reduce_mean, gather, shard_like


class Callback:
    """Periodic work beside the updates. The loop calls callbacks in the order of `Trainer.callbacks`."""

    def start(self, trainer: Trainer) -> None:
        """Called before the loop, on a fresh and on a resumed run."""

    def after_step(self, trainer: Trainer) -> None:
        """Called after every update, and once at step 0 of a fresh run. May add to `trainer.record`."""

    def finish(self, trainer: Trainer) -> None:
        """Called after the loop, when the run is done or stopped."""

    def is_busy(self, trainer: Trainer) -> bool:
        """True after the last step while the run must wait for this callback's work before it ends."""
        return False

    def fail(self, trainer: Trainer, reason: str) -> None:
        """Called after the loop, when an error ended it."""

    def keeps(self, path: Path) -> bool:
        """True where the checkpoint at `path` must not be deleted or reduced yet."""
        return False

    def state(self) -> dict[str, Any]:
        """The state of this callback that checkpoints keep, JSON-able."""
        return {}

    def load(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""


class Trainer:
    """One training run. A checkpoint, written by `save` and read by `resume`, holds all that a restart needs.

    Masters are fp32. Every random draw is a function of (seed, name, step), so that checkpoints hold no generator's
    state. With several ranks each has a trainer and all take the same steps; rank 0 writes.
    """

    def __init__(
        self,
        config: Config,
        cell_dir: Path,
        attempt: int,
        callbacks: Sequence[Callback],
        writing: Writing = unfenced,
        world: World = SINGLE_PROCESS,
    ) -> None:
        distributed.check(config, world.size)
        train = config.train
        self.config, self.cell_dir, self.attempt = config, cell_dir, attempt
        self.callbacks, self.world = callbacks, world
        self.files = CellFiles(cell_dir, writing)
        self.compute = compute_of(train, world)
        self.corpus = corpora.prepare_for(config, cell_dir.parents[1])
        self.model = Decoder(decoder_spec(config))
        init_weights(self.model, config.seed, config.train.init_stream)
        if train.compile:
            self.model.compile_layers(fullgraph=world.size == 1)
        world.shard(self.model, self.compute.device, self.compute.bf16)
        self.micro_batch = train.micro_batch_size or train.batch_size
        self.heldout = HeldoutLoss(self.model, self.compute, world, self.micro_batch)
        self.optimizer = DecoupledAdamW(self.model, config.optim)
        self.sidecar = sidecar_of(
            config, cell_dir, self.model, self.optimizer.adam, self.corpus, self.heldout, self.rollout
        )
        self.step = 0
        self.tokens = 0
        self.seconds_before = 0.0  # wall time of the trunk and of earlier attempts
        self.seconds_of_trunk = 0.0  # the part of it that a branch did not take itself
        self.started = time.perf_counter()
        self.digest = self.corpus.digest  # chained over every batch: equal digests mean equal batches
        self.trace: dict[str, list[float]] = {}  # parameter → cos(−exp_avg, w) at the last recorded steps
        self.train_loss = torch.zeros((), dtype=torch.float64, device=self.compute.device)  # of the last update
        self.grad_norm = torch.zeros((), device=self.compute.device)
        self.lr = 0.0
        self.record: metrics_log.Record = {}
        self.logged = -1  # step of the metrics log's last record
        self.saved = -1  # step of the newest checkpoint that this run wrote or began from

    @property
    def seconds(self) -> float:
        """Wall time of training so far, that of the trunk, evaluations, checkpoints and readings included."""
        return self.seconds_before + time.perf_counter() - self.started

    @property
    def last_step(self) -> int:
        return self.config.train.steps

    def update(self) -> None:
        """Take one optimizer step, on the batch of that step."""
        rows = self._rows(self.step)
        self.digest = hashlib.sha256(self.digest.encode() + rows.numpy().tobytes()).hexdigest()
        self.train_loss, self.grad_norm, self.lr = self._descend(self.step, rows)
        self.step += 1
        self.tokens += rows[:, 1:].numel()

    def rollout(self, step: int, count: int) -> None:
        """Train `count` steps from `step` on as `update` does; nothing but model and optimizer changes."""
        for ahead in range(step, step + count):
            self._descend(ahead, self._rows(ahead))

    def _rows(self, step: int) -> Tensor:
        """The batch of a step, [B, T+1]."""
        return self.corpus.batch(self.config.seed, step, self.config.train.batch_size)

    def _descend(self, step: int, rows: Tensor) -> tuple[Tensor, Tensor, float]:
        """Take the optimizer's step of `step` on `rows`; return the mean loss, the gradient's norm and the rate."""
        rows = self.compute.to_device(rows)
        self.optimizer.zero_grad()
        train_loss = torch.zeros((), dtype=torch.float64, device=self.compute.device)
        for part in rows.split(self.micro_batch):
            mine, _ = self.world.shard_rows(part)
            with self.compute.autocast():
                loss = self.model.loss(mine)
            share = len(part) / self.config.train.batch_size
            (loss * share).backward()
            train_loss += loss.detach().double() * share
        train_loss = all_reduce_mean(train_loss)
        grad_norm = gather(torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optim.clip))
        lr = learning_rate(self.config.optim, step, self.config.train.steps)
        self.optimizer.step(lr, self.sidecar.applied if self.sidecar else None)
        return train_loss, grad_norm, lr

    def check_health(self) -> None:
        """Raise `UserError` where the last training loss or gradient norm is not finite."""
        self.check_finite("training loss", self.train_loss.item())
        self.check_finite("gradient norm", self.grad_norm.item())

    def check_finite(self, what: str, value: float) -> None:
        """Raise `UserError` where `value` is not finite."""
        if not math.isfinite(value):
            raise UserError(
                f"The {what} became {value} at step {self.step}: lower optim.lr or optim.clip, under another name=… "
                "(the checkpoints before it are kept)."
            )

    def save(self) -> None:
        """Write the checkpoint of this step, once, and delete the older ones that need not be kept."""
        if self.step == self.saved:
            return
        self.check_health()
        tensors = {stem: self.world.gather(named) for stem, named in self._tensors().items()}
        state = self._state()

        def write() -> None:
            self.files.save(self.step, tensors, state)
            self.prune()

        self.world.on_rank_0(write)
        self.saved = self.step

    def prune(self) -> None:
        """Delete and reduce older checkpoints, as `train` says, but for those that a callback still needs."""
        train = self.config.train

        def is_kept(path: Path) -> bool:
            return checkpoint.step_of(path) in train.keep_at or any(callback.keeps(path) for callback in self.callbacks)

        self.files.prune(train.keep_checkpoints, train.keep_states, spare=is_kept)

    def resume(self) -> list[str]:
        """Continue from the newest whole checkpoint; return a warning for each corrupt one.

        Without any, begin a branch where its trunk was; else at step 0, with random weights or those of
        `train.init_from`.
        """
        path, warnings = self.world.on_rank_0(lambda: self.files.newest_checkpoint(self._is_of_this_run))
        if path is None and self.config.branch.arm is not None:
            path = self.world.on_rank_0(lambda: trunk.begin(self.config, self.files, self.corpus))
        if path is not None:
            self._load(path)
        elif self.config.train.init_from is not None:
            self._set(initial_weights.read(self.config))
        self.world.on_rank_0(lambda: self.files.rewind(self.saved))
        return warnings

    def _is_of_this_run(self, state: dict[str, Any]) -> bool:
        return is_of_this_run(self.config, state["step"], state.get("steps", self.last_step))

    def _tensors(self) -> dict[str, dict[str, Tensor]]:
        """File stem → named tensors of a checkpoint.

        `model` computes what was evaluated: the sidecar's gains are multiplied in. `masters` are the trained values of
        the parameters that this changed.
        """
        model: dict[str, Tensor] = dict(self.model.named_parameters())
        folded = self.sidecar.folded() if self.sidecar else {}
        found = {
            "model": model | folded,
            "optimizer": self.optimizer.tensors(),
            "sidecar": self.sidecar.tensors() if self.sidecar else {},
            "masters": {name: model[name] for name in folded},
        }
        return {stem: named for stem, named in found.items() if named or stem in ("model", "optimizer")}

    def _state(self) -> dict[str, Any]:
        return {
            "schema": 1,
            "step": self.step,
            "steps": self.last_step,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "seconds_of_trunk": self.seconds_of_trunk,
            "digest": self.digest,
            "data": self.corpus.digest,
            "logged": self.logged,
            "name": self.config.name,
            "arm": self.config.arm,
            "seed": self.config.seed,
            "precision": self.compute.precision,
            "spec": self.model.spec.to_dict(),
            "optim": {"beta1": self.config.optim.beta1, "beta2": self.config.optim.beta2},
            "trace": self.trace,
            "sidecar": self.sidecar.state_dict() if self.sidecar else None,
            "callbacks": {type(callback).__name__: callback.state() for callback in self.callbacks},
        }

    def _set(self, weights: dict[str, Tensor]) -> None:
        parameters: dict[str, Tensor] = dict(self.model.named_parameters())
        self.model.load_state_dict({name: shard_like(tensor, parameters[name]) for name, tensor in weights.items()})

    def _load(self, path: Path) -> None:
        state = checkpoint.read_state(path)
        begins = state["step"] == self.config.branch.step
        if not begins:  # a branch may have other data, and another precision, than its trunk
            self.corpus.check_digest(state["data"], path)
            self.compute.check_precision(state.get("precision"), path)
        saved = checkpoint.read_tensors(path, "model")
        if self.sidecar or not begins:  # whose gains are folded into the weights
            saved |= checkpoint.read_tensors(path, "masters", required=False)
        self._set(saved)
        self.step, self.tokens, self.seconds_before = state["step"], state["tokens"], state["seconds"]
        self.seconds_of_trunk = self.seconds_before if begins else state.get("seconds_of_trunk", 0.0)
        self.digest, self.trace, self.logged = state["digest"], state["trace"], state["logged"]
        self.saved = self.step
        self.optimizer.load(checkpoint.read_tensors(path, "optimizer"), self.step)
        if self.sidecar and not (begins and state["sidecar"] is None):
            self.sidecar.load_state_dict(state["sidecar"], checkpoint.read_tensors(path, "sidecar", required=False))
        for callback in self.callbacks:
            if kept := state["callbacks"].get(type(callback).__name__):
                callback.load(kept)
