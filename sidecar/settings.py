"""The settings of a sidecar, refused where they cannot work."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sidecar.channels import CHANNELS, Arithmetic
from sidecar.channels.decays import DECAYS
from sidecar.credit import CREDITS
from sidecar.features import FEATURES
from sidecar.policy import MEANS, SIGMA_RANGE
from sidecar.rules import RULES
from sidecar.units import SHARES

MODES = ("learn", "rule", "replay", "permute", "random", "fixed")
FORKS = "forks"  # the credit that judges coefficients by forks of the run
TRACES = ("interval", "run")


@dataclass(frozen=True, kw_only=True)
class Settings(Arithmetic):
    """The settings of a sidecar (SCIENCE §6). Raises `ValueError` where a value cannot work.

    `mode`: `learn`; `rule`: compute the multipliers from the weights; `replay` a playback (decisions as
    `Sidecar.record` returns them) or `coefficients`; `permute` its layers; `random`: deal its values to the units at
    random, or without either draw from the untrained policy; `fixed`: every multiplier is 1. Where units differ in
    size, `permute` and `random` scale the values to the amount that `replay` would play.
    """

    seed: int
    channels: Sequence[str] = ("decay",)  # names in `CHANNELS`
    interval: int = 20  # steps for which a proposal is held
    fresh: bool = False  # the held-out batches differ from interval to interval
    steps: int | None = None  # length of the run, at whose end nothing is proposed; the feature `progress` needs it
    mode: str = "learn"
    rule: str = "alpha_decay"  # a name in `RULES`: what the mode `rule` computes
    share: str = "none"  # units that have one multiplier in common; in a playback, their parameter-weighted mean
    credit: str = "factored"  # forks, or a name in `CREDITS`; factored: a held-out backward pass gives slopes of units
    unexplained: float = 1.0  # factored: share of REINFORCE on what the slopes leave unexplained; 0: slopes alone
    trace: str = "interval"  # factored: slopes through the steps of an interval, or of the whole run
    horizon: float = 1.0  # forks: how far each one trains ahead, in memories of decay, 1/(lr·λ) steps
    pairs: int = 2  # forks: antithetic pairs per decision
    features: Sequence[str] = ("unit",)  # names in `FEATURES`: inputs of the policy's mean
    policy: str = "linear"  # a name in `MEANS`: the form of that mean
    sigma: float = 0.3  # initial standard deviation of the log-multipliers
    policy_lr: float = 0.5  # shift of a mean, as a share of σ, for a step of size one
    entropy: float = 0.001  # weight of the entropy bonus
    baseline_decay: float = 0.8  # of the reward's baseline: share of the old average that is kept at each interval
    warmup: int = 3  # first intervals, which are not judged and hold the first proposal
    bounds: Mapping[str, Sequence[float]] | None = None  # channel → (least, largest multiplier)
    coefficients: Mapping[str, Mapping[str, float]] | None = None  # channel → term → coefficient: the formula
    mean_matched: bool = False  # the parameter-weighted mean multiplier of each channel is 1

    def __post_init__(self) -> None:
        _one_of("mode", self.mode, MODES)
        _one_of("decay", self.decay, DECAYS)
        _one_of("rule", self.rule, RULES)
        _one_of("share", self.share, SHARES)
        _one_of("credit", self.credit, (*CREDITS, FORKS))
        _one_of("trace", self.trace, TRACES)
        _one_of("policy", self.policy, MEANS)
        for name in self.channels:
            _one_of("channel", name, CHANNELS)
        for name in self.features:
            _one_of("feature", name, FEATURES)
        for name in self.bounds or {}:
            _one_of("bounds", name, CHANNELS)
        if not self.channels:
            raise ValueError(f"sidecar channels {list(self.channels)}: name at least one, among {', '.join(CHANNELS)}.")
        if self.interval < 1:
            raise ValueError(f"sidecar interval={self.interval} must be at least 1 step.")
        if self.pairs < 1:
            raise ValueError(f"sidecar pairs={self.pairs} must be at least 1 antithetic pair.")
        if not 0 < self.horizon < math.inf:
            raise ValueError(f"sidecar horizon={self.horizon} must be positive and finite: it is in memories of decay.")
        if not SIGMA_RANGE[0] <= self.sigma <= SIGMA_RANGE[1]:
            raise ValueError(f"sidecar sigma={self.sigma} must lie between {SIGMA_RANGE[0]} and {SIGMA_RANGE[1]}.")
        for name, factor in self.lr_factors.items():
            if not 0 < factor < math.inf:
                raise ValueError(f"sidecar lr_factors of {name}={factor} must be a positive finite number.")
        for name in ("policy_lr", "entropy", "unexplained", "warmup"):
            if not 0 <= (value := getattr(self, name)) < math.inf:
                raise ValueError(f"sidecar {name}={value} must be finite and at least 0.")
        for name, what in (("beta2", "Adam's"), ("baseline_decay", "the share of the old average that is kept")):
            if not 0 < (value := getattr(self, name)) < 1:
                raise ValueError(f"sidecar {name}={value} must lie between 0 and 1, both excluded: it is {what}.")

    @property
    def forks(self) -> bool:
        """True where coefficients are learned from forks of the run."""
        return self.mode == "learn" and self.credit == FORKS

    def check(
        self,
        optimizer: torch.optim.Optimizer | None,
        playback: Sequence[Any] | None,
        rollout: Callable[[int, int], Any] | None,
    ) -> None:
        """Raise `ValueError` where the settings do not fit each other, the optimizer, the playback or the rollout."""
        for name, what, given in (("progress", "steps", self.steps), ("momentum_alignment", "optimizer", optimizer)):
            if name in self.features and given is None:
                raise ValueError(f"sidecar feature '{name}' is 0 without {what}: give {what}=…, or drop the feature.")
        for group in optimizer.param_groups if optimizer else ():
            if group.get("weight_decay"):
                raise ValueError(
                    f"the optimizer has weight_decay={group['weight_decay']:g}, on top of the sidecar's: set it to 0, "
                    "because the sidecar decays the weights."
                )
        if playback is not None and self.coefficients:
            raise ValueError("sidecar coefficients and a playback both say what to play: give one of them.")
        if self.mean_matched and (self.share == "all" or playback is not None):
            other = "a playback" if playback is not None else "share='all'"
            raise ValueError(f"sidecar mean_matched has no effect with {other}, which sets the mean: drop one of them.")
        if self.mode == "rule" and list(self.channels) != ["decay"]:
            raise ValueError(
                f"sidecar mode 'rule' gives multipliers to matrices, and channels are {list(self.channels)}: set "
                "channels to ['decay']."
            )
        if self.mode in ("replay", "permute") and playback is None and not self.coefficients:
            raise ValueError(
                f"sidecar mode '{self.mode}' needs something to play: give it the decisions of a run that learned as "
                "playback=…, or coefficients=…."
            )
        for name, given in (("playback", playback is not None), ("coefficients", bool(self.coefficients))):
            learnable = self.forks and name == "coefficients"
            if given and self.mode in ("learn", "rule", "fixed") and not learnable:
                learned = ", credit=forks, which learns them" if name == "coefficients" else ""
                raise ValueError(
                    f"sidecar mode '{self.mode}' takes no {name}: choose replay, permute or random{learned}, or leave "
                    "it out."
                )
        for name in ("horizon", "pairs"):
            if self.credit != FORKS and (value := getattr(self, name)) != getattr(Settings, name):
                raise ValueError(
                    f"sidecar {name}={value} has no effect with credit='{self.credit}': drop it, or set credit='forks'."
                )
        self._check_forks(optimizer, rollout)
        if self.mode == "learn" and self.trace == "run" and (self.credit != "factored" or self.unexplained):
            raise ValueError(
                f"sidecar trace 'run' with credit='{self.credit}' and unexplained={self.unexplained:g} teaches "
                "nothing in the mean, because rewards of single intervals take its slopes' place: set "
                "credit='factored' and unexplained=0."
            )

    def _check_forks(self, optimizer: torch.optim.Optimizer | None, rollout: Callable[[int, int], Any] | None) -> None:
        if not self.forks:
            if rollout is not None:
                raise ValueError(
                    f"sidecar rollout is for mode='learn' with credit='forks', and these are '{self.mode}' and "
                    f"'{self.credit}': drop it, or set them."
                )
            return
        needed = {"coefficients": self.coefficients, "rollout": rollout, "optimizer": optimizer}
        if lacking := [name for name, given in needed.items() if not given]:
            raise ValueError(
                f"sidecar credit 'forks' needs {lacking[0]}=…: coefficients {{channel: {{term: start}}}} to learn, a "
                "rollout(step, count) that trains the model, and the optimizer that it trains with."
            )
        if not self.lr * self.weight_decay > 0:
            raise ValueError(
                f"sidecar credit 'forks' looks horizon/(lr·λ) steps ahead, and lr={self.lr:g} with "
                f"weight_decay={self.weight_decay:g} has no such memory: set both above 0."
            )


def _one_of(what: str, value: str, known: Iterable[str]) -> None:
    if value not in known:
        raise ValueError(f"sidecar {what} '{value}' is unknown: choose one of {', '.join(known)}.")
