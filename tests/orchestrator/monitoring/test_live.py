"""The live page's server: what it serves, to whom, and what it says of directories that come, change and go."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any

import pytest

from orchestrator.monitoring import read_status
from orchestrator.monitoring.live import served, state
from orchestrator.monitoring.live.server import PORT, Server
from orchestrator.status import main
from orchestrator.storage import lease, metrics_log
from orchestrator.storage.event_log import EventLog
from tests.conftest import SMALL
from tests.naming import names
from tests.orchestrator.stub import leave_behind
from tests.waiting import PATIENCE, wait_for

Write = Callable[..., Path]
Serve = Callable[..., Server]
HOSTILE = "<img src=x onerror=alert(1)> & \"q\" 'a' {{ 7 * 7 }}"


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read at every request."""
    monkeypatch.setattr(served, "INTERVAL", 0.0)
    monkeypatch.setattr("orchestrator.monitoring.live.so_far.PAUSE", 0.0)
    monkeypatch.setattr("orchestrator.monitoring.live.server.EFFORT", 1e9)


def ask(server: Server, path: str, method: str = "GET", **headers: str) -> tuple[HTTPResponse, bytes]:
    """The answer to one request, and its body."""
    connection = HTTPConnection("127.0.0.1", server.server_port, timeout=PATIENCE)
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer, body


def state_of(server: Server, name: str = "x") -> dict[str, Any]:
    answer, body = ask(server, f"/{name}/state.json")
    assert (answer.status, answer.headers["Content-Type"]) == (200, "application/json")
    found: dict[str, Any] = json.loads(body)
    return found


def test_the_state_is_that_of_the_status(cell: Write, serve: Serve) -> None:
    path = cell(losses=(3.0, 2.5, 2.0), readings=("HSD.", "HHD."))
    cell(seed=1, state="failed", reason="why")
    cell("variable", state=None, losses=())
    with lease.hold(path):
        found, expected = state_of(serve(path.parents[1])), read_status(path.parents[1])
    assert [(found["arms"][c["arm"]]["name"], c["seed"]) for c in found["cells"]] == [
        tuple(status.cell.split("/seed=")) for status in expected
    ]
    for shown, status in zip(found["cells"], expected, strict=True):
        for key in ("state", "step", "steps", "loss", "heldout"):
            assert shown[key] == getattr(status, key), key
        assert shown["lately"] == status.losses
    running = found["cells"][0]
    assert (running["left"], running["read"], running["changed"]) == (16.0, 20, 1)
    assert [found["roles"][role][0] for role in running["roles"]] == list("HHD·")
    assert found["counts"] == [["failed", 1], ["running", 1], ["next", 1]]
    assert found["share"] == pytest.approx((0.2 + 0.1 + 0) / 3, abs=1e-4)
    assert found["left"] == 36.0, "its own 16 seconds, and then the 20 of the cell that was never launched"
    assert [alert["severity"] for alert in found["alerts"]] == ["critical"]
    assert names(found["alerts"][0]["text"], "failed", "why")
    (line, other) = found["losses"]["train"]
    assert (line["name"], line["points"]) == ("uniform/seed=0", [[0, 3.0], [10, 2.5], [20, 2.0]])
    assert other["name"] == "uniform/seed=1"
    assert found["losses"]["heldout"] == [], "one point is no line"


def test_only_this_machines_own_names_are_answered(cell: Write, serve: Serve) -> None:
    """Another site's name may be made to point to 127.0.0.1, and its scripts would then read the answers."""
    server = serve(cell().parents[1])
    for host in ("127.0.0.1", "localhost", f"localhost:{server.server_port}", "127.0.0.1:1", "LOCALHOST:9"):
        assert ask(server, "/", Host=host)[0].status == 200, host
    for host in ("evil.example", "evil.example:80", "localhost.evil.example", "127.0.0.1.evil.example", "",
                 "[::1", "0.0.0.0", "evil@evil.example"):  # fmt: skip
        answer, body = ask(server, "/x/state.json", Host=host)
        assert answer.status == 403, host
        assert b"uniform" not in body
    assert server.server_address[0] == "127.0.0.1"
    with socket.create_connection(("127.0.0.1", server.server_port)) as raw:
        raw.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n")
        assert b" 403 " in raw.recv(100)


@pytest.mark.parametrize(
    "path",
    ["/y/", "/x/events.jsonl", "/x/../x/events.jsonl", "/x/%2e%2e/%2e%2e/etc/passwd", "/../../../etc/passwd", "/x//",
     "/x/uniform/seed=0/config.yaml", "/x/comparison/report.html", "/x/state.json/", "/X/", "/x/%00", "/%ff/",
     "/x/state.json%0d%0aA:b", "/x/so-far.html", "/x/report.html", "*"],
)  # fmt: skip
def test_nothing_else_is_served(path: str, cell: Write, serve: Serve) -> None:
    answer, body = ask(serve(cell().parents[1]), path)
    assert answer.status == 404
    assert answer.headers["Content-Type"].startswith("text/plain")
    assert b"uniform" not in body
    assert b"root:" not in body


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
def test_it_is_only_read(method: str, cell: Write, serve: Serve) -> None:
    path = cell()
    server = serve(path.parents[1])
    before = sorted(path.parents[1].rglob("*"))
    assert ask(server, "/x/", method)[0].status == 501
    for each in ("", "state.json"):
        answer, body = ask(server, f"/x/{each}", "HEAD")
        assert (answer.status, body) == (200, b"")
        assert int(answer.headers["Content-Length"]) > 100
    assert ask(server, "/x", "HEAD")[0].headers["Location"] == "/x/"
    assert sorted(path.parents[1].rglob("*")) == before


def test_what_has_not_changed_is_not_sent_again(cell: Write, serve: Serve) -> None:
    path = cell()
    server = serve(path.parents[1])
    with lease.hold(path):
        tag = ask(server, "/x/state.json")[0].headers["ETag"]
        answer, body = ask(server, "/x/state.json", **{"If-None-Match": tag})
        assert (answer.status, body) == (304, b"")
        metrics_log.append(path / "metrics.jsonl", {"step": 30, "seconds": 6.0, "loss": 1.5})
        answer, body = ask(server, "/x/state.json", **{"If-None-Match": tag})
        assert answer.status == 200
        assert json.loads(body)["cells"][0]["step"] == 30


def test_viewers_share_one_reading(cell: Write, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    server, read = serve(cell().parents[1]), []
    monkeypatch.setattr(served, "read_status", lambda path: read.append(path) or read_status(path))
    monkeypatch.setattr(served, "INTERVAL", PATIENCE)
    for _ in range(5):
        state_of(server)
    assert len(read) == 1


def test_names_are_only_names(cell: Write, serve: Serve) -> None:
    path = cell(HOSTILE, arms=(HOSTILE,), state="failed", reason=HOSTILE)
    root = path.parents[1].rename(path.parents[2] / "<b>x&y ü")
    server = serve(root, root.parent / "other")
    (entry, _) = json.loads(ask(server, "/state.json")[1])["experiments"]
    answer, page = ask(server, f"/{entry['href']}")
    assert answer.status == 200
    assert b"<b>" not in page
    assert b"&lt;b&gt;x&amp;y " in page
    found = json.loads(ask(server, f"/{entry['href']}state.json")[1])
    assert (found["name"], found["arms"][0]["name"]) == (root.name, HOSTILE)


def test_directories_of_one_name_are_told_apart(cell: Write, serve: Serve, tmp_path: Path) -> None:
    root = cell().parents[1]
    shutil.copytree(root, tmp_path / "b/x")
    shutil.copytree(root, tmp_path / "c/b/x")
    server = serve(root, tmp_path / "b/x", tmp_path / "c/b/x", root, tmp_path / "y")
    hrefs = [one["href"] for one in json.loads(ask(server, "/state.json")[1])["experiments"]]
    assert len(set(hrefs)) == 4
    assert hrefs[1:] == [f"{tmp_path.name}/b/x/", "c/b/x/", "y/"]
    for href, place in zip(hrefs, (root, tmp_path / "b/x", tmp_path / "c/b/x"), strict=False):
        assert json.loads(ask(server, f"/{href}state.json")[1])["place"] == str(place.parent)


def test_a_directory_may_come_and_go(cell: Write, serve: Serve, tmp_path: Path) -> None:
    server = serve(tmp_path / "x")
    assert names(state_of(server)["problem"], tmp_path / "x", "there")
    path = cell(losses=(3.0, 2.0))
    cell(seed=1)
    assert state_of(server)["counts"] == [["lost", 2]]
    shutil.rmtree(path)
    assert state_of(server)["counts"] == [["lost", 1], ["missing", 1]]
    shutil.rmtree(tmp_path / "x")
    assert names(state_of(server)["problem"], tmp_path / "x", "there")
    cell(losses=(4.0, 3.0, 2.0))
    found = state_of(server)
    assert "problem" not in found
    assert found["losses"]["train"][0]["points"] == [[0, 4.0], [10, 3.0], [20, 2.0]]


@pytest.mark.parametrize(
    ("file", "text"),
    [("events.jsonl", "not a record\n{}\n"), ("events.jsonl", '{"time": 3}\n'), ("experiment.yaml", "a: [b\n"),
     ("uniform/seed=0/metrics.jsonl", '{"step": 1, "seconds": 1.0, "heldout": {"a": "b"}}\n')],
)  # fmt: skip
def test_a_broken_file_is_said_and_mended(file: str, text: str, cell: Write, serve: Serve) -> None:
    root = cell().parents[1]
    server = serve(root)
    state_of(server)
    (root / "experiment.yaml").write_text("question: why?")
    before = (root / file).read_text()
    (root / file).write_text(text)
    assert state_of(server)["problem"]
    assert json.loads(ask(server, "/state.json")[1])["experiments"][0]["problem"]
    (root / file).write_text(before)
    assert "problem" not in state_of(server)


def test_a_broken_log_of_one_cell_is_an_alert(cell: Write, serve: Serve) -> None:
    path = cell()
    cell("variable")
    (path / "metrics.jsonl").write_text('{"step": 0, "seconds": 0.0, "loss": 3.0}\nnot a record\n')
    found = state_of(serve(path.parents[1]))
    assert len(found["cells"]) == 2
    assert any(names(alert["text"], "metrics.jsonl") for alert in found["alerts"])


def test_finished_pairs_are_compared_in_memory(tmp_path: Path, serve: Serve) -> None:
    experiment = leave_behind(tmp_path, SMALL, seeds=2, checkpoints=2)
    events, last = EventLog(experiment.directory), experiment.cells[-1]
    lines = events.path.read_text().splitlines(keepends=True)
    events.path.write_text("".join(line for line in lines if json.loads(line)["cell"] != last.id))
    metrics = last.directory / "metrics.jsonl"
    whole = metrics.read_text()
    metrics.write_text(whole.splitlines(keepends=True)[0])
    server = serve(experiment.directory)
    wait_for(lambda: state_of(server, "scale")["so_far"])
    found = state_of(server, "scale")["so_far"]
    assert found["pairs"] == 1
    assert names(found["html"], "1 of 2 complete", "Which arm won", last.id)
    answer, report = ask(server, "/scale/so-far.html")
    assert b"So far: " in report
    assert answer.headers["Content-Security-Policy"].startswith("sandbox ")
    assert not (experiment.directory / "comparison").exists(), "nothing is written"
    metrics.write_text(whole)
    for each in ("submitted", "running", "done"):
        events.append(last.id, each, attempt=1)
    wait_for(lambda: state_of(server, "scale")["so_far"]["pairs"] == 2)
    (experiment.directory / "comparison").mkdir()
    (experiment.directory / "comparison/report.html").write_text("<p>as written")
    assert state_of(server, "scale")["report"]
    answer, report = ask(server, "/scale/report.html")
    assert report == b"<p>as written"
    assert answer.headers["Content-Security-Policy"].startswith("sandbox "), "it may come from anybody"


def test_a_comparison_that_failed_is_made_again(tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = leave_behind(tmp_path, SMALL, seeds=1, checkpoints=2)
    with monkeypatch.context() as broken:
        broken.setattr("orchestrator.analysis.comparison.compute", lambda path: 1 / 0)
        server = serve(experiment.directory)
        wait_for(lambda: state_of(server, "scale")["so_far"])
        assert names(state_of(server, "scale")["so_far"]["problem"], "ZeroDivisionError")
    wait_for(lambda: "html" in state_of(server, "scale")["so_far"])
    assert "problem" not in state_of(server, "scale")["so_far"]


def test_the_arms_colours_are_those_of_the_experiment(cell: Write) -> None:
    path = cell("variable", arms=("uniform", "variable"))
    cell("added", arms=("uniform", "variable"))
    assert state.arms_of(read_status(path.parents[1])) == {"variable": 1, "added": 2}


# the command


def test_the_command_serves_until_ctrl_c(cell: Write) -> None:
    root = cell().parents[1]
    command = [sys.executable, "-m", "orchestrator.status", str(root), str(root.parent / "absent"), "--serve", "0"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background shell's jobs ignore it
    )  # fmt: skip
    assert process.stdout is not None
    line = process.stdout.readline()
    port = int(line.split("127.0.0.1:")[1].split("/")[0])
    connection = HTTPConnection("localhost", port)
    connection.request("GET", "/x/state.json")
    assert json.loads(connection.getresponse().read())["counts"] == [["lost", 1]]
    os.kill(process.pid, signal.SIGINT)
    out, error = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out) == (0, "")
    assert names(error, root.parent / "absent")
    assert error.count("\n") == 1


def test_a_taken_port_is_refused_and_the_usual_one_gives_way(
    cell: Write, serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    root = cell().parents[1]
    taken = serve(root).server_port
    assert main([str(root), "--serve", str(taken)]) == 2
    assert names(capsys.readouterr().err, taken, "--serve 9000")
    with Server([root]) as first, Server([root]) as second:
        assert PORT <= first.server_port < second.server_port


@pytest.mark.parametrize(
    ("arguments", "named"),
    [(["x", "--serve", "70000"], ["70000"]), (["--serve", "x"], ["x", "port"]), (["x", "x"], ["x", "--serve"]),
     (["x", "--serve", "--watch"], ["--watch", "--serve"]), (["x", "x", "--resume"], ["x", "--serve"]),
     (["x/uniform/seed=0", "--serve"], ["x/uniform/seed=0", "one cell"]),
     (["x/events.jsonl", "--serve"], ["x/events.jsonl"])],
)  # fmt: skip
def test_what_cannot_be_served_is_one_sentence(
    arguments: list[str], named: list[str], cell: Write, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(cell().parents[2])
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert names(error, *named)
    assert error.count("\n") == 1
