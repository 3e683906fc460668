"""The records that the jobs of a multirun write, and the summary that the command prints of them."""

from __future__ import annotations

import json
import os
import shlex
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from orchestrator.common.errors import INTERRUPTED, UserError
from orchestrator.monitoring import read_status
from orchestrator.storage.files import write_whole

LONG = 300  # characters; a longer list of directories is abbreviated by a pattern
WITHOUT_CELLS = {0: "planned, nothing trained", INTERRUPTED: "stopped before it began", None: "has not ended"}


@dataclass
class JobRecord:
    """The state of one job, as far as it has reported it."""

    job: int
    label: str  # the overrides that vary from job to job
    log: str = ""  # the file of its output, if it has one
    directory: str = ""  # of its experiment, once known
    exit_code: int | None = None  # None until the job ends
    messages: list[str] = field(default_factory=list)  # its errors, one sentence each

    def write(self, directory: Path) -> None:
        """Replace the job's file in `directory`. Raises `UserError` where the disk refuses."""
        write_whole(directory / f"{self.job}.json", json.dumps(asdict(self)))


def read_records(directory: Path) -> list[JobRecord]:
    """The records of the jobs that have begun, in order."""
    records = [JobRecord(**json.loads(path.read_bytes())) for path in directory.glob("*.json")]
    return sorted(records, key=lambda record: record.job)


def summary(records: Sequence[JobRecord]) -> list[str]:
    """A line for each experiment: directory, cells by state, findings, log; then the command that compares them."""
    names = [record.directory or record.label or f"job {record.job}" for record in records]
    width, lines = max(map(len, names), default=0), []
    for name, record in zip(names, records, strict=True):
        log = f"  log: {os.path.relpath(record.log)}" if record.log else ""
        lines.append(f"{name:<{width}}  {_result(record)}{log}")
    directories = [r.directory for r in records if r.directory and (Path(r.directory) / "experiment.yaml").is_file()]
    if directories:
        lines.append(f"Side by side: python -m orchestrator.compare {_as_arguments(directories)}")
    return lines


def _result(record: JobRecord) -> str:
    states: Counter[str] = Counter()
    if record.directory:
        with suppress(UserError):  # no cell has begun
            states.update(cell.state for cell in read_status(Path(record.directory)))
    if not states:
        return WITHOUT_CELLS.get(record.exit_code, "refused")
    text = ", ".join(f"{number} {state}" for state, number in states.items())
    if record.exit_code == 2 and not states.keys() & {"failed", "lost"}:
        return f"{text}, but the command was refused"
    return "; ".join([text, *_findings(Path(record.directory))]) if [*states] == ["done"] else text


def _findings(directory: Path) -> list[str]:
    """The first finding on each arm; none where the comparison is not written yet."""
    try:
        findings = json.loads((directory / "comparison/verdict.json").read_bytes())["findings"]
    except (OSError, ValueError, KeyError):
        return []
    first: dict[str, str] = {}
    for finding in findings:
        first.setdefault(finding["arm"], f"{finding['arm']}: {finding['question']} {finding['answer']}")
    return [*first.values()]


def _as_arguments(directories: Sequence[str]) -> str:
    """The directories as shell arguments; where they are long and begin alike, a pattern that matches them."""
    arguments = " ".join(map(shlex.quote, directories))
    starts = {str(Path(d).with_name(Path(d).name.partition("__")[0])) for d in directories}
    return f"{shlex.quote(starts.pop())}__*" if len(arguments) > LONG and len(starts) == 1 else arguments
