"""Multipliers by a rule, as a run goes on."""

from __future__ import annotations

from collections.abc import Mapping

from sidecar import rules, sharded
from sidecar.governed import Governed
from sidecar.source import Decided, Source


class Ruling(Source):
    """Multipliers by a rule, computed anew at every interval. Raises `ValueError` where the rule has nothing to do."""

    def __init__(self, name: str, interval: int, governed: Mapping[str, Governed]) -> None:
        self.name, self.interval, self.governed = name, interval, governed
        for one in governed.values():
            rules.check(name, one.channel.units)

    def decide(self, step: int) -> Decided:
        values = {}
        for name, governed in self.governed.items():
            weights = [weight for (weight,) in governed.weights]
            found = rules.multipliers_of(self.name, governed.channel.units, weights, governed.bounds)
            values[name] = governed.pooled(governed.within(found.log()))
        return Decided(sharded.broadcast(values), {})
