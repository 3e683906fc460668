"""The append-only truth of one cell: a JSON object per logged step, synced as it is written."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import Any

from orchestrator.errors import UserError

Record = dict[str, Any]


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
            record = json.loads(line)
            if not isinstance(record, dict):
                raise ValueError("not an object")
        except ValueError as error:
            if number == len(lines):  # no newline after it: the write was cut
                break
            raise UserError(
                f"{path} line {number} is not a JSON object ({error}): restore or delete that line."
            ) from error
        records.append(record)
    return records


def tail(path: Path, block: int = 65536) -> list[Record]:
    """The newest whole records, in order: those in the last `block` bytes, and at least one if there is any."""
    if not path.exists():
        return []
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        start = max(0, size - block)
        file.seek(start)
        lines = file.read(size - start).split(b"\n")[:-1]  # what follows the last newline is not whole
    if start > 0:
        lines = lines[1:]  # neither is the first, which the block cuts
        if not lines:
            return tail(path, 4 * block)
    return [json.loads(line) for line in lines]


def append(path: Path, record: Record) -> None:
    """Write one record as one line and sync it; processes that append at once take turns.

    Mends a line cut short by a crash first. Raises `UserError` where the disk refuses.
    """
    line = json.dumps(record, allow_nan=False).encode() + b"\n"
    try:
        with path.open("ab+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
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
