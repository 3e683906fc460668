"""The append-only truth of one cell: a JSON object per logged step, synced as it is written."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

from orchestrator.errors import UserError

Record = dict[str, Any]
LOOKED_BACK = 8  # records before the last that tell whether it counts


def read(path: Path) -> list[Record]:
    """Every whole record, in order. A last line cut short by a crash is not a record; any other is an error."""
    if not path.exists():
        return []
    records: list[Record] = []
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            records.append(_record(line))
        except ValueError as error:
            if number == len(lines):  # no newline after it: the write was cut
                break
            raise UserError(
                f"{path} line {number} is not a JSON object ({error}): restore or delete that line."
            ) from error
    return _without_superseded(records)


def _without_superseded(records: list[Record]) -> list[Record]:
    """Without what an attempt wrote of its steps after its successor had begun to: it was thought dead, and woke up."""
    kept, latest = [], 0
    for record in records:
        attempt = record.get("attempt", 0) if "step" in record else latest
        if not isinstance(attempt, int) or attempt >= latest:
            kept.append(record)
            latest = max(latest, attempt) if isinstance(attempt, int) else latest
    return kept


def backwards(path: Path, block: int = 16384) -> Iterator[Record]:
    """The whole records from the newest on, read from the end of the file no further than they are taken.

    None where there is no file. Raises `ValueError` at a line that is no record.
    """
    if not path.exists():
        return
    with path.open("rb") as file:
        start, cut, ended = file.seek(0, os.SEEK_END), b"", False
        while start > 0:
            end, start = start, max(0, start - block)
            file.seek(start)
            lines = (file.read(end - start) + cut).split(b"\n")
            if not ended:  # what follows the last newline is not whole
                ended = len(lines) > 1
                lines = lines[:-1] or [b""]
            cut, *whole = lines  # the first line may have begun in the block before
            yield from map(_record, filter(None, reversed(whole)))
        if cut:
            yield _record(cut)


def newest(path: Path) -> Record | None:
    """The last whole record; None where there is none. Raises `UserError` where the last line is no record."""
    try:
        records = _without_superseded(list(islice(backwards(path), LOOKED_BACK))[::-1])
        return records[-1] if records else None
    except ValueError as error:
        raise UserError(f"The last line of {path} is no JSON object ({error}): restore or delete it.") from error


def _record(line: bytes) -> Record:
    """Raises `ValueError` for a line that is no record."""
    try:
        record = json.loads(line, parse_constant=_refuse)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(record, dict):
        raise ValueError("not an object")
    return record


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number of JSON")


def append(path: Path, record: Record, fence: Callable[[], None] = lambda: None) -> None:
    """Write one record as one line and sync it; processes that append at once take turns, where files can be locked.

    `fence` is called when it is this one's turn, and may raise to leave the file as it is.
    Mends a line cut short by a crash first. Raises `UserError` where the disk refuses.
    """
    line = json.dumps(record, allow_nan=False).encode() + b"\n"
    try:
        with path.open("ab+") as file:
            with suppress(OSError):  # some file systems of clusters have no locks
                fcntl.flock(file, fcntl.LOCK_EX)
            fence()
            if file.seek(0, os.SEEK_END) > 0:
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    _truncate_torn_line(file)
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error}): make room or make it writable, and run the same command again."
        ) from error


def rewind(path: Path, step: int) -> None:
    """Go back to `step`: later records, which a resumed run will write again, move to `<stem>.replaced.jsonl`."""
    records = read(path)
    keep = [r for r in records if r["step"] <= step]
    if len(keep) == len(records) and not _is_torn(path):
        return
    for record in records[len(keep) :]:
        append(path.with_suffix(".replaced.jsonl"), record)
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        file.writelines(json.dumps(record).encode() + b"\n" for record in keep)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _is_torn(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")


def _truncate_torn_line(file: Any) -> None:
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    content = file.read(size)
    file.truncate(content.rfind(b"\n") + 1)
    file.seek(0, os.SEEK_END)
