"""Alerts of a cell, and cells without any."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.monitoring import read_status
from orchestrator.monitoring.alerts import alerts
from orchestrator.schedulers.slurm.scheduler import Slurm
from orchestrator.storage import lease
from orchestrator.storage.event_log import EventLog
from tests.naming import names

Write = Callable[..., Path]


def said(path: Path, running: bool = False) -> list[tuple[str, str]]:
    """Severity and text of the alerts on the one cell in the experiment."""
    if running:
        with lease.hold(path):
            return said(path)
    (status,) = read_status(path.parents[1])
    return [(alert.severity, alert.text) for alert in alerts(status)]


def age(cell: Path, seconds: float) -> None:
    """Let the metrics log be so old, and the event log older."""
    then = time.time() - seconds
    os.utime(cell / "metrics.jsonl", (then, then))
    os.utime(cell.parents[1] / "events.jsonl", (then - 1, then - 1))


def test_of_a_cell_in_order_nothing_is_said(cell: Write) -> None:
    assert said(cell(readings=("HS", "HS")), running=True) == []


def test_failed_lost_and_resumed_cells(cell: Write) -> None:
    cell(state="failed", reason="The loss became nan.\nLower optim.lr.")
    cell(seed=1)
    path = cell(seed=2, state="stopped", reason="resumed at step 20")
    found = [alert for status in read_status(path.parents[1]) for alert in alerts(status)]
    assert [(a.cell, a.severity) for a in found] == [
        ("uniform/seed=0", "critical"), ("uniform/seed=1", "critical"), ("uniform/seed=2", "note"),
    ]  # fmt: skip
    assert found[0].text.startswith("failed: The loss became nan.")
    assert found[1].text.startswith("lost: ")
    assert names(found[1].text, "the experiment's command", "status --resume")


@pytest.mark.parametrize("log", ["", "srun: error\nsubmitit ERROR (now) - died\nOut of memory.\n"])
def test_a_failed_cells_log_is_named(cell: Write, log: str) -> None:
    path = cell(state="failed", reason="died 3 times", job="7_1")
    EventLog(path.parents[1]).append("uniform/seed=0", "crashed", attempt=1)
    EventLog(path.parents[1]).append("uniform/seed=0", "failed", attempt=1, job="7_1", reason="died 3 times")
    (path.parents[1] / "jobs").mkdir()
    (path.parents[1] / "jobs/7_1_0_log.err").write_text(log)
    (severity, text), *_ = said(path)
    assert severity == "critical"
    assert names(text, "jobs/7_1_0_log.err")
    assert text.endswith("\n  Out of memory.") == bool(log)


def test_a_scheduler_alone_knows_where_its_logs_are(cell: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason of a loss, for a cell of a queue and for one that a launcher of this machine ran."""
    monkeypatch.setattr(Slurm, "log_of", lambda self, id: self.folder / f"slurm-{id}.txt")
    queued, here = cell(seed=0), cell(seed=1)
    events = EventLog(queued.parents[1])
    (folder := queued.parents[1] / "jobs").mkdir()
    for path, scheduler, log in ((queued, "slurm", "slurm-7.txt"), (here, "", "7_0_log.err")):
        (folder / log).write_text("Out of memory.\n")
        for state in ("crashed", "failed"):
            events.append(f"uniform/{path.name}", state, attempt=1, job="7", reason="died", scheduler=scheduler)
    logs = [status.log for status in read_status(queued.parents[1])]
    assert logs == [("jobs/slurm-7.txt ends:", "Out of memory."), ("jobs/7_0_log.err ends:", "Out of memory.")]


def test_of_a_failure_that_explains_itself_an_empty_log_says_nothing_more(cell: Write) -> None:
    path = cell(state="failed", reason="The loss became nan", job="7_1")
    (path.parents[1] / "jobs").mkdir()
    (path.parents[1] / "jobs/7_1_0_log.err").write_text("")
    assert said(path) == [("critical", "failed: The loss became nan")]


def test_the_worst_tensor_is_named_and_the_rest_counted(cell: Write, reading: Write) -> None:
    path = cell(readings=("HS", "HS"))
    findings = [("l4.gate", 40.123, "critical"), ("l2.up", 12.0, "warn"), ("l3.up", 11.0, "warn")]
    reading(path, 20, "HS", findings)
    ((severity, text),) = said(path, running=True)
    assert severity == "critical"
    assert names(text, "l4.gate", "40.1×", "step 20", "2 tensors")
    reading(path, 20, "HS", findings[1:2])
    ((severity, text),) = said(path, running=True)
    assert severity == "warn"
    assert names(text, "l2.up", "12.0×", "step 20")
    reading(path, 40, "HS")
    assert said(path, running=True) == [], "only the newest reading counts"


def test_a_silent_metrics_log_is_stale_only_where_it_should_be_written(cell: Write) -> None:
    path = cell()  # records are 2 seconds apart
    age(path, 59)
    assert said(path, running=True) == [], "ten intervals, but not a minute"
    age(path, 61)
    ((severity, text),) = said(path, running=True)
    assert severity == "warn"
    assert names(text, "nothing since", "2 s")
    assert said(path, running=True) == [(severity, text)], "the same words as long as nothing is new"
    slow = cell(seed=1, losses=(3.0, 2.0))
    log = slow / "metrics.jsonl"
    log.write_text(log.read_text().replace('"seconds": 2.0', '"seconds": 30.0'))
    age(slow, 299)
    with lease.hold(slow):
        assert not alerts(read_status(slow.parents[1])[1])
        age(slow, 301)
        assert alerts(read_status(slow.parents[1])[1])


def test_an_attempt_that_has_just_begun_is_not_silent(cell: Write) -> None:
    path = cell()
    age(path, 10_000)
    EventLog(path.parents[1]).append("uniform/seed=0", "preempted", attempt=1)
    EventLog(path.parents[1]).append("uniform/seed=0", "running", attempt=2)
    assert [text for severity, text in said(path, running=True) if severity == "warn"] == []


def test_a_cell_whose_directory_is_gone_is_missed(cell: Write) -> None:
    path, gone = cell(state="done", losses=tuple(range(11))), cell(seed=1, state="done")
    shutil.rmtree(gone)
    status = read_status(path.parents[1])
    assert [(s.cell, s.state) for s in status] == [("uniform/seed=0", "done"), ("uniform/seed=1", "missing")]
    assert ["directory" in alert.text for alert in alerts(status[1])] == [True]


def test_a_finished_or_unstarted_cell_may_be_silent(cell: Write) -> None:
    done = cell(state="done", losses=tuple(range(11)))
    age(done, 10_000)
    assert said(done) == []
    assert said(done, running=True) == []
    one = cell(seed=1, losses=(3.0,))
    age(one, 10_000)
    with lease.hold(one):
        assert alerts(read_status(one.parents[1])[1]) == [], "one record tells no interval"


def test_readings_that_lag_or_were_never_made(cell: Write) -> None:
    path = cell(readings=("HS",))
    for step in (10, 20):
        (path / f"checkpoints/step_{step:08d}").mkdir()
    assert said(path, running=True) == [], "10 is not due, and 20 is being read"
    (path / "checkpoints/step_00000040").mkdir()
    ((severity, text),) = said(path, running=True)
    assert severity == "warn"
    assert names(text, "2 checkpoints", "steps 20 to 40")
    (path / "checkpoints/step_00000020").rmdir()
    done = cell(seed=1, state="done", readings=("HS",))
    (done / "checkpoints/step_00000100").mkdir()
    status = read_status(path.parents[1])[1]
    (alert,) = alerts(status)
    assert names(alert.text, "1 checkpoint", "step 100")


def test_interventions_that_lag_or_were_never_made(cell: Write) -> None:
    path = cell(readings=("HS",) * 4, intervene=40)
    (path / "interventions").mkdir()
    (path / "interventions/.step_00000000.json.partial").write_text("")
    assert len(said(path, running=True)) == 1, "steps 0 and 40; a file of what is not finished is none"
    (path / "interventions/step_00000000.json").write_text("{}")
    assert said(path, running=True) == [], "20 and 60 are not due, and 40 is being intervened on"
    ((_, lost), (severity, text)) = said(path)
    assert names(lost, "lost")
    assert severity == "warn"
    assert names(text, "1 checkpoint", "intervened", "step 40", "the experiment's command")
    (path / "checkpoints/step_00000080").mkdir()
    ((severity, text),) = said(path, running=True)
    assert severity == "warn"
    assert names(text, "2 checkpoints", "steps 40 to 80"), "of which one is not read yet, as it may be"
    done = cell(seed=1, state="done", readings=("HS",), intervene=40)
    (done / "interventions").mkdir()
    (done / "interventions/step_00000000.json").write_text("{}")
    (done / "checkpoints/step_00000100").mkdir()
    texts = [alert.text for alert in alerts(read_status(path.parents[1])[1])]
    assert ["step 100" in text for text in texts] == [True, True], "the last is due, to be read and intervened on"


def test_checkpoints_set_aside_are_a_note(cell: Write) -> None:
    path = cell()
    for name in ("20.corrupt-0", "20.damaged-1", "40.replaced-0"):  # damaged: of an older cell
        (path / f"checkpoints/step_000000{name}").mkdir()
    (one, corrupt), (other, replaced) = said(path, running=True)
    assert one == other == "note"
    assert names(corrupt, "2 checkpoints", "corrupt", "checkpoints/step_00000020.corrupt-0", "1 more")
    assert names(replaced, "1 checkpoint", "trained again", "checkpoints/step_00000040.replaced-0")
    assert not names(replaced, "corrupt")


def test_the_worst_comes_first(cell: Write, reading: Write) -> None:
    path = cell(state="failed", reason="why", readings=("HS", "HS"))
    reading(path, 20, "HS", [("t", 12.0, "warn")])
    (path / "checkpoints/step_00000020.corrupt-0").mkdir()
    (path / "config.yaml").write_text("{")
    assert [severity for severity, _ in said(path)] == ["critical", "warn", "warn", "note"]
