"""The key `expect`: quantities of a reading, and the bounds within which an experiment expects them."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from orchestrator.common.errors import UserError, nearest
from orchestrator.forensics.reading import Reading, centre, profile, roles_of, spread, total
from orchestrator.forensics.roles.routing import ROLES

UNBOUNDED = sys.float_info.max


@dataclass(frozen=True)
class Quantity:
    """A number of a reading, at least 0; None where the reading lacks what it needs."""

    read: Callable[[Reading], float | None]
    most: float  # the largest possible


def _centre(reading: Reading) -> float | None:
    budget = profile(reading, "saturated_robust")
    return None if budget is None else centre(budget)


def _layers_with(role: str) -> Quantity:
    return Quantity(lambda reading: float(roles_of(reading).count(role)), UNBOUNDED)


QUANTITIES: dict[str, Quantity] = {
    "centre": Quantity(_centre, 1.0),  # of the robust budget; 0: first layer, 1: last
    "budget": Quantity(lambda reading: total(reading, "saturated_robust"), UNBOUNDED),  # positions
    "spread": Quantity(spread, 0.5),  # of attention's share
    **{f"{role}s": _layers_with(role) for role in ROLES},  # layers
}
REGIONS = ("early", "middle", "late", "first", "last")
SPAN = re.compile(r"L(\d{1,4})(?:-L(\d{1,4}))?")  # a region by its layers: L6, L3-L5
NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
COMPARISON = re.compile(rf"(>=|<=|≥|≤|>|<)\s*({NUMBER})")
RANGE = re.compile(rf"({NUMBER})\s*(?:…|\.\.\.?)\s*({NUMBER})")


@dataclass(frozen=True)
class Bounds:
    """The bounds of a number; infinite on an open side."""

    low: float
    high: float
    strict: bool  # the ends are outside

    def hold(self, value: float) -> bool:
        return self.low < value < self.high if self.strict else self.low <= value <= self.high

    def cover(self, low: float, high: float) -> bool:
        """True where all of `low` … `high` lies inside."""
        return self.hold(low) and self.hold(high)

    def miss(self, low: float, high: float) -> bool:
        """True where nothing of `low` … `high` lies inside."""
        least, most = max(self.low, low), min(self.high, high)
        return least > most or (least == most and not self.hold(least))

    @property
    def ends(self) -> list[float]:
        return [end for end in (self.low, self.high) if math.isfinite(end)]

    def __str__(self) -> str:
        if self.low == -math.inf:
            return f"{'<' if self.strict else '≤'} {self.high:g}"
        if self.high == math.inf:
            return f"{'>' if self.strict else '≥'} {self.low:g}"
        return f"{self.low:g} … {self.high:g}"


MOST_LAYERS = Bounds(0.5, math.inf, strict=True)  # the share of a region's layers where only a role is given


@dataclass(frozen=True)
class Wanted:
    """One expectation of one arm: a quantity, or the share of a region's layers with `role`."""

    arm: str
    line: str
    role: str | None
    bounds: Bounds

    def __str__(self) -> str:
        return " ".join(filter(None, [f"{self.arm}:", self.line, self.role, str(self.bounds)]))

    @property
    def most(self) -> float:
        """The largest possible number."""
        return 1.0 if self.role else QUANTITIES[self.line].most

    def read(self, reading: Reading) -> float | None:
        """The number in a reading; None where the reading lacks it or has no such layers."""
        if self.role is None:
            return QUANTITIES[self.line].read(reading)
        roles = roles_of(reading)
        layers = layers_of(self.line, len(roles))
        return float(np.mean([roles[layer] == self.role for layer in layers])) if layers else None


def layers_of(region: str, depth: int) -> list[int]:
    """The indices of a region's layers in a model of `depth` layers; empty where some do not exist."""
    if region in REGIONS:
        layers = np.arange(depth)
        thirds = np.array_split(layers, 3)  # the same as the budget's
        return dict(zip(REGIONS, [*thirds, layers[:1], layers[-1:]], strict=True))[region].tolist()
    first, last = _ends(region)
    return list(range(first, last + 1)) if last < depth else []


def intended(expect: Mapping[str, Any], arms: Collection[str]) -> list[Wanted]:
    """The expectations of `{arm: {line: …}}`, or of `{line: …}` for every arm.

    Raises `UserError` for the first line that cannot be understood.
    """
    named = [arm for arm in expect if arm in arms]
    if not named and not any(isinstance(lines, Mapping) for lines in expect.values()):
        return [wanted for arm in arms for wanted in _lines(arm, expect)] if expect else []
    for arm in expect:
        if arm not in arms:
            raise UserError(
                f"expect: '{arm}' is not an arm{nearest(str(arm), arms)}: write lines under the experiment's arms, "
                f"{', '.join(arms)}, or without an arm, for all of them."
            )
    return [wanted for arm, lines in expect.items() for wanted in _lines(arm, lines)]


def check_depths(wanted: Collection[Wanted], depths: Mapping[str, int]) -> None:
    """Raise `UserError` for a region that its arm does not have; `depths`: arm → layers."""
    for one in wanted:
        if one.role and not layers_of(one.line, depths[one.arm]):
            raise UserError(
                f"expect: '{one.line}' of arm '{one.arm}' does not exist in a model of {depths[one.arm]} layers: "
                f"name layers between L0 and L{depths[one.arm] - 1}."
            )


def _lines(arm: str, lines: Any) -> Iterator[Wanted]:
    if not isinstance(lines, Mapping) or not lines:
        raise UserError(f"expect: arm '{arm}' is {lines!r:.60}, which holds no line: write {{late: specialist}}.")
    for line, value in lines.items():
        where = f"expect: '{line}' of arm '{arm}'"
        if line in QUANTITIES:
            yield _checked(where, Wanted(arm, line, None, _bounds(where, value)))
        elif line in REGIONS or _is_span(where, str(line)):
            values = value if isinstance(value, list) and value else [value]
            yield from (_checked(where, Wanted(arm, line, *_role(where, one))) for one in values)
        else:
            known = (*REGIONS, *QUANTITIES)
            raise UserError(
                f"{where} is not a line of `expect`{nearest(str(line), known)}: "
                f"use one of {', '.join(known)}, or layers such as L6 or L3-L5."
            )


def _role(where: str, value: Any) -> tuple[str, Bounds]:
    """A role, and the bounds of the share of layers with it."""
    role, _, share = str(value).strip().partition(" ")
    name = re.split(r"[<>≤≥]", role)[0]  # 'specialist>0.3' too
    if not isinstance(value, str) or name not in ROLES:
        raise UserError(
            f"{where} is {value!r:.60}, which is not a role{nearest(name, ROLES)}: use {', '.join(ROLES)}, "
            "alone or with a share, as in 'specialist >= 0.3'."
        )
    share = f"{role.removeprefix(name)}{share}".strip()
    return name, _bounds(where, share) if share else MOST_LAYERS


def _bounds(where: str, value: Any) -> Bounds:
    """The bounds in a comparison or in a range."""
    text = value.strip() if isinstance(value, str) else ""
    compared, ranged = COMPARISON.fullmatch(text), RANGE.fullmatch(text)
    ends = [float(compared[2])] if compared else [float(end) for end in ranged.groups()] if ranged else value
    if not isinstance(ends, list) or len(ends) != (1 if compared else 2) or not all(map(_is_number, ends)):
        raise UserError(f"{where} is {value!r:.60}, which is not a comparison: write '> 0.7', '<= 3' or [0.2, 0.4].")
    if compared:
        sign, at = compared[1], ends[0]
        strict = sign in "<>"
        bounds = Bounds(at, math.inf, strict) if sign in (">", ">=", "≥") else Bounds(-math.inf, at, strict)
    else:
        bounds = Bounds(float(ends[0]), float(ends[1]), strict=False)
    if bounds.low > bounds.high:
        raise UserError(f"{where} is {value!r}, which ends before it begins: write the smaller number first.")
    return bounds


def _checked(where: str, wanted: Wanted) -> Wanted:
    """The expectation. Raises `UserError` where it holds for every model, or for none."""
    bounds, most = wanted.bounds, wanted.most
    if (held_by_all := bounds.cover(0.0, most)) or bounds.miss(0.0, most):
        within = f"between 0 and {most:g}" if most < UNBOUNDED else "at 0 or above"
        raise UserError(
            f"{where} is {bounds}, which holds for {'every' if held_by_all else 'no'} model, as it lies {within}: "
            "choose bounds that some models keep."
        )
    return wanted


def _is_span(where: str, line: str) -> bool:
    if SPAN.fullmatch(line) is None:
        return False
    first, last = _ends(line)
    if first > last:
        raise UserError(f"{where} ends before it begins: write L{last}-L{first}.")
    return True


def _ends(region: str) -> tuple[int, int]:
    """First and last layer of `L3-L5`."""
    found = SPAN.fullmatch(region)
    assert found, region
    return int(found[1]), int(found[2] or found[1])


def _is_number(value: Any) -> bool:
    """True for a number that a float can hold; the comparison is safe for an integer of any length."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -UNBOUNDED <= value <= UNBOUNDED
