"""How numbers, seeds and long names are written; a dash is what is not known."""

from __future__ import annotations

import math
from collections.abc import Iterable


def number(value: float | None, digits: int) -> str:
    """Fixed-point, or a dash for what is not known."""
    return "–" if value is None or math.isnan(value) else f"{value:z.{digits}f}".replace("-", "−")


def signed(value: float | None, digits: int) -> str:
    """Fixed-point with its sign; what rounds to zero has none."""
    if value is None or math.isnan(value):
        return "–"
    text = f"{value:+z.{digits}f}"
    return text.replace("-", "−") if float(text) else text[1:]


def span(low: float | None, high: float | None, digits: int, *, plus: bool = False) -> str:
    """An interval as `low … high`."""
    write = signed if plus else number
    unknown = low is None or high is None or math.isnan(low) or math.isnan(high)
    return "–" if unknown else f"{write(low, digits)} … {write(high, digits)}"


def listed(seeds: Iterable[int]) -> str:
    """Seeds in their order, four or more that follow on each other as `0…7`."""
    known = list(dict.fromkeys(seeds))
    if len(known) > 3 and known == list(range(known[0], known[0] + len(known))):
        return f"{known[0]}…{known[-1]}"
    return ", ".join(map(str, known))


def elide(text: str, most: int) -> str:
    """Text that has to fit, with an ellipsis for what is beyond `most` characters."""
    return text if len(text) <= most else f"{text[: most - 1].rstrip()}…"
