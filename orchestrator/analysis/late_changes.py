"""Find what changed in an experiment after cells had finished, perhaps because of their results."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from orchestrator.analysis.cells import ExperimentResult
from orchestrator.config.schema import AUTO
from orchestrator.experiments.expectations import intended

# key of experiment.yaml that may change between launches → its name, and the assumption that a late change breaks
KINDS = {
    "seeds": ("seed", "p assumes that their number was fixed beforehand"),
    "contrasts": ("contrast", "p and the order of the tests assume that nobody had seen the losses"),
    "expect": ("expectation", "its verdict assumes that nobody had seen the readings"),
    "arms": ("arm", "a comparison of several arms assumes that they were chosen beforehand"),
    "steps": ("arm", "p assumes that the number of steps was fixed beforehand"),
    "decide": ("", "the word equivalent assumes that the margin was fixed beforehand"),
}
ORDER, MARGIN = "the order of the contrasts", "the margin, decide.margin,"


@dataclass(frozen=True)
class Change:
    """One change after the first cell had finished."""

    kind: str  # a key of KINDS
    name: str  # a seed, a contrast, a line of `expect`, an arm, ORDER or MARGIN
    how: str  # added · changed · withdrawn · extended
    day: str  # UTC, ISO 8601


def late_changes(experiment: ExperimentResult) -> list[Change]:
    """Return every change since the first cell finished, oldest first."""
    return [
        Change(kind, name, how, now["since"][:10])
        for before, now in pairwise(experiment.history)
        if experiment.finished is not None and now["since"] >= experiment.finished  # ISO 8601 sorts as time does
        for kind in KINDS
        if not (kind == "seeds" and _is_auto(before) and _is_auto(now))  # p covers the looks in between
        for name, how in _compared(kind, _named(before, kind, experiment), _named(now, kind, experiment))
    ]


def late_names(experiment: ExperimentResult, kind: str) -> set[str]:
    """Return the names of one kind that were added or changed after the first cell had finished."""
    return {change.name for change in late_changes(experiment) if change.kind == kind and change.how != "withdrawn"}


def notes(experiment: ExperimentResult) -> list[str]:
    """Return a sentence per kind of change and day, with the assumption that it breaks."""
    alike: dict[tuple[str, str, str], list[str]] = {}
    for change in dict.fromkeys(late_changes(experiment)):  # the order may change twice a day
        alike.setdefault((change.kind, change.how, change.day), []).append(change.name)
    sentences = []
    for (kind, how, day), names in alike.items():
        called, assumed = KINDS[kind]
        listed = ", ".join(name if kind == "seeds" or name in (ORDER, MARGIN) else f"'{name}'" for name in names)
        noun = "" if names[0] in (ORDER, MARGIN) else f"{called}{'s' * (len(names) > 1)} "
        sentence = f"{noun}{listed} {'were' if len(names) > 1 else 'was'} {how} on {day} after cells had finished"
        sentences.append(f"{sentence[0].upper()}{sentence[1:]}: {assumed}.")
    return sentences


def _is_auto(entry: dict[str, Any]) -> bool:
    """Return true for an entry of a launch with `seeds: auto`."""
    return bool(entry.get("decide", {}).get(AUTO))


def _named(entry: dict[str, Any], kind: str, experiment: ExperimentResult) -> dict[str, Any]:
    """Return the names of one kind, and their values, in an entry of the history."""
    every = [*experiment.arms, *experiment.dropped]
    found = entry.get(kind) or {}
    if kind == "decide":
        return {MARGIN: found["margin"]} if "margin" in found else {}
    if kind in ("contrasts", "steps"):
        return dict(found)
    return dict.fromkeys(map(str, intended(found, every) if kind == "expect" else found))


def _compared(kind: str, was: dict[str, Any], now: dict[str, Any]) -> list[tuple[str, str]]:
    """Return (name, change) of every difference. The order counts for contrasts, which are tested in order."""
    if kind == "steps":  # of an arm that is new, too, but that is not a change
        return [(arm, "extended") for arm in now if arm in was and was[arm] != now[arm]]
    if (kind == "arms" and not was) or (kind == "decide" and not (was and now)):  # by a version that recorded none
        return []
    found = [(name, "changed" if name in was else "added") for name in now if name not in was or was[name] != now[name]]
    found += [(name, "withdrawn") for name in was if name not in now]
    kept = [name for name in now if name in was]
    if any(was.values()) and kept != [name for name in was if name in now]:
        found.append((ORDER, "changed"))
    return found
