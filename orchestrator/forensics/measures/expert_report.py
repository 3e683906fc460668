"""The report of one expert of a mixture, as a reading holds it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from orchestrator.common.shapes import NUMBER


@dataclass(frozen=True)
class ExpertReport:
    """One expert of a layer."""

    expert: int | None  # null: the one that reads every token
    router_share: float | None  # of the places that the router fills; null where it is not known, or has no say
    measures: dict[str, Annotated[float, NUMBER] | None]
