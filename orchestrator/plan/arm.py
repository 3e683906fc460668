"""What one cell of an arm holds, computes and writes, counted from its configuration; nothing is allocated."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import torch

from models.transformer import Decoder, DecoderSpec, body_params, forward_flops_per_token, num_params
from orchestrator.config.schema import Config, Credit, SidecarMode
from orchestrator.experiments import playback
from orchestrator.experiments.experiment import decoder_spec, sidecar_flops, training_flops
from orchestrator.training.sidecar import planned_sidecar
from sidecar import Sidecar
from sidecar.channels.channel import Channel

FP32 = 4  # bytes


@dataclass(frozen=True)
class ArmPlan:
    """One cell of an arm, by structural count."""

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
    def tokens(self) -> int:
        train = self.config.train
        return train.steps * train.batch_size * train.seq_len

    @property
    def flops(self) -> float:
        """Of the whole run, the sidecar's held-out passes included."""
        learning = self.config.sidecar.mode == SidecarMode.learn and self.config.sidecar.credit == Credit.factored
        judged = max(0, self.decisions - 1)  # on the batches that each began on; then the next one begins
        judging = self.config.sidecar.mode in (SidecarMode.learn, SidecarMode.random)
        passes = self.decisions + judged if judging and not playback.plays_back(self.config) else 0
        return training_flops(self.config, self.spec) + sidecar_flops(self.config, self.spec, passes, judged * learning)

    @property
    def evaluation_flops(self) -> float:
        """Of the held-out losses that are logged: each split has `data.heldout_tokens` per domain."""
        data = self.config.data
        return float((len(self.evaluations) + 1) * len(data.domains) * data.heldout_tokens * self.forward)

    @property
    def decisions(self) -> int:
        """Multipliers that a sidecar puts in force."""
        on = self.config.sidecar.mode != SidecarMode.off
        return math.ceil(self.config.train.steps / self.config.sidecar.interval) if on else 0

    @cached_property
    def evaluations(self) -> set[int]:
        return self._due(self.config.train.eval_every)

    @cached_property
    def records(self) -> set[int]:
        """Steps that leave a line in the metrics log."""
        decided = range(0, self.config.train.steps, self.config.sidecar.interval) if self.decisions else ()
        return self._due(self.config.train.log_every) | self.evaluations | {*decided}

    @cached_property
    def readings(self) -> set[int]:
        """Steps whose layers are read."""
        return self._due(self.config.forensics.every)

    @cached_property
    def saved(self) -> set[int]:
        """Steps at which a checkpoint is written."""
        return self._due(self.config.train.checkpoint_every) | self.readings

    @property
    def kept(self) -> int:
        """Checkpoints that are there at the end; step 0 is kept beside the newest ones."""
        keep = self.config.train.keep_checkpoints
        return len(self.saved) if keep is None else min(len(self.saved), 1 + keep)

    @cached_property
    def checkpoint_bytes(self) -> tuple[int, int]:
        """Of the checkpoint of step 0 and of every later one.

        fp32 weights, later two moments beside them; what a sidecar's channels keep for their slopes, and the
        originals of what a gain is folded into; in `state.json` the momentum's trace and the sidecar's decisions.
        """
        weights = {name: tensor.numel() for name, tensor in self._model.named_parameters()}
        beside, masters = self._sidecar_tensors
        moments = {f"{name}.{moment}": n for name, n in weights.items() for moment in ("exp_avg", "exp_avg_sq")}
        both = sum(_file(tensors) for tensors in (weights, beside, masters) if tensors)
        return both + _file({}) + self._state(trained=False), both + _file(moments) + self._state(trained=True)

    @property
    def written(self) -> int:
        """Bytes of all checkpoints that are written, those deleted again included."""
        start, later = self.checkpoint_bytes
        return start + (len(self.saved) - 1) * later

    @property
    def disk(self) -> int:
        """Bytes of the checkpoints that are there at the end."""
        start, later = self.checkpoint_bytes
        return start + (self.kept - 1) * later

    @cached_property
    def units(self) -> dict[str, list[str]]:
        """Channel → what the sidecar moves in it."""
        return {name: [unit.name for unit in channel.units] for name, channel in self._channels.items()}

    @property
    def traces(self) -> int:
        """Entries of what a sidecar's channels keep beside the weights."""
        return sum(self._sidecar_tensors[0].values())

    def _due(self, every: int) -> set[int]:
        return {*range(0, self.config.train.steps, every), self.config.train.steps}

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
        """Name → entries: of what its channels keep, and of the parameters whose multiples are saved."""
        if self.config.sidecar.mode == SidecarMode.off:
            return {}, {}
        follows = self.config.sidecar.mode == SidecarMode.learn
        kept = {name: tensor.numel() for name, tensor in self._sidecar.tensors().items()} if follows else {}
        weights = {name: tensor.numel() for name, tensor in self._model.named_parameters()}
        folds = [channel for channel in self._channels.values() if type(channel).folded is not Channel.folded]
        return kept, {name: weights[name] for channel in folds for unit in channel.weights() for name in unit}

    def _state(self, *, trained: bool) -> int:
        """Bytes of `state.json` and `manifest.json`."""
        matrices = [name for name, tensor in self._model.named_parameters() if tensor.ndim >= 2]
        traced = self.config.forensics.trace_steps * NUMBER if trained else 0
        layers = len(self.spec.layers) * SHAPE
        decided = sum(len(name) + DECISION for names in self.units.values() for name in names)
        return STATE + layers + trained * sum(len(name) + traced for name in matrices) + decided


# Of JSON as `state.json` has it, bytes: a number with its comma, one layer's shape, what a sidecar keeps of one unit
# (its multiplier, features, noise and sample, and the policy's weights), and the rest of it with `manifest.json`.
NUMBER, SHAPE, DECISION, STATE = 21, 80, 480, 2000


def _file(tensors: dict[str, int]) -> int:
    """Bytes of a safetensors file of fp32: eight, a header padded to eights, the data."""
    header = 2 + sum(len(name) + HEADER for name in tensors)
    return 8 + header + FP32 * sum(tensors.values())


HEADER = 67  # bytes of JSON about one tensor: dtype, shape, offsets


def plan_arms(arms: Iterable[tuple[str, Config]]) -> list[ArmPlan]:
    return [ArmPlan(arm, config, decoder_spec(config)) for arm, config in arms]
