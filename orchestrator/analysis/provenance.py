"""Find differences between cells in configuration, code and environment."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from orchestrator.analysis.cells import CellResult, ExperimentResult
from orchestrator.common.environment import changes
from orchestrator.config import keys

CODE = ("commit", "changes")  # keys of an environment that identify the code
PASSING = ("attempt", "since")  # keys that differ between any two attempts
Facts = dict[str, Any]  # dotted key → value


@dataclass(frozen=True)
class Difference:
    """One key that differs between cells."""

    kind: str  # config · code · environment
    key: str
    values: dict[str, list[Any]]  # arm → its distinct values over seeds and attempts; empty where unknown


def differences(experiment: ExperimentResult) -> list[Difference]:
    """Return every difference between cells, within arms too: configuration first, then code, then environment."""
    facts = {
        arm: [found for cell in experiment.cells if cell.arm == arm for found in environments_of(experiment, cell)]
        for arm in experiment.arms
    }
    configs = {arm: [c for cell in experiment.cells if cell.arm == arm for c in configs_of(cell)] for arm in facts}
    found = [Difference("config", key, values) for key, values in _differing(configs)]
    kinds = [("code" if key in CODE else "environment", key, values) for key, values in _differing(facts)]
    return found + [Difference(*row) for row in sorted(kinds, key=lambda row: row[0])]


def constant(experiment: ExperimentResult) -> Facts:
    """Return the facts that all attempts share: host, platform, python, device, versions.*, commit, …

    `changes` is `clean` or a digest of the uncommitted changes. A value is null where it could not be determined.
    """
    facts = [found for cell in experiment.cells for found in environments_of(experiment, cell)]
    return {
        key: values[0]
        for key, values in _values(facts).items()
        if len(values) == 1 and all(key in found for found in facts)
    }


def environments_of(experiment: ExperimentResult, cell: CellResult) -> list[Facts]:
    """Return environment and code of each attempt of the cell; empty where it never began.

    A cell without a record gets those of every launch, as it may have run in any of them.
    """
    recorded = [
        {key: value for key, value in keys.flatten(found).items() if key not in PASSING} for found in cell.environments
    ]
    return recorded or (launches(experiment) if cell.metrics else [])


def launches(experiment: ExperimentResult) -> list[Facts]:
    """Return environment and code of each launch in experiment.yaml, which has the machine of the first launch only."""
    facts = []
    for code in experiment.code or [{}]:
        known = experiment.machine | {key: code[key] for key in ("commit", "versions") if key in code}
        if isinstance(diff := code.get("diff"), str):
            known["changes"] = changes(diff)
        facts.append(keys.flatten(known) if known else {})
    return facts


def configs_of(cell: CellResult) -> list[Facts]:
    """Return the cell's configuration without operational keys; empty where it was never launched."""
    if not (cell.path / "config.yaml").is_file():
        return []
    ignored = (*keys.OPERATIONAL, "arm", "seed")
    return [{key: value for key, value in keys.flatten(cell.config).items() if not keys.is_within(key, ignored)}]


def _differing(facts: dict[str, list[Facts]]) -> list[tuple[str, dict[str, list[Any]]]]:
    """Return the keys with several values over all arms, each with the values of every arm."""
    everything = _values(found for arm in facts.values() for found in arm)
    by_arm = {arm: _values(found) for arm, found in facts.items()}
    return [
        (key, {arm: values.get(key, []) for arm, values in by_arm.items()})
        for key, everywhere in everything.items()
        if len(everywhere) > 1
    ]


def _values(facts: Iterable[Facts]) -> dict[str, list[Any]]:
    """Return key → its distinct values, in order of appearance."""
    found: dict[str, list[Any]] = {}
    for fact in facts:
        for key, value in fact.items():
            values = found.setdefault(key, [])
            if value not in values:
                values.append(value)
    return found
