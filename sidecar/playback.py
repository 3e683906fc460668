"""Playback of decisions, recorded or of coefficients, as they are or with units exchanged (SCIENCE §6)."""

from __future__ import annotations

import hashlib
import json
import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from sidecar.governed import Governed
from sidecar.policy import generator_of
from sidecar.source import Decided, Source
from sidecar.units import Unit

Values = dict[str, dict[str, float]]  # channel → unit → multiplier
Decision = Mapping[str, Any]  # as `Sidecar.record` gives it: `step` and `values`
Player = Callable[[Values, Mapping[str, Sequence[Unit]], int, int], Values]  # values, units, seed, step → values


def replay(values: Values, units: Mapping[str, Sequence[Unit]], seed: int, step: int) -> Values:
    """The values as recorded."""
    return values


def permute(values: Values, units: Mapping[str, Sequence[Unit]], seed: int, step: int) -> Values:
    """The values with layers exchanged, alike at every decision and in every channel; kinds are not exchanged.

    The exchange is a cyclic shift of a random order, so that no layer keeps its own values.
    """
    layers = sorted({unit.layer for group in units.values() for unit in group if unit.layer is not None})
    order = [layers[i] for i in torch.randperm(len(layers), generator=generator_of(seed, "sidecar", "permute"))]
    source = dict(zip(order, [*order[1:], *order[:1]], strict=True))
    permuted: Values = {}
    for channel, group in units.items():
        at = {(unit.kind, unit.layer): values[channel][unit.name] for unit in group if unit.layer is not None}
        exchanged = {
            unit.name: at[unit.kind, source[unit.layer]]
            for unit in group
            if unit.layer is not None and (unit.kind, source[unit.layer]) in at
        }
        permuted[channel] = values[channel] | exchanged
    return permuted


def shuffle(values: Values, units: Mapping[str, Sequence[Unit]], seed: int, step: int) -> Values:
    """The values of each channel dealt at random to its units in layers, afresh at every decision."""
    dealt: Values = {}
    for channel, units_of in units.items():
        generator = generator_of(seed, "sidecar", channel, "shuffle", step)
        group = [unit for unit in units_of if unit.layer is not None]
        order = torch.randperm(len(group), generator=generator).tolist()
        hand = {unit.name: values[channel][group[i].name] for unit, i in zip(group, order, strict=True)}
        dealt[channel] = values[channel] | hand
    return dealt


def same_amount(values: Values, played: Values, units: Mapping[str, Sequence[Unit]]) -> Values:
    """`played`, scaled so that every channel has the parameter-weighted mean of `values`.

    An exchange among units of equal size keeps that mean: the factor is then exactly 1.
    """
    scaled: Values = {}
    for channel, group in units.items():
        wanted, got = (sum(u.size * of[channel][u.name] for u in group) for of in (values, played))
        factor = wanted / got if abs(wanted - got) > 1e-9 * wanted else 1.0
        scaled[channel] = {name: factor * m for name, m in played[channel].items()}
    return scaled


PLAYERS: dict[str, Player] = {"replay": replay, "permute": permute, "random": shuffle}


class Playback:
    """Recorded decisions as `mode` plays them, ascending by step.

    Raises `ValueError` for decisions on other units, and for multipliers that are not positive and finite.
    """

    def __init__(self, decisions: Sequence[Decision], units: Mapping[str, Sequence[Unit]], mode: str, seed: int):
        if not decisions:
            raise ValueError("the sidecar's playback holds no decision: record a run whose sidecar made one.")
        self.steps = sorted(decision["step"] for decision in decisions)
        self.values: list[Values] = []
        for decision in sorted(decisions, key=lambda decision: decision["step"]):
            _check(decision, units)
            played = PLAYERS[mode](decision["values"], units, seed, decision["step"])
            self.values.append(same_amount(decision["values"], played, units))

    def largest(self, channel: str) -> float:
        """The largest multiplier that will be played."""
        return max(max(values[channel].values()) for values in self.values)

    def at(self, step: int) -> tuple[int, Values] | None:
        """The step and values of the last decision at or before `step`."""
        index = bisect_right(self.steps, step) - 1
        return (self.steps[index], self.values[index]) if index >= 0 else None


def _check(decision: Decision, units: Mapping[str, Sequence[Unit]]) -> None:
    for channel, group in units.items():
        values = decision["values"].get(channel, {})
        if set(values) != {unit.name for unit in group}:
            raise ValueError(
                f"the sidecar's playback has at step {decision['step']} no value for every unit of channel "
                f"'{channel}': record it with this model and these channels."
            )
        for name, value in values.items():
            if not 0 < value < math.inf:
                raise ValueError(
                    f"the sidecar's playback has {value} for {name} at step {decision['step']}, which is not a "
                    "multiplier (positive and finite): record the run again."
                )


class Playing(Source):
    """Plays a playback; units that share one multiplier get the parameter-weighted mean of theirs."""

    def __init__(self, playback: Playback, governed: Mapping[str, Governed]) -> None:
        self.playback, self.governed = playback, governed
        self.recorded_at: int | None = None  # step at which the decision in force was recorded

    def decide(self, step: int) -> Decided | None:
        due = self.playback.at(step)
        if due is None or due[0] == self.recorded_at:
            return None
        self.recorded_at, played = due
        values = {}
        for name, governed in self.governed.items():
            multipliers = [played[name][unit.name] for unit in governed.channel.units]
            values[name] = governed.pooled(torch.tensor(multipliers, dtype=torch.float64))
        return Decided(values, {"recorded_at": self.recorded_at})

    def state_dict(self) -> dict[str, Any]:
        """The step of the decision in force, and a digest of its multipliers."""
        return {"recorded_at": self.recorded_at, "digest": self._digest(self.recorded_at)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the decision in force. Where this playback has another there, as a branch's may, it plays its own."""
        recorded_at = state["recorded_at"]
        same = state.get("digest") in (None, self._digest(recorded_at))  # None: the state of an older version
        self.recorded_at = recorded_at if same else None

    def _digest(self, recorded_at: int | None) -> str | None:
        """A digest of the multipliers that were recorded at this step; None where there are none."""
        found = None if recorded_at is None else self.playback.at(recorded_at)
        return None if found is None else hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()
