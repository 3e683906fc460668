"""A source of multipliers: one class for each way to choose them (SCIENCE §6)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from sidecar import sharded
from sidecar.evaluation import WarnOnce
from sidecar.governed import Governed


class Decided(NamedTuple):
    """A decision: the multipliers that act from now on."""

    values: Mapping[str, Tensor]  # channel → multipliers, [units]
    record: Mapping[str, Any]  # what `Sidecar.record` says of it, beside the values; JSON-able


class Source:
    """Chooses multipliers at some steps. This one chooses none: all stay 1."""

    interval = 0  # least number of steps between two decisions
    is_forking = False  # True while it trains forks of the run

    def decide(self, step: int) -> Decided | None:
        """The multipliers from `step` on; None where those in force stay."""
        return None

    def spent(self) -> dict[str, int]:
        """The cost of the decisions so far, held-out passes left out: name → count."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """The state from which a restart continues, JSON-able."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""

    def agree(self) -> None:
        """Take over the state of rank 0: ranks compute the same, but must not drift apart by rounding."""
        if sharded.world_size() > 1:
            self.load_state_dict(sharded.broadcast(self.state_dict()))


def without_a_tensor(model: nn.Module, governed: Mapping[str, Governed], warn: WarnOnce) -> set[str]:
    """The channels that have lost a tensor, of which it warns once."""
    present, found = dict(model.named_parameters()), set()
    for name, one in governed.items():
        if lost := one.lost_tensors(present):
            others = ", …" * (len(lost) > 1)
            warn(f"lost {name}", f"channel '{name}' has lost {len(lost)} of its tensors ({lost[0]}{others})")
            found.add(name)
    return found
