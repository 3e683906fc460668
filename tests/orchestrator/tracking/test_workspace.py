"""The W&B view and report: what is on disk names what the runs logged; what is pushed is what is on disk."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import wandb_workspaces.workspaces as ws

from orchestrator.analysis import compare
from orchestrator.analysis.comparison import compute
from orchestrator.analysis.sections.section import Roles, Section
from orchestrator.common.errors import UserError
from orchestrator.storage import metrics_log
from orchestrator.tracking import workspace
from orchestrator.tracking.run import Tracker
from orchestrator.tracking.workspace import charts
from orchestrator.tracking.workspace.report import markdown, report_of
from tests.naming import names, naming
from tests.orchestrator.tracking.offline_run import inspect, of_kind, runs_of, summary_of

Write = Callable[..., Path]
KEY = "0123456789" * 4
HOSTILE = [
    "plain",
    "it's",
    'say "x"',
    "lr=0.1,b<=2",
    "<script>alert(1)</script>",
    "ü→é ✨",
    "x' or 'a' == 'a",
    "back\\sla|sh`",
]


class Server(ThreadingHTTPServer):
    """A W&B server that knows one user, no project, and takes every view."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str] = []
        self.views: list[dict[str, Any]] = []

    def answer(self, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
        self.asked.append(operation)
        if operation.lower().startswith("upsertview"):
            self.views.append(variables)
            saved = {key: variables[key] for key in ("name", "displayName", "description", "type", "spec")}
            project = {"id": "p", "name": variables["projectName"], "entityName": variables["entityName"]}
            number = variables.get("id") or f"view{len(self.views)}"
            return {"upsertView": {"view": {**saved, "id": number, "project": project}, "inserted": True}}
        if operation == "ProjectInternalId":
            return {"project": {"internalId": "cHJvamVjdA=="}}
        if operation == "GetProjects":
            return {"models": {"edges": [], "pageInfo": {"endCursor": None, "hasNextPage": False}}}
        if operation == "CreateProject":
            return {"result": None}
        return {
            "viewer": {"id": "u", "entity": "me", "username": "me", "email": "", "flags": "{}", "teams": {"edges": []}}
        }


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        operation = re.search(r"(?:query|mutation)\s+(\w+)", asked["query"])
        assert operation is not None
        assert isinstance(self.server, Server)
        body = json.dumps({"data": self.server.answer(operation[1], asked.get("variables") or {})}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Nothing: tests read what it was asked."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    """Where W&B would be, without a login, in a home and a working directory that must stay empty."""
    for name in ("home", "cwd"):
        (tmp_path / name).mkdir()
    for name in [*(n for n in os.environ if n.startswith("WANDB_")), "NETRC"]:
        monkeypatch.delenv(name, raising=False)
    for name in ("API_KEY", "DATA_DIR", "ARTIFACT_DIR", "CACHE_DIR", "ERROR_REPORTING", "SILENT"):
        monkeypatch.setenv(f"WANDB_{name}", "")  # what is set from here on is taken back after the test
        monkeypatch.delenv(f"WANDB_{name}")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "cwd")
    found = Server()
    threading.Thread(target=found.serve_forever, daemon=True).start()
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{found.server_port}")
    yield found
    found.shutdown()
    found.server_close()
    assert not list((tmp_path / "home").iterdir())
    assert not list((tmp_path / "cwd").iterdir())


def files_of(root: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    view, report = (json.loads((root / "comparison" / name).read_text()) for name in (workspace.VIEW, workspace.REPORT))
    return view, report


def panels_in(node: Any) -> Iterator[dict[str, Any]]:
    """Every panel, wherever it lies in a specification."""
    if isinstance(node, dict):
        if "viewType" in node:
            yield node
        else:
            for value in node.values():
                yield from panels_in(value)
    elif isinstance(node, list):
        for value in node:
            yield from panels_in(value)


def names_in(panel: dict[str, Any]) -> list[str]:
    """The metrics, figures or tables that a panel shows."""
    config = panel["config"]
    if panel["viewType"] == "Weave":
        return re.findall(r'"val": "(tables/[^"]*)"', json.dumps(config))
    return [*config.get("metrics", []), *config.get("mediaKeys", [])]


def filters_in(runs: dict[str, Any]) -> dict[str, str]:
    assert runs["filters"]["filterFormat"] == "filterV2"
    assert {f["op"] for f in runs["filters"]["filters"]} == {"="}
    assert all(f.get("connector", "AND") == "AND" for f in runs["filters"]["filters"])
    return {f"{f['key']['section']}.{f['key']['name']}": f["value"] for f in runs["filters"]["filters"]}


def test_every_panel_shows_what_the_runs_logged(experiment: Write, server: Server) -> None:
    root = experiment(sidecar=True)
    c = compare(root)
    (said,) = workspace.publish(c)
    here = ("wandb_view.json", "wandb_report.json", f"{root}/comparison", "not pushed")
    cure = ("wandb login", "WANDB_API_KEY", f"python -m orchestrator.compare {root} --workspace")
    assert names(said, *here, os.environ["WANDB_BASE_URL"], *cure)
    assert server.asked == []  # no request at all
    cell = c.experiment.cell("variable", 0)
    tracker = Tracker(cell.config)
    tracker.start(cell.path, metrics_log.read(cell.path / "metrics.jsonl"))
    for reading in cell.readings.values():
        tracker.forensics(reading)
    tracker.finish()
    logged: dict[str, set[str]] = {}
    for place in (cell.path, c.directory):
        (run,) = runs_of(place)
        items = [h["item"] for h in of_kind(inspect(run), "history")]
        media = {key.rpartition(".")[0] for item in items for key in item if key.endswith("._type")}
        plain = {key for item in items for key in item if "." not in key}
        logged[place.name] = media | plain | set(summary_of(run))
    every = logged["seed=0"] | logged["comparison"]
    assert set(charts.logged(c)) <= every

    view, report = files_of(root)
    shown = {name for spec in (view, report) for panel in panels_in(spec) for name in names_in(panel)}
    assert shown <= every
    assert {"heldout/code", "final/test_loss/mean", "forensics/roles/specialist", "forensics/cv/layer_03"} <= shown
    assert {"forensics/saturated_robust", "forensics/centre/saturated_robust", "sidecar/reward"} <= shown
    assert {"delta/variable/mean", "pair/test_loss/delta", "tables/layers", "figures/layers"} <= shown
    axes = {name: p["config"]["xAxis"] for p in panels_in(view) if "xAxis" in p["config"] for name in names_in(p)}
    for name, axis in axes.items():
        assert axis == ("forensics/step" if name.startswith("forensics/") else "step")
    runs = view["spec"]["section"]["runSets"][0]
    assert {column.partition(":")[2] for column in runs["runFeed"]["columnPinned"]} - {"displayName"} <= every
    assert [key["name"] for key in runs["grouping"]] == ["group", "arm.value"]
    assert (view["project"], filters_in(runs)) == ("layer-roles", {"run.group": "width_ablation"})
    kinds = {panel["viewType"] for panel in panels_in(report)}
    assert kinds == {"Run History Line Plot", "Bar Chart", "Media Browser", "Weave", "Run Comparer"}
    text = json.dumps(report)
    assert report["displayName"] == "Does width decide?"
    assert names(text, "variable against uniform", "inconclusive")
    assert "| domain | a | b |" in text


@pytest.mark.parametrize("name", HOSTILE)
def test_any_name_is_filtered_by_as_it_is(experiment: Write, name: str) -> None:
    c = compute(experiment(question="q" * 200))
    config = replace(c.experiment.cells[0].config, name=name)
    view = json.loads(workspace.view_of(c, config)._to_model().model_dump_json(by_alias=True))
    report = json.loads(report_of(c, config)._to_model().model_dump_json(by_alias=True))
    assert filters_in(view["spec"]["section"]["runSets"][0]) == {"run.group": name}
    grids = [block["metadata"] for block in report["spec"]["blocks"] if block["type"] == "panel-grid"]
    asked = [filters_in(runs) for grid in grids for runs in grid["runSets"]]
    assert {tuple(f.items()) for f in asked} == {
        (("run.group", name), ("run.jobType", "train")),
        (("run.group", name), ("run.jobType", "comparison")),
        (("run.jobType", "comparison"),),
    }
    assert len(report["displayName"]) == 128


def test_a_plain_name_is_filtered_by_as_wandb_itself_would(experiment: Write) -> None:
    c = compute(experiment())
    ours = workspace.view_of(c, c.experiment.cells[0].config)._to_model().spec.section.run_sets[0].filters
    runs = ws.RunsetSettings(filters=ws.And(ws.Metric("Group") == "width_ablation"))
    (theirs,) = ws.Workspace(entity="", project="p", runset_settings=runs)._to_model().spec.section.run_sets
    assert ours["filterFormat"] == theirs.filters["filterFormat"]
    assert ours["filters"] == [{k: v for k, v in f.items() if k != "disabled"} for f in theirs.filters["filters"]]


def test_markdown_keeps_names_in_their_cells() -> None:
    hostile = Section("t", ["a|b", "<b>"], [["`x` | y", Roles(["hub", "hub/damper"], words=False)]], ["n\nn <i>"])
    assert markdown(hostile) == (
        "| a&#124;b | &lt;b&gt; |\n| --- | --- |\n| &#96;x&#96; &#124; y | H · |\n\nn n &lt;i&gt;"
    )


def test_a_login_pushes_and_pushes_again_in_the_same_place(
    experiment: Write, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = experiment()
    workspace.publish(compare(root))
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    for _ in range(2):
        view, report = workspace.publish(compare(root))
        assert re.fullmatch(r"W&B view: http://127.0.0.1:\d+/me/layer-roles\?nw=\w+", view)
        assert re.fullmatch(r"W&B report: http://127.0.0.1:\d+/me/layer-roles/reports/.*--view\d", report)
    first, again = server.views[:2], server.views[2:]
    assert [bool(v.get("id")) for v in first] == [False, False]
    assert [v.get("id") for v in again] == ["view1", "view2"]
    assert [v["type"] for v in again] == ["project-view", "runs"]
    assert {(v["entityName"], v["projectName"]) for v in server.views} == {("me", "layer-roles")}
    on_disk = files_of(root)
    assert {on_disk[0]["id"], on_disk[1]["id"]} == {"view1", "view2"}
    pushed = json.loads(again[0]["spec"])
    assert [sorted(names_in(p)) for p in panels_in(pushed)] == [sorted(names_in(p)) for p in panels_in(on_disk[0])]
    monkeypatch.delenv("WANDB_API_KEY")
    workspace.publish(compare(root))  # logged out again: the ids are kept for the next push
    assert [spec["id"] for spec in files_of(root)] == [spec["id"] for spec in on_disk]


def test_no_server_is_one_sentence_and_the_files(experiment: Write, server: Server) -> None:
    root = experiment()
    env = os.environ | {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": KEY, "WANDB_HTTP_TIMEOUT": "1"}
    command = [sys.executable, "-m", "orchestrator.compare", str(root), "--workspace"]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 2
    (said,) = done.stderr.splitlines()
    assert names(said, "wandb_view.json", "wandb_report.json", root, "rejected")
    assert all(files_of(root))
    assert "Does width decide?" in done.stdout


@pytest.mark.parametrize("mode", ["offline", "disabled"])
def test_wandb_mode_is_heeded(experiment: Write, server: Server, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_MODE", mode)
    (said,) = workspace.publish(compare(experiment()))
    assert names(said, "not pushed", mode, "WANDB_MODE")
    assert server.asked == []


def test_a_tracker_that_is_off_sends_nothing(
    experiment: Write, server: Server, monkeypatch: pytest.MonkeyPatch, edit_config: Callable[[Path, str, Any], None]
) -> None:
    root = experiment()
    for cell in root.glob("*/seed=*"):
        edit_config(cell, "tracker.mode", "off")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    (said,) = workspace.publish(compare(root))
    assert names(said, "not pushed", "tracker=off")
    assert server.asked == []
    assert not (root / "comparison/wandb").exists()
    assert all(files_of(root))


def test_an_experiment_that_is_not_complete_has_a_view_too(experiment: Write, server: Server) -> None:
    root = experiment(arms=("uniform", "variable"), seeds=(0,))
    for name in ("metrics.jsonl", "config.yaml"):
        (root / "variable/seed=0" / name).unlink()
    workspace.publish(compare(root))
    view, report = files_of(root)
    assert "No pair" in json.dumps(report)
    assert "heldout/code" in {name for panel in panels_in(view) for name in names_in(panel)}
    for cell in root.glob("*/seed=*"):
        (cell / "config.yaml").unlink(missing_ok=True)
        (cell / "metrics.jsonl").unlink(missing_ok=True)
    with pytest.raises(UserError, match=naming(root, "launch")):
        workspace.publish(compare(root))
