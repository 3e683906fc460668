"""What became of the experiments of a multirun: what each job leaves, and the lines in which that is told."""

from __future__ import annotations

import json
import os
import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.common.errors import INTERRUPTED, UserError

LISTED = 300  # characters of directories that are named one by one
WITHOUT_A_DIRECTORY = {0: "planned, nothing trained", INTERRUPTED: "stopped before it began", None: "has not ended"}


@dataclass(frozen=True)
class Outcome:
    """How one job ended: its exit code, null where it has only begun, and the sentences that explain it."""

    job: int
    code: int | None
    said: list[str]
    varied: str = ""  # the overrides that only it has
    directory: str = ""  # of its experiment, once that is known
    log: str = ""  # the file of its output, where that is not the terminal


def newest(outcomes: Iterable[Outcome]) -> list[Outcome]:
    """The last word of every job, in order; what it said of itself earlier stays known."""
    last: dict[int, Outcome] = {}
    for now in outcomes:
        was = last.get(now.job, now)
        last[now.job] = Outcome(
            now.job, now.code, now.said, now.varied or was.varied, now.directory or was.directory, now.log or was.log
        )
    return [last[job] for job in sorted(last)]


def told(outcomes: Sequence[Outcome]) -> list[str]:
    """A line for each experiment: its directory, cells by state, answers and log; then how to see them side by side."""
    names = [outcome.directory or outcome.varied or f"job {outcome.job}" for outcome in outcomes]
    lines, room = [], max(map(len, names), default=0)
    for name, outcome in zip(names, outcomes, strict=True):
        log = f"  log: {os.path.relpath(outcome.log)}" if outcome.log else ""
        lines.append(f"{name:<{room}}  {_became(outcome)}{log}")
    directories = [o.directory for o in outcomes if o.directory and (Path(o.directory) / "experiment.yaml").is_file()]
    if directories:
        lines.append(f"Side by side: python -m orchestrator.compare {_named(directories)}")
    return lines


def _became(outcome: Outcome) -> str:
    from orchestrator.monitoring import read_status

    try:
        cells = Counter(cell.state for cell in read_status(Path(outcome.directory))) if outcome.directory else None
    except UserError:  # none there
        cells = None
    if not cells:
        return WITHOUT_A_DIRECTORY.get(outcome.code, "refused")
    counted = ", ".join(f"{number} {state}" for state, number in cells.items())
    if outcome.code == 2 and "failed" not in cells:
        return f"{counted}, but the command was refused"
    return "; ".join([counted, *_answers(Path(outcome.directory))]) if [*cells] == ["done"] else counted


def _answers(directory: Path) -> list[str]:
    """The first finding on each arm, as the comparison has it on disk."""
    try:
        findings = json.loads((directory / "comparison/verdict.json").read_bytes())["findings"]
    except (OSError, ValueError, KeyError):  # not compared yet, or being written
        return []
    first: dict[str, str] = {}
    for finding in findings:
        first.setdefault(finding["arm"], f"{finding['question']} {finding['answer']}")
    return [*first.values()] if len(first) == 1 else [f"{arm}: {answer}" for arm, answer in first.items()]


def _named(directories: Sequence[str]) -> str:
    """Them all as words of a shell; many by what their names begin with."""
    words = " ".join(map(shlex.quote, directories))
    starts = {str(Path(d).with_name(Path(d).name.partition("__")[0])) for d in directories}
    return f"{shlex.quote(starts.pop())}__*" if len(words) > LISTED and len(starts) == 1 else words
