"""Multipliers by a rule, as a run goes on."""

from __future__ import annotations

from collections.abc import Mapping

from sidecar import rules, sharded
from sidecar.governed import Governed
from sidecar.settings import Settings
from sidecar.source import Decided, Source


class Ruling(Source):
    """Multipliers by a rule, computed anew at every interval. Raises `ValueError` where the rule has nothing to do."""

    def __init__(self, settings: Settings, governed: Mapping[str, Governed]) -> None:
        self.name, self.interval, self.governed = settings.rule, settings.interval, governed
        self.mean_matched = settings.mean_matched
        for one in governed.values():
            rules.check(self.name, one.channel.units)

    def decide(self, step: int) -> Decided:
        values = {}
        for name, governed in self.governed.items():
            weights = [weight for (weight,) in governed.weights]
            units, bounds = governed.channel.units, governed.bounds
            values[name] = governed.pooled(rules.multipliers_of(self.name, units, weights, bounds, self.mean_matched))
        return Decided(sharded.broadcast(values), {})
