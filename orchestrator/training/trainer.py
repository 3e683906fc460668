"""One training run: its model, its optimizer, its place in the data, and how these survive a restart."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.transformer import Decoder, init_weights
from orchestrator.common.errors import UserError
from orchestrator.config.schema import Config, Device, Precision
from orchestrator.data import prepare
from orchestrator.experiments.experiment import decoder_spec
from orchestrator.storage import checkpoint, metrics_log
from orchestrator.training import distributed
from orchestrator.training.distributed import SINGLE_PROCESS, World
from orchestrator.training.optimizer import DecoupledAdamW, learning_rate
from sidecar.sharded import gather, shard_like

Writing = Callable[[], AbstractContextManager[Callable[[], None]]]  # as `Lease.writing`


@contextmanager
def unfenced() -> Iterator[Callable[[], None]]:
    """For a run that nobody else can take over."""
    yield lambda: None


class Callback:
    """Something that happens beside the updates. Callbacks are called in the order of their list."""

    def start(self, trainer: Trainer) -> None:
        """Before the loop, on a fresh and on a resumed run."""

    def after_step(self, trainer: Trainer) -> None:
        """After every update, and once at step 0 of a fresh run. May add to `run.record`."""

    def finish(self, trainer: Trainer) -> None:
        """After the loop, when the run is done or stopped."""

    def is_busy(self, trainer: Trainer) -> bool:
        """After the last step: whether there is still something under way that the end must wait for."""
        return False

    def fail(self, trainer: Trainer, reason: str) -> None:
        """After the loop, when an error ended it."""

    def needs(self, path: Path) -> bool:
        """Whether the checkpoint at `path` must not be deleted yet."""
        return False

    def state(self) -> dict[str, Any]:
        """What must survive a restart, as JSON."""
        return {}

    def tensors(self) -> dict[str, Tensor]:
        """And what of it is tensors."""
        return {}

    def load(self, state: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Take back what `state` and `tensors` returned."""


class Trainer:
    """Everything that makes up one training run; `save` and `resume` are its whole memory.

    Masters are fp32. Randomness comes from named streams that are functions of (seed, name, step), so that
    beside weights and moments a restart needs only the step and what callbacks remember. Of several `ranks`, each
    has a run of its own and all do the same; what is on disk is the first one's to change.
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
        self.config, self.cell_dir, self.attempt, self.callbacks = config, cell_dir, attempt, callbacks
        self.writing = writing  # around every change of what is on disk; raises where another attempt has the cell
        self.world = world
        distributed.check(config, world.size)
        self.device = world.device(_device(config.train.device))
        self.autocast = _autocast(config.train.precision, self.device)
        self.corpus = prepare(config.data, config.model.vocab_size, config.train.seq_len)
        self.spec = decoder_spec(config)
        self.model = Decoder(self.spec)
        init_weights(self.model, config.seed)
        world.shard(self.model, self.device, bf16=not isinstance(self.autocast, nullcontext))
        self.loss = torch.compile(self.model.loss) if config.train.compile else self.model.loss
        self.optimizer = DecoupledAdamW(self.model, config.optim)
        self.step = 0
        self.tokens = 0
        self.seconds_before = 0.0  # of earlier attempts
        self.started = time.perf_counter()
        self.digest = self.corpus.digest  # chained over every batch: equal digests mean equal batches
        self.trace: dict[str, list[float]] = {}  # parameter → cos(−exp_avg, w) of the last recorded steps
        self.train_loss = torch.zeros((), dtype=torch.float64, device=self.device)  # of the last update
        self.grad_norm = torch.zeros((), device=self.device)
        self.folded: Callable[[], dict[str, Tensor]] = dict  # parameters that act otherwise than they are trained
        self.record: metrics_log.Record = {}
        self.logged = -1  # step of the metrics log's last record
        self.saved = -1  # step of the newest checkpoint that this run wrote or began from
        self.lr = 0.0

    @property
    def seconds(self) -> float:
        """Wall time of training so far, evaluations, checkpoints and readings included."""
        return self.seconds_before + time.perf_counter() - self.started

    @property
    def checkpoints(self) -> Path:
        return self.cell_dir / "checkpoints"

    @property
    def last_step(self) -> int:
        return self.config.train.steps

    def due(self, every: int) -> bool:
        """Whether something that happens every so many steps, and always first and last, happens now."""
        return self.step % every == 0 or self.step == self.last_step

    def update(self) -> None:
        """One optimizer step on the batch that belongs to it."""
        train = self.config.train
        rows = self.corpus.batch(self.config.seed, self.step, train.batch_size)  # [B, T+1]
        self.digest = hashlib.sha256(self.digest.encode() + rows.numpy().tobytes()).hexdigest()
        if self.device.type == "cuda":
            rows = rows.pin_memory()  # else the copy waits for the device
        rows = rows.to(self.device, non_blocking=True)
        micro = train.micro_batch_size or train.batch_size
        self.optimizer.zero_grad()
        self.train_loss.zero_()
        for part in rows.split(micro):
            own, _ = self.world.shard_rows(part)
            with self.autocast:
                loss = self.loss(own)
            share = len(part) / train.batch_size
            (loss * share).backward()
            self.train_loss += loss.detach().double() * share
        self.train_loss = self.world.all_reduce_mean(self.train_loss)
        self.grad_norm = gather(torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optim.clip))
        self.lr = learning_rate(self.config.optim, self.step, train.steps)
        self.optimizer.step(self.lr)
        self.step += 1
        self.tokens += rows[:, 1:].numel()

    @torch.no_grad()
    def heldout_loss(self, rows: Tensor) -> float:
        """Mean loss over `rows` [n, T+1], in nats per token."""
        return self.world.all_reduce_mean(torch.stack(list(self.heldout_parts(rows))).sum()).item()

    def heldout_parts(self, rows: Tensor) -> Iterator[Tensor]:
        """The same in parts that sum to it, one micro-batch each, with a graph where gradients are enabled.

        Of several ranks, each has its share of every part, and the mean over ranks is the loss.
        """
        size = self.config.train.micro_batch_size or self.config.train.batch_size
        for part in rows.split(size):
            own, factor = self.world.shard_rows(part)
            with self.autocast:
                losses = self.model.loss(own.to(self.device), reduction="none")
            yield losses.double().sum() / (rows[:, 1:].numel() / factor)

    def check_health(self) -> None:
        """Raise `UserError` once the loss or the gradient has left the finite numbers."""
        self.check_finite("training loss", self.train_loss.item())
        self.check_finite("gradient norm", self.grad_norm.item())

    def check_finite(self, what: str, value: float) -> None:
        """Raise `UserError` where `value` is no number to go on with."""
        if not math.isfinite(value):
            raise UserError(
                f"The {what} became {value} at step {self.step}: lower optim.lr or optim.clip, "
                "under another name=...; the checkpoints before it stand."
            )

    def save(self) -> Path:
        """Write the checkpoint of this step, and drop those that `train.keep_checkpoints` does not keep."""
        if self.step == self.saved:
            return checkpoint.path_of(self.checkpoints, self.step)
        self.check_health()
        model: dict[str, Tensor] = dict(self.model.named_parameters())
        folded = self.folded()
        tensors = {"model": model | folded, "optimizer": self.optimizer.tensors()}
        if beside := {f"{type(c).__name__}/{k}": t for c in self.callbacks for k, t in c.tensors().items()}:
            tensors["callbacks"] = beside
        if folded:  # whoever reads the checkpoint gets the model that was evaluated; a restart gets these
            tensors["masters"] = {name: model[name] for name in folded}
        tensors = {stem: self.world.gather(named) for stem, named in tensors.items()}
        state = {
            "schema": 1,
            "step": self.step,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "digest": self.digest,
            "data": self.corpus.digest,
            "logged": self.logged,
            "name": self.config.name,
            "arm": self.config.arm,
            "seed": self.config.seed,
            "spec": self.spec.to_dict(),
            "optim": {"beta1": self.config.optim.beta1, "beta2": self.config.optim.beta2},
            "trace": self.trace,
            "callbacks": {type(c).__name__: c.state() for c in self.callbacks},
        }
        path = self.world.on_rank_0(lambda: self._write(tensors, state))
        self.saved = self.step
        return path

    def _write(self, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> Path:
        path = checkpoint.path_of(self.checkpoints, self.step)
        with self.writing():
            if path.exists():  # of an attempt that went on when it was thought dead
                checkpoint.set_aside(path)
        checkpoint.save(self.checkpoints, self.step, tensors, state, self.writing)
        self.prune()
        return path

    def prune(self) -> None:
        """Drop the checkpoints that `train.keep_checkpoints` does not keep and that no callback needs."""
        keep = self.config.train.keep_checkpoints
        if keep is not None:
            with self.writing():
                checkpoint.prune(self.checkpoints, keep, spare=lambda path: any(c.needs(path) for c in self.callbacks))

    def resume(self) -> list[str]:
        """Go on from the newest whole checkpoint, if there is one; return a sentence for each damaged one."""
        path, warnings = self.world.on_rank_0(self._step_back)
        if path is None:
            return warnings
        state = checkpoint.read_state(path)
        self.corpus.check_digest(state["data"], path)
        saved = checkpoint.read_tensors(path, "model") | checkpoint.read_tensors(path, "masters", required=False)
        parameters: dict[str, Tensor] = dict(self.model.named_parameters())
        self.model.load_state_dict({name: shard_like(tensor, parameters[name]) for name, tensor in saved.items()})
        self.step, self.tokens, self.seconds_before = state["step"], state["tokens"], state["seconds"]
        self.saved = self.step
        self.digest, self.trace, self.logged = state["digest"], state["trace"], state["logged"]
        self.optimizer.load(checkpoint.read_tensors(path, "optimizer"), self.step)
        beside = checkpoint.read_tensors(path, "callbacks", required=False)
        for callback in self.callbacks:
            name = type(callback).__name__
            own = {k.removeprefix(f"{name}/"): t for k, t in beside.items() if k.startswith(f"{name}/")}
            callback.load(state["callbacks"].get(name, {}), own)
        self.world.on_rank_0(self._rewind)
        return warnings

    def _rewind(self) -> None:
        with self.writing() as check:
            metrics_log.rewind(self.cell_dir / "metrics.jsonl", self.step, check)

    def _step_back(self) -> tuple[Path | None, list[str]]:
        """The checkpoint to go on from; later ones, and what was read of them, are set aside."""
        path, warnings = self._newest_within_metrics()
        start = -1 if path is None else checkpoint.step_of(path)
        with self.writing() as check:
            try:
                checkpoint.clear_partial(self.checkpoints)
                for newer in checkpoint.saved(self.checkpoints):
                    if checkpoint.step_of(newer) > start:
                        check()
                        checkpoint.set_aside(newer)
                self._set_readings_aside(start, check)
            except OSError as error:
                raise UserError(
                    f"{self.cell_dir} cannot go back to step {max(start, 0)} ({error}): make room or make it writable, "
                    "and run the same command again."
                ) from error
            if path is None:
                metrics_log.rewind(self.cell_dir / "metrics.jsonl", -1, check)
        return path, warnings

    def _newest_within_metrics(self) -> tuple[Path | None, list[str]]:
        """The newest whole checkpoint that the metrics log covers; resuming from a later one would leave a gap."""
        path, warnings = checkpoint.newest(self.checkpoints)
        last = metrics_log.newest(self.cell_dir / "metrics.jsonl")
        reached = last["step"] if last else -1
        while path is not None and checkpoint.read_state(path)["logged"] > reached:
            warnings.append(
                f"{path} is ahead of the metrics log, which was cut at step {reached}: an earlier one is used."
            )
            path, _ = checkpoint.newest(self.checkpoints, before=checkpoint.step_of(path))
        return path, warnings

    def _set_readings_aside(self, after: int, check: Callable[[], None]) -> None:
        """Readings of checkpoints that are about to be written again say nothing of the new ones."""
        for reading in (self.cell_dir / "forensics").glob("step_*.json"):
            if int(reading.stem.removeprefix("step_")) > after:
                check()
                reading.replace(reading.with_name(f"{reading.name}.replaced"))


def _device(device: Device) -> torch.device:
    if device == Device.auto:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device == Device.cuda and not torch.cuda.is_available():
        raise UserError("train.device=cuda, but torch sees no GPU here: use train.device=auto.")
    return torch.device(device.value)


def _autocast(precision: Precision, device: torch.device) -> AbstractContextManager[Any]:
    if precision == Precision.bf16 or (precision == Precision.auto and device.type == "cuda"):
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()
