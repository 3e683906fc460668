"""Durations, work and sizes in readable units."""

from __future__ import annotations

DURATIONS = (("years", 365.25 * 86400), ("days", 86400), ("hours", 3600), ("minutes", 60), ("seconds", 1))
SIZES = (("PB", 1e15), ("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3))


def duration(seconds: float) -> str:
    """Seconds in the largest unit of which there are at least two: `3.2 days`."""
    for unit, size in DURATIONS:
        least = 2 * size
        if seconds >= least:
            return f"{figures(seconds / size)} {unit}"
    return f"{seconds:.2g} seconds"


def work(seconds: float, unit: str) -> str:
    """Seconds of work as `1,234 GPU-hours`; in minutes under an hour."""
    return f"{figures(seconds / 3600)} {unit}-hours" if seconds >= 3600 else f"{figures(seconds / 60)} {unit}-minutes"


def size(count: float) -> str:
    """Bytes in SI units: `6.1 GB`."""
    for unit, one in SIZES:
        if count >= one:
            return f"{figures(count / one)} {unit}"
    return f"{count:.0f} bytes"


def figures(value: float) -> str:
    """The number with two significant digits under 1, one decimal under 100, none above."""
    return f"{value:.2g}" if value < 1 else f"{value:.1f}" if value < 99.95 else f"{value:,.0f}"
