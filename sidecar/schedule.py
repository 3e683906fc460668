"""Recorded decisions, played back as they were or with units exchanged: the controls of SCIENCE §6."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from sidecar.policy import generator_of
from sidecar.units import Unit

Values = dict[str, dict[str, float]]  # channel → unit → multiplier
Decision = Mapping[str, Any]  # as `Sidecar.record` gives it: `step` and `values`


def replay(values: Values, units: Mapping[str, Sequence[Unit]], seed: int, step: int) -> Values:
    """As recorded."""
    return values


def permute(values: Values, units: Mapping[str, Sequence[Unit]], seed: int, step: int) -> Values:
    """Layers exchanged, the same way throughout the run and in every channel; kinds are kept.

    No layer keeps its own place where there are two or more: a cyclic shift of a random order.
    """
    layers = sorted({unit.layer for group in units.values() for unit in group})
    order = [layers[i] for i in torch.randperm(len(layers), generator=generator_of(seed, "sidecar", "permute"))]
    source = dict(zip(order, [*order[1:], *order[:1]], strict=True))
    permuted: Values = {}
    for channel, group in units.items():
        at = {(unit.kind, unit.layer): unit.name for unit in group}
        permuted[channel] = {
            unit.name: values[channel][at.get((unit.kind, source[unit.layer]), unit.name)] for unit in group
        }
    return permuted


def shuffle(values: Values, units: Mapping[str, Sequence[Unit]], seed: int, step: int) -> Values:
    """Dealt to the units of a channel at random, afresh at every decision."""
    dealt: Values = {}
    for channel, group in units.items():
        generator = generator_of(seed, "sidecar", channel, "shuffle", step)
        order = torch.randperm(len(group), generator=generator).tolist()
        dealt[channel] = {unit.name: values[channel][group[i].name] for unit, i in zip(group, order, strict=True)}
    return dealt


class Schedule:
    """The decision of a recording that is in force at a step. Raises `ValueError` for one of other units."""

    def __init__(self, decisions: Sequence[Decision], units: Mapping[str, Sequence[Unit]]) -> None:
        if not decisions:
            raise ValueError("the sidecar's schedule holds no decision: name a run whose sidecar decided something.")
        self.decisions = sorted(decisions, key=lambda decision: decision["step"])
        for channel, group in units.items():
            for decision in self.decisions:
                if set(decision["values"].get(channel, {})) != {unit.name for unit in group}:
                    raise ValueError(
                        f"the sidecar's schedule has at step {decision['step']} no value for every unit of channel "
                        f"'{channel}': it was recorded with another model or other channels."
                    )

    def at(self, step: int) -> Decision | None:
        """The last decision at or before `step`."""
        due = [decision for decision in self.decisions if decision["step"] <= step]
        return due[-1] if due else None


PLAYERS = {"replay": replay, "permute": permute, "random": shuffle}
