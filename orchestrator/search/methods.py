"""Methods of a search: add one as an entry of `METHODS` and a name in the schema. Optuna keeps the trials of all."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from orchestrator.common.errors import UserError
from orchestrator.config.schema import SearchConfig, SearchMethod
from orchestrator.experiments.effects import Effect
from orchestrator.search import reinforce
from orchestrator.search.reinforce import Losses
from orchestrator.search.space import rounded

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

Space = Mapping[str, Any]  # key → its distribution
THIRD = 3  # tpe draws the first third of the trials at random, before the losses guide it


@dataclass(frozen=True)
class Method:
    """One way to propose; a proposal is a function of the settings, the number of the trial and the losses so far."""

    sampler: Callable[[SearchConfig, Space, int, Losses], BaseSampler]
    ends: Callable[[SearchConfig], Sequence[int]]  # numbers of trials that must have a loss before others are proposed
    check: Callable[[SearchConfig, Space], None] = lambda search, space: None  # raises `UserError`
    keys: Sequence[str] = ()  # of `search`, beside batch and seed: one value for all trials of a study
    effects: Callable[[SearchConfig, Space, Losses], list[Effect]] = lambda search, space, losses: []


def count(search: SearchConfig) -> int:
    """The number of trials."""
    return METHODS[search.method].ends(search)[-1]


def _tpe(search: SearchConfig, space: Space, number: int, losses: Losses) -> BaseSampler:
    from optuna.samplers import TPESampler

    return TPESampler(seed=_seed(search, number), n_startup_trials=max(1, search.trials // THIRD), multivariate=True)


def _random(search: SearchConfig, space: Space, number: int, losses: Losses) -> BaseSampler:
    from optuna.samplers import RandomSampler

    return RandomSampler(seed=_seed(search, number))


def _grid(search: SearchConfig, space: Space, number: int, losses: Losses) -> BaseSampler:
    from orchestrator.search.fixed import FixedSampler

    points = list(product(*(one.choices for one in space.values())))
    return FixedSampler(dict(zip(space, points[number], strict=True)))


def _reinforce(search: SearchConfig, space: Space, number: int, losses: Losses) -> BaseSampler:
    from orchestrator.search.fixed import FixedSampler

    return FixedSampler(_values(space, reinforce.proposal(search, number, losses)))


def _seed(search: SearchConfig, number: int) -> int:
    """A seed per trial, so that an interrupted search goes on as if it had not been."""
    return (search.seed + number) % 2**32


def _batches(search: SearchConfig) -> list[int]:
    return [*range(search.batch, search.trials, search.batch), search.trials]


def _points(search: SearchConfig) -> list[int]:
    return [math.prod(len(values) for values in search.space.values())]


def _lists_alone(search: SearchConfig, space: Space) -> None:
    if ranges := [key for key, values in search.space.items() if not isinstance(values, list)]:
        raise UserError(
            f"search.method=grid tries every combination of lists, and search.space has the range "
            f"{ranges[0]}: {search.space[ranges[0]]}: list its values, as in [1, 2, 4], or set search.method=random."
        )
    if search.trials < (points := _points(search)[0]):
        raise UserError(
            f"search.trials={search.trials} is less than the {points} combinations of search.method=grid: set "
            f"search.trials={points}, or search.method=random."
        )


def _ranges_alone(search: SearchConfig, space: Space) -> None:
    from optuna.distributions import FloatDistribution

    for key, one in space.items():
        if not isinstance(one, FloatDistribution) or one.log:
            raise UserError(
                f"search.method=reinforce learns numbers between two ends, and search.space has {key}: "
                f"{search.space[key]}: write uniform(low, high), or set search.method=tpe."
            )
    reinforce.check(search)


def _values(space: Space, found: reinforce.Array) -> dict[str, float]:
    """Half-ranges from the centre as values of the keys."""
    shares = ((1 + place) / 2 for place in found.tolist())
    return {
        key: float(rounded(min(max(one.low + share * (one.high - one.low), one.low), one.high), one))
        for (key, one), share in zip(space.items(), shares, strict=True)
    }


def _effects(search: SearchConfig, space: Space, losses: Losses) -> list[Effect]:
    found, errors = reinforce.effects(search, losses)
    levels = (_values(space, np.full(len(space), side * search.sigma)) for side in (-1, 1))
    low, high = levels
    return [
        Effect(key, low[key], high[key], effect, error)
        for key, effect, error in zip(space, found.tolist(), errors.tolist(), strict=True)
    ]


METHODS = {
    SearchMethod.tpe: Method(_tpe, _batches),
    SearchMethod.random: Method(_random, _batches),
    SearchMethod.grid: Method(_grid, _points, _lists_alone),
    SearchMethod.reinforce: Method(
        _reinforce, reinforce.ends, _ranges_alone, ("trials", "sigma", "rate"), effects=_effects
    ),
}
