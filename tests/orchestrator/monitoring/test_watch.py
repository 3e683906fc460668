"""A view that follows a run, in a log, in a terminal, and to its end."""

from __future__ import annotations

import io
import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from rich.console import Console

from orchestrator.monitoring import Screen
from orchestrator.monitoring.cells import CellStatus
from orchestrator.monitoring.watch import outcome, watch
from orchestrator.status import main
from orchestrator.storage import lease, locks, metrics_log
from orchestrator.storage.event_log import EventLog
from tests.naming import names
from tests.waiting import PATIENCE, wait_for

Write = Callable[..., Path]


def test_a_log_gets_a_line_per_change(cell: Write, reading: Write) -> None:
    path = cell(losses=(3.0,))
    root, file = path.parents[1], io.StringIO()

    def news() -> list[str]:
        file.seek(0)
        file.truncate()
        screen.refresh(force=True)
        return file.getvalue().splitlines()

    with lease.hold(path), Screen(root, Console(file=file, width=40)) as screen:
        assert [text.split()[:2] for text in news()] == [["uniform/seed=0", "running"]]
        assert news() == []
        metrics_log.append(path / "metrics.jsonl", {"step": 5, "seconds": 1.0, "loss": 2.0})
        assert news() == [], "not a tenth of it"
        metrics_log.append(path / "metrics.jsonl", {"step": 10, "seconds": 2.0, "loss": 2.0})
        assert [text.split()[2:6] for text in news()] == [["step", "10/100", "loss", "2.000"]]
        reading(path, 0, "HS", [("t", 31.0, "critical")])
        changed, alert = news()
        assert changed.endswith("roles HS (step 0)")
        assert alert.startswith("uniform/seed=0 ")
        assert names(alert, "critical: t", "31.0×", "step 0")
        assert news() == [], "an alert is told once"
        EventLog(root).append("uniform/seed=0", "failed", attempt=1, reason="[bold] why")
        assert [" ".join(text.split()[1:]) for text in news()] == [
            "failed step 10/100 loss 2.000 held-out 1.500 roles HS (step 0)", "critical: failed: [bold] why",
        ]  # fmt: skip


@pytest.mark.parametrize(
    ("states", "code"),
    [("done done", 0), ("done failed", 2), ("lost done", 2), ("done stopped", 130), ("done next", 130)],
)
def test_how_it_ended_is_the_exit_code(states: str, code: int) -> None:
    assert outcome([CellStatus(f"a/seed={i}", state) for i, state in enumerate(states.split())]) == code


def test_watching_ends_with_the_last_cell_and_the_launcher(cell: Write) -> None:
    path = cell()
    root, found = path.parents[1], []
    with ExitStack() as running:
        running.enter_context(locks.hold(locks.of_launcher(root)))
        with lease.hold(path):
            thread = threading.Thread(target=lambda: found.extend(watch(root, Console(file=io.StringIO()))))
            thread.start()
            EventLog(root).append("uniform/seed=0", "done", attempt=1)
        thread.join(0.5)
        assert thread.is_alive(), "the launcher may start another"
    thread.join(PATIENCE)
    assert [cell.state for cell in found] == ["done"]


def test_what_has_ended_is_shown_once(cell: Write, capsys: pytest.CaptureFixture[str]) -> None:
    path = cell(state="failed", reason="why")
    assert main([str(path.parents[1]), "--watch"]) == 2
    *shown, last = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in shown] == ["failed", "critical:"]
    assert names(last, "Nothing runs", "1 failed")
    assert main([str(path.parents[1])]) == 0
    assert "x  10% of 1 cell  1 failed" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["a", "b"], ["--wach", "a"]])
def test_wrong_arguments_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert names(error, "--help")
    assert error.count("\n") == 1


@pytest.mark.parametrize("more", [[], ["--watch"], ["--resume"]])
@pytest.mark.parametrize(
    ("of", "named"),
    [
        ("absent", ["absent", "there"]),
        ("xs", ["xs", "there", "'x'?"]),
        ("", ["no experiment"]),
        ("x/uniform/seed=0", ["x/uniform/seed=0", "one cell"]),
    ],
)
def test_no_experiment_is_a_sentence(
    cell: Write, tmp_path: Path, of: str, named: list[str], more: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    cell()
    assert main([str(tmp_path / of), *more]) == 2
    error = capsys.readouterr().err
    assert names(error, tmp_path / of, *named)
    assert len(error.splitlines()) == 1


def test_on_a_terminal_it_redraws_in_place_until_ctrl_c(cell: Write) -> None:
    path = cell(readings=("HS",))
    parent, child = pty.openpty()
    drawn = bytearray()

    def drain() -> None:  # a full terminal would hold its writer up
        with suppress(OSError):
            while True:
                drawn.extend(os.read(parent, 65536))

    with lease.hold(path):
        command = [sys.executable, "-m", "orchestrator.status", str(path.parents[1]), "--watch"]
        env = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", "LINES": "30"}
        process = subprocess.Popen(
            command, stdout=child, stderr=child, env=env,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background shell's jobs ignore it
        )  # fmt: skip
        os.close(child)
        reader = threading.Thread(target=drain, daemon=True)
        reader.start()
        for step in (10, 20):
            wait_for(lambda step=step: f"{step}/100".encode() in drawn)
            if step == 10:
                metrics_log.append(path / "metrics.jsonl", {"step": 20, "seconds": 4.0, "loss": 1.0})
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 130
        reader.join(PATIENCE)
    os.close(parent)
    assert b"Traceback" not in drawn
    assert b"\x1b[1A" in drawn, "the cursor went up to draw over what was there"
    assert b"\x1b[?25h" in drawn, "and is shown again"
