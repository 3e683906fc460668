"""What happens beside the updates: one small class each, one line each in `callbacks_for`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from orchestrator.common.errors import INTERRUPTED, UserError
from orchestrator.config.schema import Config, SidecarMode
from orchestrator.experiments import playback
from orchestrator.experiments.experiment import reward_rows
from orchestrator.jobs.readings import READERS, Reader, Readings
from orchestrator.storage import checkpoint, metrics_log
from orchestrator.tracking.run import Tracker
from orchestrator.training.distributed import ALONE, Ranks
from orchestrator.training.trainer import Callback, Run
from sidecar import Heldout, Sidecar
from sidecar.sharded import whole

OURS = ("reward_rows", "schedule", "schedule_seed")  # of the sidecar's configuration, what `Sidecar` does not take


def callbacks_for(config: Config, ranks: Ranks = ALONE) -> list[Callback]:
    """The callbacks of a cell, in the order in which each step calls them.

    What adds to the record comes before the ledger writes it; the ledger is written before the checkpoint,
    so that no checkpoint is ahead of it; forensics is handed the checkpoint; the tracker projects what is on disk.
    What only reads from disk is the first rank's.
    """
    sidecar = [] if config.sidecar.mode == SidecarMode.off else [PressSidecar()]
    readers = [ReadLayers(), Track(config)] if ranks.is_first else []
    return [*sidecar, TraceMomentum(), EvaluateHeldout(), WriteLedger(), SaveCheckpoint(), *readers]


def build_sidecar(
    config: Config,
    model: nn.Module,
    heldout_loss: Heldout,
    optimizer: torch.optim.Optimizer | None = None,
    schedule: list[dict[str, Any]] | None = None,
) -> Sidecar:
    """The sidecar that `config` describes. Raises `UserError` where its bounds are not safe."""
    options, optim = config.sidecar, config.optim
    try:
        return Sidecar(
            model, heldout_loss, lr=optim.lr, weight_decay=optim.weight_decay, eps=optim.eps, beta2=optim.beta2,
            seed=config.seed,
            steps=config.train.steps, optimizer=optimizer, fresh=True, schedule=schedule,
            **{field.name: getattr(options, field.name) for field in fields(options) if field.name not in OURS},
        )  # fmt: skip
    except ValueError as error:
        raise UserError(str(error)) from error


class PressSidecar(Callback):
    """Learned multipliers on the model's training, judged on the reward split (SCIENCE §6).

    A decision is made after the step that ends an interval, before the checkpoint: a restart begins behind it.
    """

    saved: tuple[dict[str, Any], dict[str, Tensor]] | None = None

    def start(self, run: Run) -> None:
        count = reward_rows(run.config)
        splits = [run.corpus.heldout(domain, "reward") for domain in run.corpus.domains]

        def heldout_loss(interval: int) -> Iterator[Tensor]:
            at = torch.arange(interval * count, (interval + 1) * count)
            return run.heldout_parts(torch.cat([rows[at % len(rows)] for rows in splits]))

        self.sidecar = build_sidecar(run.config, run.model, heldout_loss, run.optimizer.adam, playback.read(run))
        if self.saved:
            self.sidecar.load_state_dict(*self.saved)
        run.optimizer.around = self.sidecar.applied
        run.folded = self.sidecar.folded

    def after_step(self, run: Run) -> None:
        if self.sidecar.before_step(run.step):
            run.record["sidecar"] = self.sidecar.record()

    def state(self) -> dict[str, Any]:
        return self.sidecar.state_dict()

    def tensors(self) -> dict[str, Tensor]:
        return self.sidecar.tensors()

    def load(self, state: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        self.saved = (state, tensors)


class TraceMomentum(Callback):
    """Records cos(−exp_avg, w) of every matrix over the last steps before a reading (SCIENCE §1)."""

    @torch.no_grad()
    def after_step(self, run: Run) -> None:
        every, length = run.config.forensics.every, run.config.forensics.trace_steps
        next_reading = min((run.step + every - 1) // every * every, run.last_step)
        if run.step == 0 or next_reading - run.step >= length:
            run.trace = {}  # a checkpoint between readings has no trace rather than an old one
            return
        names = run.optimizer.decayed
        weights = [run.optimizer.named[name] for name in names]
        momenta = [run.optimizer.adam.state[weight]["exp_avg"] for weight in weights]
        cosines = torch.stack(
            [
                -torch.cosine_similarity(whole(m).flatten(), whole(w).flatten(), dim=0)
                for m, w in zip(momenta, weights, strict=True)
            ]
        )
        for name, cosine in zip(names, cosines.tolist(), strict=True):  # one wait for the device
            run.trace[name] = [*run.trace.get(name, []), cosine][-length:]


class EvaluateHeldout(Callback):
    """Held-out loss per domain: validation while training, test once, at the end."""

    def start(self, run: Run) -> None:
        self.rows = {
            split: {domain: run.corpus.heldout(domain, split) for domain in run.corpus.domains}
            for split in ("validation", "test")
        }

    def after_step(self, run: Run) -> None:
        if run.due(run.config.train.eval_every):
            run.record["heldout"] = self._losses(run, "validation")
        if run.step == run.last_step:
            run.record["test"] = self._losses(run, "test")

    def _losses(self, run: Run, split: str) -> dict[str, float]:
        losses = {domain: run.heldout_loss(rows) for domain, rows in self.rows[split].items()}
        for domain, loss in losses.items():
            run.check_finite(f"{split} loss on {domain}", loss)
        return losses


class WriteLedger(Callback):
    """One record per step that is due or that has something to say.

    The training loss is the mean over the steps since the record before.
    """

    def __init__(self) -> None:
        self.losses = torch.zeros((), dtype=torch.float64)  # sum since the last record, on the run's device
        self.count, self.tokens, self.seconds = 0, 0, 0.0

    def start(self, run: Run) -> None:
        self.losses = self.losses.to(run.device)

    def after_step(self, run: Run) -> None:
        if run.step > 0:
            self.losses += run.train_loss
            self.count += 1
        if not (run.due(run.config.train.log_every) or run.record):
            return
        run.check_health()
        loss = self.losses.item() / self.count if self.count else None
        seconds = run.seconds  # after the loss, which waited for the device
        elapsed = seconds - self.seconds
        record = {
            "step": run.step,
            "tokens": run.tokens,
            "lr": run.lr,
            "loss": loss,
            "grad_norm": run.grad_norm.item() if run.step else None,
            **run.record,
            "digest": run.digest,
            "seconds": round(seconds, 3),
            "tokens_per_second": round((run.tokens - self.tokens) / elapsed, 1) if elapsed > 0 else None,
            "attempt": run.attempt,
        }
        run.ranks.first(lambda: self._append(run, record))
        run.record, run.logged = record, run.step
        self.losses.zero_()
        self.count, self.tokens, self.seconds = 0, run.tokens, seconds

    def _append(self, run: Run, record: metrics_log.Record) -> None:
        with run.writing():
            metrics_log.append(run.cell_dir / "ledger.jsonl", record)

    def state(self) -> dict[str, Any]:
        return {"losses": self.losses.item(), "count": self.count, "tokens": self.tokens, "seconds": self.seconds}

    def load(self, state: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        self.losses = torch.tensor(state["losses"], dtype=torch.float64)
        self.count, self.tokens, self.seconds = state["count"], state["tokens"], state["seconds"]


class SaveCheckpoint(Callback):
    """A checkpoint every `train.checkpoint_every` steps, at every reading, first and last."""

    def after_step(self, run: Run) -> None:
        if run.due(run.config.train.checkpoint_every) or run.due(run.config.forensics.every):
            run.save()


class ReadLayers(Callback):
    """Forensics of every checkpoint that is due for it, beside training, which waits for it only after its last step.

    What a crash or a signal left unread is read by the next attempt.
    """

    reader: Reader | None = None

    def start(self, run: Run) -> None:
        self.readings = Readings(run.cell_dir, run.config)
        self.reader = READERS[run.config.forensics.where, run.config.launcher.kind](self.readings)
        for path in self.readings.unread():
            self.reader.add(path)

    def after_step(self, run: Run) -> None:
        assert self.reader is not None
        if run.due(run.config.forensics.every):
            self.reader.add(checkpoint.path_of(run.checkpoints, run.step))
        self.reader.is_busy()  # raises what a reading raised

    def is_busy(self, run: Run) -> bool:
        assert self.reader is not None
        self.reader.take_part()
        return self.reader.is_busy()

    def finish(self, run: Run) -> None:
        self._close()
        run.prune()  # what was spared until it was read

    def fail(self, run: Run, reason: str) -> None:
        self._close()

    def needs(self, path: Path) -> bool:
        return self.readings.is_unread(path)

    def _close(self) -> None:
        if self.reader is not None:
            self.reader.close()


class Track(Callback):
    """Ledger and forensics, as they appear on disk, projected to W&B."""

    def __init__(self, config: Config) -> None:
        self.tracker = Tracker(config)
        self.sent: set[Path] = set()

    def start(self, run: Run) -> None:
        self.tracker.start(run.cell_dir, metrics_log.read(run.cell_dir / "ledger.jsonl"))
        self.readings = Readings(run.cell_dir, run.config)
        self._send_readings()

    def after_step(self, run: Run) -> None:
        if "digest" in run.record:  # the ledger took it
            self.tracker.log(run.record)
            self._send_readings()

    def finish(self, run: Run) -> None:
        self._send_readings()
        self.tracker.finish(0 if run.step == run.last_step else INTERRUPTED)

    def fail(self, run: Run, reason: str) -> None:
        self.tracker.alert(f"{run.config.arm}/seed={run.config.seed} failed at step {run.step}", reason)
        self.tracker.finish(1)

    def _send_readings(self) -> None:
        if self.readings.on_disk() <= self.sent:
            return
        for path in self.readings.settled():
            if path not in self.sent:
                self.tracker.forensics(json.loads(path.read_text()))
                self.sent.add(path)
