"""The metrics log of one cell: append-only, one JSON object per logged step, synced as it is written."""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import IO, Any, NoReturn

from orchestrator.common.errors import UserError
from orchestrator.storage import locks
from orchestrator.storage.files import write_whole

Record = dict[str, Any]
PATIENCE_SECONDS = 90.0  # longest wait for another process that writes; one that writes for longer is frozen
LOOKED_BACK = 8  # records before one that show whether it is superseded


def read(path: Path) -> list[Record]:
    """Every record, in order, but a last line that a crash cut short. Raises `UserError` for any other broken line."""
    return [record for _, record in _current(path, path.read_bytes())] if path.exists() else []


def _current(path: Path, content: bytes) -> list[tuple[int, Record]]:
    """The offset and the record of every line of `content` that is not superseded."""
    records, start = [], 0
    lines = content.split(b"\n")
    for number, line in enumerate(lines, start=1):
        try:
            if line:
                records.append((start, _record(line)))
        except ValueError as error:
            if number == len(lines):  # without a newline: the write was cut short
                break
            raise UserError(
                f"{path} line {number} is not a JSON object ({error}): restore or delete that line."
            ) from error
        start += len(line) + 1
    late = _superseded([record for _, record in records])
    return [found for found, is_late in zip(records, late, strict=True) if not is_late]


def _superseded(records: list[Record]) -> list[bool]:
    """True for records of a step that a superseded attempt wrote after its successor's first.

    A frozen attempt may write one when it wakes up, where files cannot be locked.
    """
    late, latest = [], 0
    for record in records:
        attempt = record.get("attempt") if "step" in record else None
        late.append(isinstance(attempt, int) and attempt < latest)
        latest = max(latest, attempt) if isinstance(attempt, int) else latest
    return late


def backwards(path: Path, block: int = 16384) -> Iterator[Record]:
    """The records from the newest to the oldest, read in blocks from the end of the file as they are consumed.

    Empty where there is no file. Raises `ValueError` at a line that is not a record.
    """
    records = _lines_backwards(path, block)
    window = deque(islice(records, LOOKED_BACK))  # a record and those before it
    while window:
        window.extend(islice(records, 1))
        if not _superseded([*reversed(window)])[-1]:
            yield window[0]
        window.popleft()


def _lines_backwards(path: Path, block: int) -> Iterator[Record]:
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
    """The last whole record; None where there is none. Raises `UserError` where the last line is not a record."""
    try:
        return next(backwards(path), None)
    except ValueError as error:
        raise UserError(f"The last line of {path} is not a JSON object ({error}): restore or delete it.") from error


def first(path: Path) -> Record | None:
    """The first record; None where there is none, or only a part of it. Raises `UserError` where it is broken."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        line = file.readline()
    try:
        return _record(line) if line.endswith(b"\n") else None
    except ValueError as error:
        raise UserError(f"{path} line 1 is not a JSON object ({error}): restore or delete that line.") from error


def trained_to(path: Path) -> int | None:
    """The step at which training ended, with its test loss; None where it has not. Raises `UserError` as `newest`."""
    record = newest(path)
    return record["step"] if record is not None and "test" in record else None


def _record(line: bytes) -> Record:
    """The record in a line. Raises `ValueError` where there is none."""
    try:
        record = json.loads(line, parse_constant=_refuse)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(record, dict):
        raise ValueError("not an object")
    return record


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a JSON number")


def append(path: Path, record: Record) -> None:
    """Append one record as one line, under a lock, and sync it; first remove a last line that a crash cut short.

    Raises `UserError` where the disk refuses.
    """
    line = json.dumps(record, allow_nan=False).encode() + b"\n"
    try:
        with path.open("ab+") as file:
            locks.acquire(file.fileno(), PATIENCE_SECONDS)
            if file.seek(0, os.SEEK_END) > 0:
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    _cut(file, _content(file).rfind(b"\n") + 1)
            file.write(line)
            _sync(file)
    except OSError as error:
        raise _unwritable(path, error) from error


def write(path: Path, records: Iterable[Record]) -> None:
    """Write a log that begins with `records`, over an empty one. Raises `UserError` where the disk refuses."""
    write_whole(path, "".join(json.dumps(record, allow_nan=False) + "\n" for record in records))


def rewind(path: Path, step: int, check: Callable[[], None] = lambda: None) -> None:
    """Move the records after `step`, which a resumed run will write again, to `<stem>.replaced.jsonl`.

    Drops a last line that was cut short. `check` is called just before the log is cut, and may raise to prevent that.
    Raises `UserError` where the disk refuses; then nothing is lost.
    """
    if not path.exists():
        return
    try:
        with path.open("ab+") as file:
            locks.acquire(file.fileno(), PATIENCE_SECONDS)
            content = _content(file)
            records = _current(path, content)
            last = content.rfind(b"\n") + 1
            is_whole = any(at == last for at, _ in records)  # but for its newline
            whole = content[:last] + (content[last:] + b"\n" if is_whole else b"")
            start = next((at for at, record in records if record["step"] > step), len(whole))
            if start < len(whole):
                with path.with_suffix(".replaced.jsonl").open("ab") as replaced:
                    replaced.write(whole[start:])
                    _sync(replaced)
            check()
            _cut(file, min(start, last))
            file.write(whole[last:start])
            _sync(file)
    except OSError as error:
        raise _unwritable(path, error) from error


def _content(file: IO[bytes]) -> bytes:
    file.seek(0)
    return file.read()


def _cut(file: IO[bytes], size: int) -> None:
    file.truncate(size)
    file.seek(0, os.SEEK_END)


def _sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _unwritable(path: Path, error: OSError) -> UserError:
    return UserError(
        f"{path} cannot be written ({error}): make room or make it writable, and run the same command again."
    )
