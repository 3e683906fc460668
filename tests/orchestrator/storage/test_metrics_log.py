"""The metrics log survives a cut at any byte and is rewound without a gap or a double."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.common.errors import UserError
from orchestrator.storage import metrics_log
from tests.naming import naming

RECORDS = [{"step": 10 * i, "loss": 1 / (i + 3), "heldout": {"code": 0.1 * i}} for i in range(6)]


def _written(path: Path) -> Path:
    for record in RECORDS:
        metrics_log.append(path, record)
    return path


def test_reads_back_what_was_appended_exactly(tmp_path: Path) -> None:
    path = _written(tmp_path / "metrics.jsonl")
    assert metrics_log.read(path) == RECORDS
    assert list(metrics_log.backwards(path)) == RECORDS[::-1]
    assert [json.loads(line) for line in path.read_text().splitlines()] == RECORDS


@settings(deadline=None)
@given(data=st.data())
def test_a_cut_at_any_byte_costs_at_most_the_line_it_hits(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = _written(tmp_path_factory.mktemp("cut") / "metrics.jsonl")
    content = path.read_bytes()
    cut = data.draw(st.integers(0, len(content)))
    path.write_bytes(content[:cut])
    whole = content[:cut].count(b"\n")
    # a line whose newline alone was cut is still a whole JSON object
    complete = whole + (cut < len(content) and content[cut : cut + 1] == b"\n")
    assert metrics_log.read(path) == RECORDS[:complete]
    assert list(metrics_log.backwards(path)) == RECORDS[:whole][::-1]
    metrics_log.append(path, {"step": 999})
    assert [r["step"] for r in metrics_log.read(path)] == [r["step"] for r in RECORDS[:whole]] + [999]


def test_backwards_finds_a_record_longer_than_its_block(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    long = {"step": 1, "sidecar": ["x" * 10_000]}
    metrics_log.append(path, {"step": 0})
    metrics_log.append(path, long)
    for block in (1, 7, 4096, 10_000, 10**6):
        assert list(metrics_log.backwards(path, block)) == [long, {"step": 0}]
    assert list(metrics_log.backwards(tmp_path / "absent.jsonl")) == []


@pytest.mark.parametrize("step", [-1, 0, 25, 30, 1000])
def test_rewind_keeps_what_is_before_and_loses_nothing(tmp_path: Path, step: int) -> None:
    path = _written(tmp_path / "metrics.jsonl")
    metrics_log.rewind(path, step)
    kept = [r for r in RECORDS if r["step"] <= step]
    assert metrics_log.read(path) == kept
    assert kept + metrics_log.read(tmp_path / "metrics.replaced.jsonl") == RECORDS


def test_a_broken_line_in_the_middle_is_named(tmp_path: Path) -> None:
    path = _written(tmp_path / "metrics.jsonl")
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], "{half", *lines[2:]]) + "\n")
    with pytest.raises(UserError, match=naming("metrics.jsonl", "line 3", "JSON")):
        metrics_log.read(path)


def _append_many(path: Path, first: int) -> None:
    for step in range(first, first + 100):
        metrics_log.append(path, {"step": step})


def test_writers_that_mend_a_torn_line_at_once_lose_nothing(tmp_path: Path) -> None:
    path = _written(tmp_path / "events.jsonl")
    with path.open("ab") as file:
        file.write(b'{"step": 55, "lo')
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_append_many, args=(path, first)) for first in (1000, 2000, 3000)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    steps = {r["step"] for r in metrics_log.read(path)}
    assert steps == {r["step"] for r in RECORDS} | {f + i for f in (1000, 2000, 3000) for i in range(100)}


def test_a_metrics_log_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=naming(tmp_path / "absent/metrics.jsonl", "No such file", "room")):
        metrics_log.append(tmp_path / "absent" / "metrics.jsonl", {"step": 0})


def test_a_last_line_that_is_no_record_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert metrics_log.newest(path) is None
    path.write_text('{"step": 0}\n')
    assert metrics_log.newest(path) == {"step": 0}
    path.write_text('{"step": 0}\ngarbage\n')
    with pytest.raises(UserError, match=naming("last line", path, "JSON", "delete")):
        metrics_log.newest(path)


def test_what_a_superseded_attempt_wrote_late_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for step, attempt in ((0, 1), (2, 1), (4, 2), (4, 1), (6, 2), (8, 1)):
        metrics_log.append(path, {"step": step, "attempt": attempt})
    assert [(r["step"], r["attempt"]) for r in metrics_log.read(path)] == [(0, 1), (2, 1), (4, 2), (6, 2)]
    assert metrics_log.newest(path) == {"step": 6, "attempt": 2}
    assert [r["step"] for r in metrics_log.backwards(path)] == [6, 4, 2, 0]
    lines = path.read_text().splitlines()
    metrics_log.rewind(path, 4)
    assert [r["step"] for r in metrics_log.read(path)] == [0, 2, 4]
    replaced = (tmp_path / "metrics.replaced.jsonl").read_text().splitlines()
    assert path.read_text().splitlines() + replaced == lines, "what does not count is not lost either"


@pytest.mark.parametrize("step", [-1, 25, 50])
def test_a_rewind_of_a_torn_metrics_log_leaves_whole_lines(tmp_path: Path, step: int) -> None:
    path = _written(tmp_path / "metrics.jsonl")
    whole = path.read_bytes()
    for torn, lost in ((whole[:-1], 0), (whole + b'{"step": 60, "lo', 0), (whole[:-9], 1)):
        path.write_bytes(torn)
        replaced = path.with_suffix(".replaced.jsonl")
        replaced.unlink(missing_ok=True)
        metrics_log.rewind(path, step)
        assert metrics_log.read(path) + metrics_log.read(replaced) == RECORDS[: len(RECORDS) - lost]
        assert (path.read_bytes() or b"\n").endswith(b"\n")


def test_a_rewind_and_those_who_append_take_turns(tmp_path: Path) -> None:
    """An `append` that waits while the log is rewound writes to what is left of it, not to a deleted file."""
    path = _written(tmp_path / "metrics.jsonl")
    context = multiprocessing.get_context("fork")
    writer = context.Process(target=_append_many, args=(path, 1000))
    writer.start()
    for _ in range(50):
        metrics_log.rewind(path, 2000)  # all may stay
        metrics_log.rewind(path, 20)
    writer.join()
    moved = metrics_log.read(tmp_path / "metrics.replaced.jsonl")
    assert sorted(r["step"] for r in [*metrics_log.read(path), *moved]) == [0, 10, 20, 30, 40, 50, *range(1000, 1100)]


def test_a_metrics_log_that_cannot_be_rewound_is_a_sentence_and_stays(tmp_path: Path) -> None:
    path = _written(tmp_path / "metrics.jsonl")
    (tmp_path / "metrics.replaced.jsonl").mkdir()
    with pytest.raises(UserError, match=naming(tmp_path / "metrics.replaced.jsonl", "Is a directory", "room")):
        metrics_log.rewind(path, 20)
    assert metrics_log.read(path) == RECORDS


def test_without_file_locks_it_is_still_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", refuse)
    metrics_log.append(tmp_path / "metrics.jsonl", {"step": 0})
    assert metrics_log.newest(tmp_path / "metrics.jsonl") == {"step": 0}
