"""Cells on disk as a run leaves them, written by hand."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from orchestrator.monitoring.live.server import Server
from orchestrator.storage.event_log import EventLog
from tests.orchestrator.reading import layer_json, reading_json

LETTERS = {"H": "hub", "D": "damper", "P": "passthrough", "S": "specialist", ".": "hub/specialist", ",": "damper/hub"}


def write_reading(cell: Path, step: int, letters: str, findings: Sequence[tuple[str, float, str]] = ()) -> Path:
    """A reading with one layer per letter."""
    path = cell / f"forensics/step_{step:08d}.json"
    path.parent.mkdir(exist_ok=True)
    layers = [layer_json(index, LETTERS[letter]) for index, letter in enumerate(letters)]
    pathology = [{"tensor": tensor, "ratio": ratio, "severity": severity} for tensor, ratio, severity in findings]
    path.write_text(json.dumps(reading_json(layers, step, pathology=pathology)))
    return path


@pytest.fixture
def reading() -> Callable[..., Path]:
    return write_reading


@pytest.fixture
def cell(tmp_path: Path) -> Callable[..., Path]:
    """Write one cell of the experiment `x` and return its directory; every argument has a plain default."""

    def write(
        arm: str = "uniform",
        seed: int = 0,
        *,
        state: str | None = "running",
        reason: str = "",
        job: str = "",
        losses: Sequence[float] = (3.0, 2.0),
        readings: Sequence[str] = (),
        steps: int = 100,
        arms: Sequence[str] = ("uniform", "variable"),
        intervene: int | None = None,
    ) -> Path:
        """A record every 10 steps, taking 2 seconds, a reading every 20."""
        path = tmp_path / "x" / arm / f"seed={seed}"
        (path / "checkpoints").mkdir(parents=True)
        config: dict[str, Any] = {"train": {"steps": steps}, "forensics": {"every": 20}, "arms": {a: [] for a in arms}}
        if intervene is not None:
            config["interventions"] = {"every": intervene}
        (path / "config.yaml").write_text(json.dumps(config))  # JSON is YAML
        records = [
            {"step": 10 * i, "loss": loss, "seconds": 2.0 * i} | ({"heldout": {"a": 1.0, "b": 2.0}} if i == 0 else {})
            for i, loss in enumerate(losses)
        ]
        if records:
            (path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        for index, letters in enumerate(readings):
            (path / f"checkpoints/step_{20 * index:08d}").mkdir()
            write_reading(path, 20 * index, letters)
        if state in ("preempted", "stopped", "done"):
            EventLog(tmp_path / "x").append(f"{arm}/seed={seed}", "running", attempt=1, job=job)
        if state:
            EventLog(tmp_path / "x").append(f"{arm}/seed={seed}", state, attempt=1, job=job, reason=reason)
        return path

    return write


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    """Serve directories on a free port, in a thread, until the test ends."""
    servers = []

    def start(*directories: Path) -> Server:
        server = Server(directories, 0)
        servers.append(server)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()
