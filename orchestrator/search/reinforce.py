"""Learning over runs: a screen, a line along its effects, then REINFORCE on antithetic pairs of runs (SCIENCE §6).

Settings are in half-ranges: of every key −1 is the lower end of its range, 0 the middle and 1 the upper end. What is
proposed is a function of the search's settings and of the losses so far.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from orchestrator.common.errors import UserError
from orchestrator.config.schema import SearchConfig
from orchestrator.search.screen import MOST, Array, design, main_effects
from sidecar.coefficient_policy import CoefficientPolicy

Losses = Sequence[float | None]  # of the trials so far; None: failed

LINE = (0.0, 0.5, 1.0, 2.0)  # multiples of σ along the effects; the centre is trained where it is not the baseline
CLEAR = 2.0  # t of an effect that is no accident


def ends(search: SearchConfig) -> list[int]:
    """Numbers of trials: of the screen, with the line, with each batch of pairs, and with the policy's mean."""
    begun = _before_pairs(search)
    last = search.trials - 1
    return [begun - len(LINE), begun, *range(begun + search.batch, last, search.batch), last, search.trials]


def check(search: SearchConfig) -> None:
    """Raise `UserError` where there are too many keys, pairs cannot be whole, or a run would not be a whole one."""
    if len(search.space) > MOST:
        raise UserError(
            f"search.space has {len(search.space)} keys, and search.method=reinforce screens {MOST} at most: leave out "
            "some, or set search.method=tpe."
        )
    if search.lengths != [1.0]:
        raise UserError(
            f"search.method=reinforce learns from whole runs, and search.lengths={search.lengths}: set "
            "search.lengths=[1.0]."
        )
    if search.batch % 2:
        raise UserError(
            f"search.batch={search.batch} with search.method=reinforce splits a pair: set an even search.batch."
        )
    least = _before_pairs(search) + 3  # a pair, and the mean
    if search.trials < least or (search.trials - least) % 2:
        after = max(least, search.trials + 1)
        raise UserError(
            f"search.trials={search.trials} leaves no whole pairs to search.method=reinforce, whose screen and line "
            f"take {least - 3} trials and whose mean takes one: set search.trials={after}."
        )


def proposal(search: SearchConfig, number: int, losses: Losses) -> Array:
    """The settings of a trial, [keys], in half-ranges; `losses`: of all trials before its stage, at least."""
    begun = _before_pairs(search)
    at = number - begun
    if number < begun - len(LINE):
        found = search.sigma * design(len(search.space))[number]
    elif at < 0:
        found = _line(search, losses)[at]
    elif number == search.trials - 1:
        found = _policy(search, losses, at).mean.numpy()
    else:
        policy = _policy(search, losses, at - at % search.batch)
        found = policy.pair(_noise(policy, at // 2))[at % 2].numpy()
    return np.clip(found, -1.0, 1.0)


def effects(search: SearchConfig, losses: Losses) -> tuple[Array, Array]:
    """Main effects of the keys, and their standard errors, nats, [keys] each."""
    levels = design(len(search.space))
    return main_effects(levels, losses[: len(levels)])


def _before_pairs(search: SearchConfig) -> int:
    return len(design(len(search.space))) + len(LINE)


def _line(search: SearchConfig, losses: Losses) -> Array:
    """The settings of the line, [points, keys]: down the clear effects, or down all where none is clear."""
    found, errors = effects(search, losses)
    clear = np.abs(found) > CLEAR * errors
    found = np.where(clear, found, 0.0) if clear.any() else found
    steepest = np.abs(found).max() or 1.0
    return np.outer(LINE, -search.sigma * found / steepest)


def _policy(search: SearchConfig, losses: Losses, over: int) -> CoefficientPolicy:
    """The policy after the first `over` trials of pairs: it begins at the best point of the line."""
    begun = _before_pairs(search)
    ranked = [math.inf if loss is None else loss for loss in losses[begun - len(LINE) : begun]]
    start = _line(search, losses)[int(np.argmin(ranked))]
    policy = CoefficientPolicy(start.tolist(), search.sigma, search.rate, search.seed)
    policy.mean = _inside(policy.mean, search.sigma)
    rewards = [math.nan if loss is None else -loss for loss in losses[begun : begun + over]]
    for first in range(0, over, search.batch):
        batch = rewards[first : first + search.batch]
        pairs = list(zip(batch[::2], batch[1::2], strict=True))
        policy.rate = search.rate / math.sqrt(1 + first // search.batch)
        policy.learn([_noise(policy, first // 2 + i) for i in range(len(pairs))], pairs)
        policy.mean = _inside(policy.mean, search.sigma)
    return policy


def _noise(policy: CoefficientPolicy, number: int) -> Tensor:
    """The z of a pair, so far shortened that both of its runs lie in their ranges, and the policy midway."""
    room = (1.0 - policy.mean.abs()) / policy.sigma
    return policy.noise(number).clamp(-room, room)


def _inside(mean: Tensor, sigma: float) -> Tensor:
    """The mean, so far from the ends of the ranges that pairs about it differ."""
    most = 1.0 - min(sigma, 1.0) / 2
    return mean.clamp(-most, most)
