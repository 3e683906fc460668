"""Format numbers, intervals, seeds and long names; a dash stands for an unknown number."""

from __future__ import annotations

import math
from collections.abc import Iterable

from orchestrator.common.formatting import minus, signed


def number(value: float | None, digits: int) -> str:
    """Format as fixed-point; a dash where the value is unknown."""
    return "–" if value is None or math.isnan(value) else minus(f"{value:z.{digits}f}")


def low_to_high(low: float | None, high: float | None, digits: int, *, plus: bool = False) -> str:
    """Format an interval as `low … high`; with `plus`, both ends have signs."""
    write = signed if plus else number
    unknown = low is None or high is None or math.isnan(low) or math.isnan(high)
    return "–" if unknown else f"{write(low, digits)} … {write(high, digits)}"


def seed_list(seeds: Iterable[int]) -> str:
    """List the seeds in order; four or more consecutive ones as `0…7`."""
    known = list(dict.fromkeys(seeds))
    if len(known) > 3 and known == list(range(known[0], known[0] + len(known))):
        return f"{known[0]}…{known[-1]}"
    return ", ".join(map(str, known))


def elide(text: str, most: int) -> str:
    """Shorten the text to `most` characters, the last an ellipsis."""
    return text if len(text) <= most else f"{text[: most - 1].rstrip()}…"


def grouped_notes(found: Iterable[tuple[str, str]], *, everything: int | None = None, join: str = "; ") -> list[str]:
    """Merge (name, sentence) by sentence, each after its names; without the names where they number `everything`."""
    names: dict[str, list[str]] = {}
    for name, sentence in found:
        if sentence:
            names.setdefault(sentence, []).append(name)
    return [sentence if len(own) == everything else f"{join.join(own)}: {sentence}" for sentence, own in names.items()]


def share(of_loss: float) -> str:
    """Write a margin as a percentage."""
    return f"{100.0 * of_loss:g}\u00a0%"
