"""Notices of ends and failures: sent once, by a command or to a webhook, and without effect on the experiment."""

from __future__ import annotations

import json
import shlex
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from orchestrator.common.errors import UserError
from orchestrator.config import load, schema, validation
from orchestrator.jobs import notices, retry
from orchestrator.jobs.notices import send
from orchestrator.launch import ends, finalize
from orchestrator.schedulers import Slurm
from orchestrator.schedulers.scheduler import ThisJob
from orchestrator.status import main as status_main
from orchestrator.storage.event_log import COMPARISON, EventLog
from orchestrator.tracking.run import _described
from tests.naming import names, naming
from tests.orchestrator.launch.cluster import FOUR, Made, with_state
from tests.orchestrator.schedulers.scripted import Scripted

TWO = ("++arms={a: ['width=uniform'], b: ['width=ramp']}", "declared=[width]", "seeds=[0]", "launcher=debug", "name=x")
CELL = "a/seed=0"
Heard = Callable[[], list[dict[str, Any]]]


@pytest.fixture(autouse=True)
def _nothing_warned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notices, "_warned", False)


@pytest.fixture
def told(tmp_path: Path) -> Heard:
    """The notices that `collector` was given, in order."""

    def read() -> list[dict[str, Any]]:
        path = tmp_path / "told"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    return read


@pytest.fixture
def collector(tmp_path: Path) -> str:
    """A command that writes its stdin as a line."""
    return f"(cat; echo) >> {shlex.quote(str(tmp_path / 'told'))}"


@pytest.fixture
def webhook() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The address of a server of this machine, and what was posted to it."""
    posted: list[dict[str, Any]] = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.headers["Content-Type"] == "application/json"
            posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(404 if self.path == "/gone" else 200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hook)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", posted
    server.shutdown()
    server.server_close()


def notify(command: str = "", webhook: str = "") -> list[str]:
    """Overrides; Hydra takes a quoted string as it is."""
    words = {"command": command, "webhook": webhook}
    return [f"notify.{key}='{word}'" for key, word in words.items() if word]


def test_an_end_is_told_with_its_answer_and_once(
    small: list[str], orchestrate: Callable[..., int], tmp_path: Path, collector: str, told: Heard, webhook: Any
) -> None:
    words = [*small, *TWO, *notify(collector.replace("'", ""), webhook[0])]
    assert orchestrate(*words) == 0
    (end,) = told()
    answer = json.loads((tmp_path / "outputs/x/comparison/verdict.json").read_text())["findings"][0]["answer"]
    assert names(end["text"], "x", "compared", "2 of 2 cells", f"b: {answer}")
    assert {key: end[key] for key in ("event", "experiment", "cell", "directory")} == {
        "event": "compared", "experiment": "x", "cell": "", "directory": str(tmp_path / "outputs/x"),
    }  # fmt: skip
    assert webhook[1] == [end]
    assert orchestrate(*words) == 0
    assert len(told()) == 1, "nothing had run"


def test_a_failed_cell_is_told_at_once_and_then_the_end(
    small: list[str], orchestrate: Callable[..., int], tmp_path: Path, collector: str, told: Heard
) -> None:
    (tmp_path / "outputs/x" / CELL).mkdir(parents=True)
    (tmp_path / "outputs/x" / CELL / "checkpoints").write_text("a file is in its place")
    assert orchestrate(*small, *TWO, *notify(collector)) == 2
    failed, end = told()
    assert (failed["event"], failed["cell"]) == ("cell_failed", CELL)
    assert names(failed["text"], "x", CELL, "checkpoints")
    assert (end["event"], end["cell"]) == ("failed", "")
    assert names(end["text"], "1 of 2 cells", CELL, "checkpoints")
    assert status_main([str(tmp_path / "outputs/x"), "--resume", "failed"]) == 2
    assert [notice["event"] for notice in told()[2:]] == ["cell_failed", "failed"], "a resume is an attempt of its own"


@pytest.mark.parametrize(
    ("line", "warnings"),
    [("exit 3", 1), ("sleep 60", 1), ("sleep 60 & exit 0", 0), ("kill -9 $$", 1), ("/no/where", 1), ("exec 0<&-", 0)],
)
def test_a_command_that_fails_or_hangs_changes_nothing(
    line: str, warnings: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notices, "COMMAND_SECONDS", 0.3)
    for _ in range(2):
        send(schema.NotifyConfig(command=line), "it ended", "compared", tmp_path)
    assert len(capsys.readouterr().err.splitlines()) == warnings


def test_an_experiment_is_compared_whatever_its_notice_meets(
    small: list[str], orchestrate: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str], webhook: Any
) -> None:
    assert orchestrate(*small, *TWO, *notify("exit 7", f"{webhook[0]}/gone")) == 0
    error = capsys.readouterr().err
    assert error.count("notify.") == 1
    assert names(error, "notify.command", "exit code 7")
    assert len(webhook[1]) == 1
    assert (tmp_path / "outputs/x/comparison/report.html").is_file()


def test_a_webhook_that_nobody_serves_is_one_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        send(schema.NotifyConfig(webhook="http://127.0.0.1:9/services"), "it ended", "compared", tmp_path)
    assert names(capsys.readouterr().err, "notify.webhook")


def test_the_text_is_never_a_part_of_the_command(tmp_path: Path, collector: str, told: Heard) -> None:
    hostile = "$(touch owned) `touch owned`; \x1b[31m \n 'q' \"d\" ü"
    directory = tmp_path / "a b;$(touch owned)"
    line = f"{collector}; env | grep ^LAYER_ROLES_ > {shlex.quote(str(tmp_path / 'variables'))}"
    send(schema.NotifyConfig(command=line), hostile, "cell_failed", directory, "a/seed=0")
    (notice,) = told()
    assert notice["text"] == hostile.replace("\x1b", "\\x1b").replace("\n", "\\n")
    variables = dict(found.split("=", 1) for found in (tmp_path / "variables").read_text().splitlines())
    assert variables == {f"LAYER_ROLES_{key.upper()}": value for key, value in notice.items()}
    assert not [*tmp_path.rglob("owned")]
    assert not Path("owned").exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [("command", ""), ("command", " \t"), ("command", "a\0b"), ("webhook", ""), ("webhook", "ftp://a.example/x"),
     ("webhook", "file:///etc/passwd"), ("webhook", "hooks.example.org/x"), ("webhook", "https://"),
     ("webhook", "http://a.example:port/"), ("webhook", "http://a b.example/"), ("webhook", "http://[::1/")],
)  # fmt: skip
def test_what_cannot_be_told_is_refused_at_launch(key: str, value: str) -> None:
    with pytest.raises(UserError, match=naming(f"notify.{key}", repr(value))):
        validation.validate(schema.Config(data=schema.DataConfig({"a": schema.DomainConfig()}),
                                          notify=schema.NotifyConfig(**{key: value})))  # fmt: skip


@pytest.mark.parametrize(
    "value", ["https://hooks.example.org/services/T0/B0/x", "http://127.0.0.1:8080", "http://[::1]:9/"]
)
def test_web_addresses_are_taken(value: str) -> None:
    validation.validate(schema.Config(data=schema.DataConfig({"a": schema.DomainConfig()}),
                                      notify=schema.NotifyConfig(webhook=value)))  # fmt: skip


def test_wandb_does_not_get_the_address() -> None:
    config = schema.Config(name="x", notify=schema.NotifyConfig(webhook="https://hooks.example.org/secret"))
    assert "secret" not in str(_described(config, "train"))


# in a queue, jobs tell


def test_a_job_that_gives_its_cell_up_tells_it(
    made: Made, monkeypatch: pytest.MonkeyPatch, collector: str, told: Heard
) -> None:
    monkeypatch.setattr(Slurm, "ending", lambda self, here: None)
    monkeypatch.setattr(Slurm, "requeue", lambda self, job, pause: True)
    experiment = made(*FOUR, *notify(collector))
    events = EventLog(experiment.directory)
    for restart in range(3):
        events.append(CELL, "running", attempt=restart + 1, job="7", scheduler="slurm", restart=restart)
        retry.after(events, Slurm(experiment.directory), ThisJob("7", restart), 137, retries=2, backoff=1)
        assert len(told()) == (restart == 2), "a death that is tried again is no failure"
    assert names(told()[0]["text"], CELL, "3 times", "SIGKILL")


@pytest.mark.parametrize(
    ("states", "event"), [("done done", "compared"), ("done failed", "failed"), ("done stopped", "stopped")]
)
def test_the_last_job_tells_the_end(
    made: Made, monkeypatch: pytest.MonkeyPatch, collector: str, told: Heard, states: str, event: str
) -> None:
    experiment = made(*FOUR, "seeds=[0]", *notify(collector))
    for cell, state in zip(experiment.cells, states.split(), strict=True):
        with_state(experiment, [cell.id], state)
    for name, result in {"has_finished": True, "_read": None, "_compare": (None, None, ""), "_show": None}.items():
        monkeypatch.setattr(finalize, name, lambda *_, result=result, **__: result)
    finalize.run_as_job(experiment.directory)
    assert [notice["event"] for notice in told()] == [event]


def test_a_job_that_another_follows_tells_nothing(made: Made, cluster: Scripted, collector: str, told: Heard) -> None:
    experiment = made(*FOUR, *notify(collector))
    events = EventLog(experiment.directory)
    cluster.become("9", "PENDING")
    events.append(CELL, "submitted", attempt=1, job="9", scheduler="slurm")
    finalize.run_as_job(experiment.directory)
    last = events.comparison()
    assert last is not None
    assert last.is_open
    assert told() == []


def test_the_launcher_leaves_a_queues_end_to_its_job(made: Made, collector: str, told: Heard) -> None:
    experiment = made(*FOUR, *notify(collector))
    assert ends.notified(lambda experiment: 0)(experiment) == 0
    EventLog(experiment.directory).append(COMPARISON, "submitted", attempt=1, job="1", scheduler="slurm")
    assert ends.notified(lambda experiment: 0)(experiment) == 0
    assert told() == []


def test_cells_from_before_there_was_the_key_tell_nothing(made: Made, tmp_path: Path) -> None:
    experiment = made(*FOUR)
    path = experiment.cells[0].directory / "config.yaml"
    lines = path.read_text().split("notify:\n  command: null\n  webhook: null\n")
    assert len(lines) == 2
    path.write_text("".join(lines))
    assert load.from_file(path).notify == schema.NotifyConfig()
    notices.fail(EventLog(experiment.directory), CELL, "why", attempt=1)
    path.unlink()
    notices.fail(EventLog(experiment.directory), CELL, "why", attempt=2)


def test_a_search_that_its_budget_ends_while_it_explores_is_told_with_the_reason(
    small: list[str], orchestrate: Callable[..., int], collector: str, told: Heard
) -> None:
    space = ("++search.space={optim.lr: [1e-3, 4e-3]}", "search.trials=2", "seeds=[0]", "name=x", "launcher=debug")
    words = [*small, *space, *notify(collector.replace("'", "")), "budget.core_hours=1e-9"]
    assert orchestrate(*words) == 2
    (end,) = told()
    assert end["event"] == "stopped"
    assert names(end["text"], "x was stopped", "budget.core_hours=1e-09")
