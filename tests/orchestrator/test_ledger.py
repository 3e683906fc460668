"""The ledger survives a cut at any byte and is rewound without a gap or a double."""

from __future__ import annotations

import fcntl
import json
import multiprocessing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator import ledger
from orchestrator.errors import UserError

RECORDS = [{"step": 10 * i, "loss": 1 / (i + 3), "heldout": {"code": 0.1 * i}} for i in range(6)]


def _written(path: Path) -> Path:
    for record in RECORDS:
        ledger.append(path, record)
    return path


def test_reads_back_what_was_appended_exactly(tmp_path: Path) -> None:
    path = _written(tmp_path / "ledger.jsonl")
    assert ledger.read(path) == RECORDS
    assert list(ledger.backwards(path)) == RECORDS[::-1]
    assert [json.loads(line) for line in path.read_text().splitlines()] == RECORDS


@given(data=st.data())
def test_a_cut_at_any_byte_costs_at_most_the_line_it_hits(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = _written(tmp_path_factory.mktemp("cut") / "ledger.jsonl")
    content = path.read_bytes()
    cut = data.draw(st.integers(0, len(content)))
    path.write_bytes(content[:cut])
    whole = content[:cut].count(b"\n")
    # a line whose newline alone was cut is still a whole JSON object
    complete = whole + (cut < len(content) and content[cut : cut + 1] == b"\n")
    assert ledger.read(path) == RECORDS[:complete]
    assert list(ledger.backwards(path)) == RECORDS[:whole][::-1]
    ledger.append(path, {"step": 999})
    assert [r["step"] for r in ledger.read(path)] == [r["step"] for r in RECORDS[:whole]] + [999]


def test_backwards_finds_a_record_longer_than_its_block(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    long = {"step": 1, "sidecar": ["x" * 10_000]}
    ledger.append(path, {"step": 0})
    ledger.append(path, long)
    for block in (1, 7, 4096, 10_000, 10**6):
        assert list(ledger.backwards(path, block)) == [long, {"step": 0}]
    assert list(ledger.backwards(tmp_path / "absent.jsonl")) == []


@pytest.mark.parametrize("step", [-1, 0, 25, 30, 1000])
def test_rewind_keeps_what_is_before_and_loses_nothing(tmp_path: Path, step: int) -> None:
    path = _written(tmp_path / "ledger.jsonl")
    ledger.rewind(path, step)
    kept = [r for r in RECORDS if r["step"] <= step]
    assert ledger.read(path) == kept
    assert kept + ledger.read(tmp_path / "ledger.replaced.jsonl") == RECORDS


def test_a_broken_line_in_the_middle_is_named(tmp_path: Path) -> None:
    path = _written(tmp_path / "ledger.jsonl")
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], "{half", *lines[2:]]) + "\n")
    with pytest.raises(UserError, match=r"ledger.jsonl line 3 is not a JSON object"):
        ledger.read(path)


def _append_many(path: Path, first: int) -> None:
    for step in range(first, first + 100):
        ledger.append(path, {"step": step})


def test_writers_that_mend_a_torn_line_at_once_lose_nothing(tmp_path: Path) -> None:
    path = _written(tmp_path / "manifest.jsonl")
    with path.open("ab") as file:
        file.write(b'{"step": 55, "lo')
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_append_many, args=(path, first)) for first in (1000, 2000, 3000)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    steps = {r["step"] for r in ledger.read(path)}
    assert steps == {r["step"] for r in RECORDS} | {f + i for f in (1000, 2000, 3000) for i in range(100)}


def test_a_ledger_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot be written .*make room"):
        ledger.append(tmp_path / "absent" / "ledger.jsonl", {"step": 0})


def test_a_last_line_that_is_no_record_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    assert ledger.newest(path) is None
    path.write_text('{"step": 0}\n')
    assert ledger.newest(path) == {"step": 0}
    path.write_text('{"step": 0}\ngarbage\n')
    with pytest.raises(UserError, match=r"The last line of .*ledger.jsonl is no JSON object \(.*\): restore or"):
        ledger.newest(path)


def test_what_a_superseded_attempt_wrote_late_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    for step, attempt in ((0, 1), (2, 1), (4, 2), (4, 1), (6, 2), (8, 1)):
        ledger.append(path, {"step": step, "attempt": attempt})
    assert [(r["step"], r["attempt"]) for r in ledger.read(path)] == [(0, 1), (2, 1), (4, 2), (6, 2)]
    assert ledger.newest(path) == {"step": 6, "attempt": 2}
    ledger.rewind(path, 4)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [0, 2, 4]


def test_a_fence_is_asked_when_it_is_this_ones_turn(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger.append(path, {"step": 0})

    def fence() -> None:
        with path.open() as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        raise RuntimeError("another has it")

    with pytest.raises(RuntimeError):
        ledger.append(path, {"step": 1}, fence)
    assert ledger.read(path) == [{"step": 0}]


def test_without_file_locks_it_is_still_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", refuse)
    ledger.append(tmp_path / "ledger.jsonl", {"step": 0})
    assert ledger.newest(tmp_path / "ledger.jsonl") == {"step": 0}
