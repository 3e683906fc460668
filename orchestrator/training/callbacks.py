"""The periodic work of a training run: one small class each, one line each in `callbacks_for`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import torch

from models.spec import forward_flops_per_token
from orchestrator.common.errors import INTERRUPTED, UserError
from orchestrator.config.schema import Config
from orchestrator.experiments import due
from orchestrator.experiments.readings import Readings
from orchestrator.forensics.reading import read_reading
from orchestrator.storage import checkpoint, metrics_log
from orchestrator.tracking.run import Tracker
from orchestrator.training.distributed import SINGLE_PROCESS, World
from orchestrator.training.gpus import peak_flops
from orchestrator.training.trainer import Callback, Trainer
from sidecar.sharded import gather


class Reader(Protocol):
    """Reads checkpoints beside training."""

    def add(self, path: Path) -> None:
        """Queue the checkpoint at `path`, which has just been saved."""

    def take_part(self) -> None:
        """Called after the last step: read in this process, too, what is still unread."""

    def is_busy(self) -> bool:
        """True while this process has readings to make; raises what one of them raised."""

    def close(self) -> None:
        """Finish the reading in progress and leave the rest, interventions under way included."""


NewReader = Callable[[Readings], Reader]


def callbacks_for(config: Config, new_reader: NewReader, world: World = SINGLE_PROCESS) -> list[Callback]:
    """The callbacks of a cell, in the order in which each step calls them; `new_reader` makes its reader.

    `WriteMetrics` follows those that add to the record and precedes `SaveCheckpoint`, so that no checkpoint is ahead
    of the metrics log. Readings and W&B, on rank 0 alone, come last: they read what the others wrote to disk.
    """
    metrics = WriteMetrics()
    from_disk = [ReadLayers(new_reader), Track(config, metrics)] if world.is_rank_0 else []
    return [DecideMultipliers(), TraceMomentum(), EvaluateHeldout(), metrics, SaveCheckpoint(), *from_disk]


class DecideMultipliers(Callback):
    """Lets the sidecar decide at the end of its interval (SCIENCE §6), before the checkpoint of that step."""

    def after_step(self, trainer: Trainer) -> None:
        if trainer.sidecar and trainer.sidecar.before_step(trainer.step):
            trainer.record["sidecar"] = trainer.sidecar.record()


class TraceMomentum(Callback):
    """Records cos(−exp_avg, w) of every matrix in the last steps before a reading (SCIENCE §1)."""

    def start(self, trainer: Trainer) -> None:
        self.read = due.reading_steps(trainer.config)

    @torch.no_grad()
    def after_step(self, trainer: Trainer) -> None:
        length = trainer.config.forensics.trace_steps
        if trainer.step == 0 or self.read.next(trainer.step) - trainer.step >= length:
            trainer.trace = {}  # a checkpoint between readings has no trace rather than an old one
            return
        cosines = []
        for name in trainer.optimizer.decayed:
            weight = trainer.optimizer.named[name]
            momentum = trainer.optimizer.adam.state[weight]["exp_avg"]
            cosines.append(-torch.cosine_similarity(gather(momentum).flatten(), gather(weight).flatten(), dim=0))
        values = torch.stack(cosines).tolist()  # one wait for the device
        for name, cosine in zip(trainer.optimizer.decayed, values, strict=True):
            trainer.trace[name] = [*trainer.trace.get(name, []), cosine][-length:]


class EvaluateHeldout(Callback):
    """Measures the held-out loss of every domain: on validation during training, on test after the last step."""

    def start(self, trainer: Trainer) -> None:
        self.due = due.evaluation_steps(trainer.config)
        self.rows = {
            split: {domain: trainer.corpus.heldout(domain, split) for domain in trainer.corpus.domains}
            for split in ("validation", "test")
        }

    def after_step(self, trainer: Trainer) -> None:
        if trainer.step in self.due:
            trainer.record["heldout"] = self._losses(trainer, "validation")
        if trainer.step == trainer.last_step:
            trainer.record["test"] = self._losses(trainer, "test")

    def _losses(self, trainer: Trainer, split: str) -> dict[str, float]:
        losses = {domain: trainer.heldout.mean(rows) for domain, rows in self.rows[split].items()}
        for domain, loss in losses.items():
            trainer.check_finite(f"{split} loss on {domain}", loss)
        return losses


class WriteMetrics(Callback):
    """Writes a record every `train.log_every` steps, and where another callback added to it.

    Its training loss is the mean over the steps since the previous record, and its speed that of the time since then.
    A record that is only due because the run ends leaves both to go on, as they would in a longer run.
    """

    def __init__(self) -> None:
        self.losses = torch.zeros((), dtype=torch.float64)  # sum since the last record, on the run's device
        self.count, self.tokens = 0, 0
        self.seconds = 0.0  # wall time from which the next record's speed counts

    def start(self, trainer: Trainer) -> None:
        self.due = due.record_steps(trainer.config)
        self.losses = self.losses.to(trainer.compute.device)
        peak = peak_flops(trainer.compute.device)
        flops = 3 * forward_flops_per_token(trainer.model.spec, trainer.config.train.seq_len)
        self.peak_speed = peak and peak * trainer.world.size / flops  # tokens/s at the devices' peak

    def after_step(self, trainer: Trainer) -> None:
        if trainer.step > 0:
            self.losses += trainer.train_loss
            self.count += 1
        if not (trainer.step in self.due or trainer.record):
            return
        trainer.check_health()
        loss = self.losses.item() / self.count if self.count else None
        seconds = trainer.seconds  # after the loss, which waited for the device
        elapsed = seconds - self.seconds
        speed = (trainer.tokens - self.tokens) / elapsed if elapsed > 0 else None
        record = {
            "step": trainer.step,
            "tokens": trainer.tokens,
            "lr": trainer.lr,
            "loss": loss,
            "grad_norm": trainer.grad_norm.item() if trainer.step else None,
            **trainer.record,
            "digest": trainer.digest,
            "seconds": round(seconds - trainer.seconds_of_trunk, 3),
            "tokens_per_second": None if speed is None else round(speed, 1),
            "mfu": None if speed is None or self.peak_speed is None else round(speed / self.peak_speed, 4),
            "attempt": trainer.attempt,
        }
        trainer.world.on_rank_0(lambda: trainer.files.log(record))
        trainer.record, trainer.logged = record, trainer.step
        if self.due.holds_in_a_longer_run(trainer.step) or trainer.step < trainer.last_step:
            self.losses.zero_()
            self.count, self.tokens, self.seconds = 0, trainer.tokens, seconds

    def state(self) -> dict[str, Any]:
        return {"losses": self.losses.item(), "count": self.count, "tokens": self.tokens, "seconds": self.seconds}

    def load(self, state: dict[str, Any]) -> None:
        self.losses = torch.tensor(state["losses"], dtype=torch.float64)
        self.count, self.tokens, self.seconds = state["count"], state["tokens"], state["seconds"]


class SaveCheckpoint(Callback):
    """Saves a checkpoint every `train.checkpoint_every` steps, at every reading, and at the first and the last step."""

    def start(self, trainer: Trainer) -> None:
        self.due = due.checkpoint_steps(trainer.config)

    def after_step(self, trainer: Trainer) -> None:
        if trainer.step in self.due:
            trainer.save()


class ReadLayers(Callback):
    """Passes due checkpoints to the reader; training waits for readings only after its last step.

    The next attempt reads the checkpoints that a crash or a signal left unread.
    """

    def __init__(self, new_reader: NewReader) -> None:
        self.new_reader = new_reader
        self.reader: Reader | None = None

    def start(self, trainer: Trainer) -> None:
        self.readings = Readings(trainer.cell_dir, trainer.config)
        self.reader = self.new_reader(self.readings)
        for path in self.readings.wanted():
            self.reader.add(path)

    def after_step(self, trainer: Trainer) -> None:
        assert self.reader is not None
        if trainer.step in self.readings.due:
            self.reader.add(checkpoint.path_of(trainer.files.checkpoints, trainer.step))
        self.reader.is_busy()  # raises what a reading raised

    def is_busy(self, trainer: Trainer) -> bool:
        assert self.reader is not None
        self.reader.take_part()
        return self.reader.is_busy()

    def finish(self, trainer: Trainer) -> None:
        self._close()
        trainer.prune()  # some were kept only until they were read

    def fail(self, trainer: Trainer, reason: str) -> None:
        self._close()

    def keeps(self, path: Path) -> bool:
        return self.readings.is_wanted(path)

    def _close(self) -> None:
        if self.reader is not None:
            self.reader.close()


class Track(Callback):
    """Sends metrics and readings to W&B as they appear on disk.

    W&B takes seconds to start, and the first update does not wait for it: what was logged before is sent then. The
    speed that `metrics` writes leaves these seconds out.
    """

    def __init__(self, config: Config, metrics: WriteMetrics) -> None:
        self.tracker, self.metrics = Tracker(config), metrics
        self.began, self.opened = 0, False
        self.sent: set[Path] = set()

    def start(self, trainer: Trainer) -> None:
        self.readings, self.began = Readings(trainer.cell_dir, trainer.config), trainer.step

    def after_step(self, trainer: Trainer) -> None:
        if "digest" in trainer.record and trainer.step > self.began:  # it is in the metrics log
            self._open(trainer)
            self.tracker.log(trainer.record)
            self._send_readings()

    def finish(self, trainer: Trainer) -> None:
        self._open(trainer)
        self._send_readings()
        self.tracker.finish(0 if trainer.step == trainer.last_step else INTERRUPTED)

    def fail(self, trainer: Trainer, reason: str) -> None:
        with suppress(UserError):  # a metrics log that cannot be read: `reason` says so already
            self._open(trainer)
        self.tracker.alert(f"{trainer.config.arm}/seed={trainer.config.seed} failed at step {trainer.step}", reason)
        self.tracker.finish(1)

    def _open(self, trainer: Trainer) -> None:
        if not self.opened:
            self.opened, began = True, trainer.seconds
            self.tracker.start(trainer.cell_dir, metrics_log.read(trainer.files.metrics_log))
            self.metrics.seconds += trainer.seconds - began

    def _send_readings(self) -> None:
        if set(self.readings.on_disk().values()) <= self.sent:
            return
        for path in self.readings.settled():
            if path not in self.sent:
                self.tracker.forensics(read_reading(path))
                self.sent.add(path)
