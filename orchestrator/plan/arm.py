"""Count what a cell computes, holds and writes, from its configuration and without allocating anything."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from models.spec import DecoderSpec, body_params, forward_flops_per_token, num_params
from models.transformer import Decoder
from orchestrator.config.schema import Config, Credit, SidecarMode
from orchestrator.experiments import due, playback
from orchestrator.experiments.experiment import sidecar_flops, training_flops
from orchestrator.experiments.forks import has_forks
from orchestrator.training.sidecar import planned_sidecar
from sidecar import Sidecar
from sidecar.channels.channel import Channel
from sidecar.forks import Forks

FP32 = 4  # bytes


@dataclass(frozen=True)
class ArmPlan:
    """The counts of one cell of an arm."""

    arm: str
    config: Config
    spec: DecoderSpec

    @cached_property
    def params(self) -> int:
        return num_params(self.spec)

    @cached_property
    def body(self) -> int:
        return body_params(self.spec)

    @cached_property
    def forward(self) -> int:
        """FLOPs of one token's forward pass."""
        return forward_flops_per_token(self.spec, self.config.train.seq_len)

    @property
    def begins(self) -> int:
        """The step at which the cell begins: that of its branch, or 0."""
        return self.config.branch.step or 0

    @property
    def updates(self) -> int:
        """Number of the cell's own updates; those of its trunk are the trunk's."""
        return self.config.train.steps - self.begins

    @property
    def tokens(self) -> int:
        train = self.config.train
        return self.updates * train.batch_size * train.seq_len

    def _own(self, steps: Iterable[int]) -> set[int]:
        """The ones of `steps` that the cell trains; where it has no trunk, step 0 too."""
        return {step for step in steps if step > self.begins or self.begins == 0}

    @property
    def flops(self) -> float:
        """FLOPs of the cell's own updates, including the sidecar's held-out passes and forks."""
        training = training_flops(self.config, self.spec) * self.updates / self.config.train.steps
        return training + sidecar_flops(self.config, self.spec, *self._beside)

    @property
    def fork_steps(self) -> int:
        """The number of updates of the sidecar's forks."""
        return self._beside[2]

    @cached_property
    def _beside(self) -> tuple[int, int, int]:
        """The sidecar's held-out passes, those of them with a backward pass, and the training steps of its forks."""
        sidecar = self.config.sidecar
        if has_forks(self.config):
            forks = self._sidecar.source
            assert isinstance(forks, Forks)
            at = range(self.begins, self.config.train.steps, sidecar.interval)
            steps, passes = map(sum, zip(*(forks.cost(step) for step in at), strict=True))
            return passes, 0, steps
        if sidecar.mode not in (SidecarMode.learn, SidecarMode.random) or playback.plays(self.config):
            return 0, 0, 0
        judged = max(0, self.decisions - 1)  # the last interval ends with the run
        learning = sidecar.mode == SidecarMode.learn and sidecar.credit == Credit.factored
        return self.decisions + judged, (judged + 1) * learning, 0  # the first has slopes too

    @property
    def evaluation_flops(self) -> float:
        """FLOPs of the logged held-out losses, each over `data.heldout_tokens` per domain."""
        data = self.config.data
        return float((len(self.evaluations) + 1) * len(data.domains) * data.heldout_tokens * self.forward)

    @property
    def decisions(self) -> int:
        """Number of the sidecar's decisions, one per interval."""
        on = self.config.sidecar.mode != SidecarMode.off
        return math.ceil(self.updates / self.config.sidecar.interval) if on else 0

    @cached_property
    def evaluations(self) -> set[int]:
        return self._own(due.evaluation_steps(self.config))

    @cached_property
    def records(self) -> set[int]:
        """Steps with a record in the metrics log."""
        decided = range(0, self.config.train.steps, self.config.sidecar.interval) if self.decisions else ()
        return self._own([*due.record_steps(self.config), *decided])

    @cached_property
    def readings(self) -> set[int]:
        """Steps with a reading."""
        return self._own(due.reading_steps(self.config))

    @cached_property
    def interventions(self) -> set[int]:
        """Steps with interventions."""
        return self._own(due.intervention_steps(self.config) or ())

    @property
    def documents(self) -> int:
        """Number of held-out rows on which the interventions on one checkpoint are judged, at most."""
        data = self.config.data
        rows = data.heldout_tokens // (self.config.train.seq_len + 1)
        return len(data.domains) * min(self.config.interventions.documents, rows)

    @property
    def intervention_flops(self) -> float:
        """FLOPs of the interventions on one checkpoint, at most.

        Two passes through the intact model, to calibrate and to compare, and one for every edit of every layer, which
        runs through the layers from that one on.
        """
        length, layers = self.config.train.seq_len + 1, self.spec.layers
        tails = [replace(self.spec, layers=layers[first:]) for first in range(len(layers))]
        edited = len(self.config.interventions.edits) * sum(forward_flops_per_token(of, length) for of in tails)
        return float(self.documents * length * (2 * forward_flops_per_token(self.spec, length) + edited))

    @cached_property
    def saved(self) -> set[int]:
        """Steps with a checkpoint, those copied from a trunk included."""
        return {0, self.begins, *self._own(due.checkpoint_steps(self.config))}

    @property
    def kept(self) -> int:
        """Number of checkpoints left at the end: the newest ones and that of step 0."""
        return len(self._newest(self.config.train.keep_checkpoints) | {0})

    def _newest(self, count: int | None) -> set[int]:
        """Steps of the newest `count` checkpoints, of all where it is None, and of those that are always kept."""
        newest = sorted(self.saved) if count is None else sorted(self.saved)[-count:]
        return {*newest, *(self.saved & {*self.config.train.keep_at})}

    @cached_property
    def checkpoint_bytes(self) -> tuple[int, int]:
        """Bytes of the checkpoint of step 0, and of a later one, as they are saved.

        Both hold fp32 weights, the sidecar's tensors, the weights without folded gains, and `state.json`; a later one
        also holds Adam's two moments and the momentum's trace.
        """
        weights = {name: tensor.numel() for name, tensor in self._model.named_parameters()}
        slopes, masters = self._sidecar_tensors
        moments = {f"{name}.{moment}": n for name, n in weights.items() for moment in ("exp_avg", "exp_avg_sq")}
        both = sum(_file(tensors) for tensors in (weights, slopes, masters) if tensors)
        return both + _file({}) + self._state(trained=False), both + _file(moments) + self._state(trained=True)

    @property
    def written(self) -> int:
        """Bytes of all checkpoints, including those deleted later."""
        start, later = self.checkpoint_bytes
        return start + (len(self.saved) - 1) * later

    @property
    def states(self) -> int:
        """Number of the kept checkpoints that keep the state to resume from: the newest, and those of `keep_at`."""
        return min(self.kept, len(self._newest(self.config.train.keep_states)))

    @property
    def reduced_bytes(self) -> tuple[int, int]:
        """Bytes of the checkpoint of step 0, and of a later one, once they are reduced to their weights."""
        weights = _file({name: tensor.numel() for name, tensor in self._model.named_parameters()})
        return weights + self._state(trained=False), weights + self._state(trained=True)

    @property
    def disk(self) -> int:
        """Bytes of the checkpoints left at the end."""
        (start, later), reduced = self.checkpoint_bytes, self.reduced_bytes
        if self.states == self.kept:
            return start + (self.kept - 1) * later
        return reduced[0] + (self.kept - 1 - self.states) * reduced[1] + self.states * later

    @cached_property
    def units(self) -> dict[str, list[str]]:
        """Channel → the names of its units."""
        return {name: [unit.name for unit in channel.units] for name, channel in self._channels.items()}

    @property
    def traces(self) -> int:
        """Number of entries of the tensors that the sidecar's channels keep."""
        return sum(self._sidecar_tensors[0].values())

    @cached_property
    def _model(self) -> Decoder:
        with torch.device("meta"):
            return Decoder(self.spec)

    @cached_property
    def _sidecar(self) -> Sidecar:
        return planned_sidecar(self.config)

    @property
    def _channels(self) -> dict[str, Channel]:
        return {} if self.config.sidecar.mode == SidecarMode.off else self._sidecar.channels

    @cached_property
    def _sidecar_tensors(self) -> tuple[dict[str, int], dict[str, int]]:
        """Return name → entries: of the channels' tensors, and of the weights that are saved with a gain folded in."""
        if self.config.sidecar.mode == SidecarMode.off:
            return {}, {}
        follows = self.config.sidecar.mode == SidecarMode.learn
        kept = {name: tensor.numel() for name, tensor in self._sidecar.tensors().items()} if follows else {}
        weights = {name: tensor.numel() for name, tensor in self._model.named_parameters()}
        folds = [channel for channel in self._channels.values() if type(channel).folded is not Channel.folded]
        return kept, {name: weights[name] for channel in folds for unit in channel.weights() for name in unit}

    def _state(self, *, trained: bool) -> int:
        """Return the bytes of `state.json` and `manifest.json`."""
        matrices = [name for name, tensor in self._model.named_parameters() if tensor.ndim >= 2]
        traced = self.config.forensics.trace_steps * NUMBER if trained else 0
        layers = len(self.spec.layers) * SHAPE
        decided = sum(len(name) + DECISION for names in self.units.values() for name in names)
        return STATE + layers + trained * sum(len(name) + traced for name in matrices) + decided


# Bytes of JSON in `state.json`: a number with its comma, a layer's shape, the sidecar's state of one unit (multiplier,
# features, noise, sample, policy's weights), and the rest with `manifest.json`.
NUMBER, SHAPE, DECISION, STATE = 21, 80, 480, 2000


def _file(tensors: dict[str, int]) -> int:
    """Return the bytes of an fp32 safetensors file: its length, a header padded to eights, the data."""
    header = 2 + sum(len(name) + HEADER for name in tensors)
    return 8 + header + FP32 * sum(tensors.values())


HEADER = 67  # bytes of JSON per tensor: dtype, shape, offsets
