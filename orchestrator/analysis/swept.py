"""Find the keys in which many experiments and their arms differ, and write their values."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import pandas as pd

from orchestrator.analysis.survey import ArmSummary
from orchestrator.config import keys
from orchestrator.config.schema import Config

DOMAINS = "data.domains"
ABSENT = "–"  # a key that a configuration does not have
PLACES = {key: place for place, key in enumerate(keys.flatten(Config()))}


def swept(arms: Iterable[ArmSummary]) -> list[str]:
    """The keys with several values, in the schema's order, first those in which experiments differ at the same arm.

    Without the keys of a domain that some of them lack: `data.domains` then lists the domains of each.
    """
    known = [arm for arm in arms if arm.settings]
    every = {key for arm in known for key in arm.settings}
    every -= {key for key in every if key.startswith(f"{DOMAINS}.") and any(key not in arm.settings for arm in known)}
    several = [key for key in every if len({as_text(arm, key) for arm in known}) > 1]
    return sorted(several, key=lambda key: (not differs_between(key, known), _place(key), key))


def _place(key: str) -> int:
    """The place of the key, or of the branch that it lies in, in the schema."""
    while key not in PLACES and "." in key:
        key = key.rpartition(".")[0]
    return PLACES.get(key, len(PLACES))


def differs_between(key: str, arms: Iterable[ArmSummary]) -> bool:
    """True where arms of one name, in several experiments, have several values of the key."""
    values: dict[str | None, set[str]] = {}
    for arm in arms:
        if arm.settings:
            values.setdefault(arm.arm, set()).add(as_text(arm, key))
    return any(len(own) > 1 for own in values.values())


def together(names: Iterable[str], arms: Sequence[ArmSummary]) -> list[list[str]]:
    """The keys in groups whose values change together, so that no table tells what one of them does alone."""
    groups: dict[tuple[int, ...], list[str]] = {}
    known = [arm for arm in arms if arm.settings]
    for key in names:
        values = [as_text(arm, key) for arm in known]
        first = {value: place for place, value in reversed(list(enumerate(values)))}
        groups.setdefault(tuple(first[value] for value in values), []).append(key)
    return list(groups.values())


def short_names(names: Sequence[str], taken: Collection[str] = ()) -> dict[str, str]:
    """Key → its last part, where that is the name of no other and is not `taken`; else the whole key."""
    last = {key: key.rpartition(".")[2] for key in names}
    several = Counter(last.values())
    return {key: key if several[name] > 1 or name in taken else name for key, name in last.items()}


def as_text(arm: ArmSummary, key: str) -> str:
    """The value as configuration files write it, a dash where there is none."""
    return written(arm.settings[key]) if key in arm.settings else ABSENT


def written(value: Any) -> str:
    """The value as configuration files write it."""
    if isinstance(value, str):
        return value
    return f"{value:.12g}" if isinstance(value, float) else json.dumps(value, default=str, ensure_ascii=False)


def frame(arms: Sequence[ArmSummary]) -> pd.DataFrame:
    """Return a table with a column per field of `ArmSummary` and per swept key, every digit kept."""
    names = swept(arms)
    rows = []
    for arm in arms:
        row = dict(vars(arm))
        settings = row.pop("settings")
        plain = {key: value for key, value in settings.items() if isinstance(value, int | float | str)}
        row |= {key: plain[key] if key in plain else written(settings[key]) for key in names if key in settings}
        rows.append(row)
    own = [name for name in ArmSummary.__dataclass_fields__ if name != "settings"]
    return pd.DataFrame(rows, columns=[*own, *names])
