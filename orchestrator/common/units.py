"""Durations, work and sizes in readable units."""

from __future__ import annotations

DURATIONS = (("years", 365.25 * 86400), ("days", 86400), ("hours", 3600), ("minutes", 60), ("seconds", 1))
SIZES = (("PB", 1e15), ("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3))


def duration(seconds: float) -> str:
    """`3.2 days`: in the largest unit of which there are at least two."""
    for unit, size in DURATIONS:
        least = 2 * size
        if seconds >= least:
            return f"{figures(seconds / size)} {unit}"
    return f"{seconds:.2g} seconds"


def work(seconds: float, unit: str) -> str:
    """`1,234 GPU-hours`; under an hour, minutes."""
    return f"{figures(seconds / 3600)} {unit}-hours" if seconds >= 3600 else f"{figures(seconds / 60)} {unit}-minutes"


def size(count: float) -> str:
    """`6.1 GB`: bytes in SI units."""
    for unit, one in SIZES:
        if count >= one:
            return f"{figures(count / one)} {unit}"
    return f"{count:.0f} bytes"


def figures(value: float) -> str:
    """Two decimals under 1, one under 100, none above."""
    return f"{value:.2g}" if value < 1 else f"{value:.1f}" if value < 99.95 else f"{value:,.0f}"
