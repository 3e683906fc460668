"""The status of cells whose files are whole, half written, broken or missing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.analysis.cells import read_cell
from orchestrator.common.errors import UserError
from orchestrator.monitoring import read_status
from orchestrator.monitoring.cells import FURTHEST, RECENT, recent_records
from orchestrator.monitoring.states import Evidence, state_of
from orchestrator.schedulers.slurm.scheduler import job_state as job
from orchestrator.storage import lease, locks, metrics_log
from orchestrator.storage.event_log import Entry, EventLog
from tests.naming import names, naming

Write = Callable[..., Path]


def test_the_pace_of_a_branch_is_that_of_its_own_steps(cell: Write, tmp_path: Path) -> None:
    path = cell(losses=(3.0, 2.0, 1.9, 1.8))
    config = json.loads((path / "config.yaml").read_text()) | {"branch": {"arm": "trunk", "step": 20}}
    (path / "config.yaml").write_text(json.dumps(config))
    records = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    records = [{"trunk": "trunk/seed=0", **row} for row in records[:3]] + [records[3] | {"seconds": 5.0}]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in records))
    with lease.hold(path, "17", 1):
        (found,) = read_status(tmp_path / "x")
        assert found.left == 5.0 / 10 * 70
        (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in records[:3]))
        (found,) = read_status(tmp_path / "x")
        assert found.left is None, "it has made no step yet"


def test_progress_losses_and_time_left_by_hand(cell: Write) -> None:
    path = cell(losses=(4.0, 3.5, 3.0, 2.75, 2.5))
    with lease.hold(path):
        (found,) = read_status(path.parents[1])
    assert (found.state, found.step, found.steps, found.share) == ("running", 40, 100, 0.4)
    assert (found.loss, found.losses) == (2.5, [4.0, 3.5, 3.0, 2.75, 2.5])
    assert found.heldout == 1.5
    assert found.left == 2.0 / 10 * 60
    assert found.interval == 2.0


def test_a_cell_that_has_not_started_says_nothing(cell: Write) -> None:
    path = cell(state=None, losses=())
    shutil.rmtree(path / "checkpoints")
    (found,) = read_status(path.parents[1])
    assert (found.state, found.step, found.share) == ("next", 0, 0.0)
    assert (found.loss, found.heldout, found.left, found.interval, found.reading) == (None,) * 5
    assert found.broken == ()


def test_the_newest_reading_and_what_changed_since_the_one_before(cell: Write, reading: Write) -> None:
    path = cell(readings=("....", "H.S,"))
    (found,) = read_status(path.parents[1])
    assert found.reading
    assert (found.reading.step, found.reading.letters, found.reading.changed) == (20, "H·S·", 2)
    reading(path, 100_000_000, "H.SD")  # nine digits
    (found,) = read_status(path.parents[1])
    assert found.reading
    assert (found.reading.step, found.reading.changed) == (100_000_000, 1)


def test_a_first_reading_and_one_of_another_depth_have_nothing_to_be_compared_with(cell: Write) -> None:
    first = cell(readings=("HS",))
    deeper = cell(seed=1, readings=("HS", "HSP"))
    found = read_status(first.parents[1])
    assert [c.reading and c.reading.changed for c in found] == [None, None]
    assert deeper.name == found[1].cell.partition("/")[2]


def test_a_reading_that_is_written_again_is_read_again(cell: Write, reading: Write) -> None:
    path = cell(readings=("HH",))
    assert read_status(path.parents[1])[0].reading.letters == "HH"  # type: ignore[union-attr]
    reading(path, 0, "SS").touch()
    assert read_status(path.parents[1])[0].reading.letters == "SS"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "content",
    [b"{half", b"", b"[]", b'{"layers": 3, "pathology": []}', b"\xff\xfe", b'{"layers": [{}]}', b"null"],
)
def test_a_broken_reading_is_a_sentence_and_hides_nothing_else(cell: Write, content: bytes) -> None:
    path = cell(readings=("HH", "HH"))
    (path / "forensics/step_00000020.json").write_bytes(content)
    (found,) = read_status(path.parents[1])
    assert found.reading is None
    assert found.loss == 2.0
    (sentence,) = found.broken
    assert names(sentence, "forensics/step_00000020.json", "python -m orchestrator.forensics")


def test_a_reading_of_another_step_than_its_name_is_a_sentence_as_in_a_comparison(cell: Write) -> None:
    path = cell(readings=("HH", "HH"))
    (path / "forensics/step_00000030.json").write_bytes((path / "forensics/step_00000020.json").read_bytes())
    (found,) = read_status(path.parents[1])
    assert found.reading is None
    (sentence,) = found.broken
    assert names(sentence, "forensics/step_00000030.json", "step is 20", "step 30")
    (path / "metrics.jsonl").unlink()  # which a comparison checks first
    with pytest.raises(UserError) as error:
        read_cell(path, "uniform", 0)
    assert str(error.value) == sentence


@pytest.mark.parametrize("name", ["step_7.json", "step_x.json", "step_.json"])
def test_a_file_that_is_not_named_like_a_reading_is_ignored_everywhere(cell: Write, name: str) -> None:
    path = cell(readings=("HH", "HH"))
    (path / "forensics" / name).write_text("{}")
    (found,) = read_status(path.parents[1])
    assert (found.read, found.broken) == ({0, 20}, ())
    (path / "metrics.jsonl").unlink()  # which a comparison checks first
    assert list(read_cell(path, "uniform", 0).readings) == [0, 20]


def test_partial_files_beside_readings_and_checkpoints_are_neither(cell: Write) -> None:
    path = cell(readings=("HH",))
    (path / "forensics/.step_00000020.json.partial").write_text("{")
    (path / "forensics/step_00000020.json.replaced").write_text("{")
    (path / "checkpoints/.step_00000020.partial").mkdir()
    (path / "checkpoints/step_00000020.corrupt-0").mkdir()
    (found,) = read_status(path.parents[1])
    assert found.reading
    assert found.reading.step == 0
    assert (found.saved, found.read, found.aside) == ({0}, {0}, ("step_00000020.corrupt-0",))


def test_a_torn_last_line_is_no_record_and_a_broken_one_is_a_sentence(cell: Write) -> None:
    path = cell()
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 20, "lo')
    assert read_status(path.parents[1])[0].step == 10
    for line in ('{"st\n', "[1]\n", '{"loss": 1.0}\n', '{"step": "20", "seconds": 1.0}\n'):
        (path / "metrics.jsonl").write_text('{"step": 0, "seconds": 0.0}\n' + line)
        (found,) = read_status(path.parents[1])
        assert found.step == 0
        assert "metrics.jsonl" in found.broken[0]


@pytest.mark.parametrize("content", ["train: [", "train: 3", "", "{train: {}, arms: {}}"])
def test_a_broken_configuration_leaves_its_last_step_unknown(cell: Write, content: str) -> None:
    path = cell()
    (path / "config.yaml").write_text(content)
    cell(seed=1)
    broken, whole = read_status(path.parents[1])
    assert (broken.step, broken.steps, broken.share, broken.left) == (10, 0, 0.0, None)
    assert "config.yaml" in broken.broken[0]
    assert whole.steps == 100


def test_only_the_end_of_a_metrics_log_is_read(cell: Write) -> None:
    path = cell(losses=())
    log = path / "metrics.jsonl"
    lines = [json.dumps({"step": i, "seconds": float(i), "loss": 1.0, "heldout": {"a": 1.0}}) for i in range(1000)]
    log.write_text("no record\n" + "\n".join(lines) + "\n")
    assert [r["step"] for r in recent_records(log)] == list(range(1000 - RECENT, 1000))
    without = [json.dumps({"step": i, "seconds": float(i)}) for i in range(1000)]
    log.write_text("\n".join([*lines[:900], *without[900:]]) + "\n")
    assert [r["step"] for r in recent_records(log)] == list(range(899, 1000)), "back to a held-out loss"
    log.write_text("\n".join(without) + "\n")
    assert len(recent_records(log)) == FURTHEST


def test_cells_come_in_the_experiments_order(cell: Write) -> None:
    for arm in ("b", "a"):
        for seed in (10, 9):
            path = cell(arm, seed, arms=("b", "a"))
    (path.parents[1] / "a/seed=x").mkdir()
    (path.parents[1] / "a/seed=x/config.yaml").touch()
    assert [c.cell for c in read_status(path.parents[1])] == ["b/seed=9", "b/seed=10", "a/seed=9", "a/seed=10"]


@pytest.mark.parametrize(
    ("said", "evidence", "expected"),
    [
        (None, Evidence(), "next"),
        ("submitted", Evidence(launching=True), "queued"),
        ("submitted", Evidence(), "lost"),
        ("submitted", Evidence(held=True), "running"),
        ("running", Evidence(held=True, launching=True), "running"),
        ("running", Evidence(held=True, stale=True), "zombie"),
        ("running", Evidence(launching=True), "lost"),
        ("crashed", Evidence(launching=True), "queued"),
        ("crashed", Evidence(), "lost"),
        ("stopped", Evidence(), "stopped"),
        ("done", Evidence(launching=True), "done"),
    ],
)
def test_states(said: str | None, evidence: Evidence, expected: str) -> None:
    assert state_of(Entry(said, 1, "", "") if said else None, evidence) == expected


@pytest.mark.parametrize(
    ("said", "evidence", "expected"),
    [
        ("submitted", Evidence(job=job("PENDING")), "queued"),
        ("submitted", Evidence(job=job("RUNNING")), "queued"),  # it starts
        ("running", Evidence(held=True, job=job("RUNNING")), "running"),
        ("running", Evidence(held=True, stale=True, job=job("RUNNING")), "zombie"),
        ("running", Evidence(stale=True, job=job("RUNNING")), "zombie"),  # on a machine that does not answer
        ("running", Evidence(held=True, job=job("PENDING")), "zombie"),  # left alive on a node that was given up
        ("running", Evidence(held=True, job=job("NODE_FAIL")), "zombie"),
        ("running", Evidence(job=job("PENDING")), "preempted"),  # without having been able to say so
        ("running", Evidence(job=job("COMPLETING")), "preempted"),
        ("running", Evidence(job=job("RUNNING")), "running"),  # its process has just died: the job will say so
        ("preempted", Evidence(job=job("RUNNING")), "preempted"),  # it starts again
        ("running", Evidence(held=True, job=job("SUSPENDED")), "suspended"),
        ("running", Evidence(held=True, stale=True, job=job("SUSPENDED")), "suspended"),  # it cannot beat
        ("running", Evidence(stale=True, job=job("STOPPED")), "suspended"),
        ("done", Evidence(job=job("SUSPENDED")), "done"),
        ("preempted", Evidence(job=job("PENDING")), "preempted"),
        ("preempted", Evidence(job=job("CANCELLED")), "stopped"),
        ("crashed", Evidence(job=job("PENDING")), "queued"),
        ("running", Evidence(job=job("OUT_OF_MEMORY")), "lost"),
        ("submitted", Evidence(job=job("CANCELLED by 0")), "stopped"),
        ("running", Evidence(), "lost"),  # its scheduler has forgotten it
        ("submitted", Evidence(), "lost"),
        ("preempted", Evidence(), "lost"),
        ("running", Evidence(answered=False), "lost"),  # nobody here can be asked, and nothing beats
        ("submitted", Evidence(answered=False), "queued"),
        ("preempted", Evidence(answered=False), "queued"),
        ("done", Evidence(job=job("RUNNING")), "done"),
    ],
)
def test_states_with_a_scheduler(said: str, evidence: Evidence, expected: str) -> None:
    assert state_of(Entry(said, 1, "7", "", scheduler="slurm"), evidence) == expected


def test_locks_decide_over_an_open_word(cell: Write) -> None:
    path = cell(state="submitted")
    root = path.parents[1]
    assert read_status(root)[0].state == "lost"
    with locks.hold(locks.of_launcher(root)):
        assert read_status(root)[0].state == "queued"
        with lease.hold(path):
            assert read_status(root)[0].state == "running"


def test_the_last_word_of_a_process_that_ends_meanwhile_counts(cell: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cell says that it is done after the event log was read and before its claim is looked at."""
    path = cell()
    root = path.parents[1]

    def ends(_: Path) -> None:
        EventLog(root).append("uniform/seed=0", "done", attempt=1)

    monkeypatch.setattr("orchestrator.storage.lease.newest", ends)
    assert read_status(root)[0].state == "done"


def test_an_event_log_that_is_not_one_is_a_sentence(cell: Write) -> None:
    path = cell()
    metrics_log.append(path.parents[1] / "events.jsonl", {"cell": "uniform/seed=0"})
    with pytest.raises(UserError, match=naming("events.jsonl", "'time'")):
        read_status(path.parents[1])
