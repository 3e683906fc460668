"""The provenance of cells: keys, code and versions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.analysis.cells import read_experiment
from orchestrator.analysis.comparison import compute
from orchestrator.analysis.provenance import Difference, constant, differences
from orchestrator.common.errors import UserError
from orchestrator.storage import metrics_log
from orchestrator.storage.event_log import EventLog

Write = Callable[..., Path]
HERE = {
    "host": "n1", "device": "H100", "threads": 1, "commit": "abc", "changes": "clean", "versions": {"torch": "2.13.0"},
}  # fmt: skip


def run_on(root: Path, cell: str, attempt: int = 1, **where: Any) -> None:
    EventLog(root).append(cell, "running", attempt=attempt, environment=HERE | where)


def rows(root: Path) -> dict[tuple[str, str], dict[str, list[Any]]]:
    return {(row.kind, row.key): row.values for row in differences(read_experiment(root))}


def test_of_equal_machines_only_the_configuration_differs(experiment: Write) -> None:
    root = experiment(seeds=(0, 1))
    for cell in ("uniform/seed=0", "uniform/seed=1", "variable/seed=0", "variable/seed=1"):
        run_on(root, cell)
    read = read_experiment(root)
    assert differences(read) == [Difference("config", "width.start", {"uniform": [1.0], "variable": [0.9]})]
    versions = {"versions.torch": "2.13.0"}
    assert constant(read) == {key: value for key, value in HERE.items() if key != "versions"} | versions


def test_differences_between_and_within_arms_and_over_attempts(experiment: Write) -> None:
    root = experiment(seeds=(0, 1))
    run_on(root, "uniform/seed=0")
    run_on(root, "uniform/seed=1", device="A100", host="n2")
    run_on(root, "variable/seed=0", changes="0a1b")
    EventLog(root).append("variable/seed=0", "preempted", attempt=1)
    run_on(root, "variable/seed=0", attempt=2, commit="def", versions={"torch": "2.12.0", "numpy": "2"})
    run_on(root, "variable/seed=1")
    found = rows(root)
    assert list(found) == [
        ("config", "width.start"), ("code", "commit"), ("code", "changes"), ("environment", "host"),
        ("environment", "device"), ("environment", "versions.torch"),
    ]  # fmt: skip
    assert found["code", "commit"] == {"uniform": ["abc"], "variable": ["abc", "def"]}
    assert found["code", "changes"] == {"uniform": ["clean"], "variable": ["0a1b", "clean"]}
    assert found["environment", "device"] == {"uniform": ["H100", "A100"], "variable": ["H100"]}
    assert found["environment", "versions.torch"]["variable"] == ["2.13.0", "2.12.0"]
    same = constant(read_experiment(root))
    assert same == {"threads": 1}  # numpy's version is known of one attempt alone
    cell = read_experiment(root).cell("variable", 0)
    assert [(e["attempt"], e["commit"]) for e in cell.environments] == [(1, "abc"), (2, "def")]


def test_a_difference_between_seeds_of_one_arm_is_a_difference(
    experiment: Write, edit_config: Callable[[Path, str, Any], None]
) -> None:
    root = experiment(seeds=(0, 1))
    edit_config(root / "variable/seed=1", "optim.lr", 0.5)
    assert rows(root)["config", "optim.lr"] == {"uniform": [0.002], "variable": [0.002, 0.5]}


def test_an_old_run_tells_what_experiment_yaml_does(experiment: Write) -> None:
    root = experiment()
    EventLog(root).append("uniform/seed=0", "running", attempt=1)
    read = read_experiment(root)
    assert [cell.environments for cell in read.cells] == [[]] * 4
    assert constant(read) == {}
    path = root / "experiment.yaml"
    spec = yaml.safe_load(path.read_text())
    before = {"since": "2026-01-01", "commit": "abc", "diff": "", "versions": {"torch": "2.13.0"}}
    spec |= {"machine": {"python": "3.12.3", "cores": 2}, "code": [before, before | {"diff": "+x"}]}
    path.write_text(yaml.safe_dump(spec, sort_keys=False))
    same = constant(read_experiment(root))
    assert same == {"python": "3.12.3", "cores": 2, "commit": "abc", "versions.torch": "2.13.0"}
    assert rows(root)["code", "changes"]["uniform"][0] == "clean"
    assert len(rows(root)["code", "changes"]["variable"]) == 2


def test_a_cell_without_a_record_may_have_seen_any_launch(experiment: Write) -> None:
    root = experiment(seeds=(0, 1))
    path = root / "experiment.yaml"
    code = [{"since": "2026-01-01", "commit": commit, "diff": ""} for commit in ("old", "new")]
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"code": code}, sort_keys=False))
    for seed in (0, 1):
        run_on(root, f"variable/seed={seed}", commit="new")
    assert rows(root)["code", "commit"] == {"uniform": ["old", "new"], "variable": ["new"]}
    assert constant(read_experiment(root)) == {"changes": "clean"}  # host, device … of the baseline are unknown


def test_what_is_unknown_of_a_cell_is_not_the_same_everywhere(experiment: Write) -> None:
    root = experiment(seeds=(0, 1))
    run_on(root, "variable/seed=0")
    assert constant(read_experiment(root)) == {}
    for cell in ("uniform/seed=0", "uniform/seed=1", "variable/seed=1"):
        (root / cell / "metrics.jsonl").unlink()  # none of these ever began
    assert constant(read_experiment(root))["commit"] == "abc"


def test_cells_that_never_started_differ_in_nothing(experiment: Write) -> None:
    root = experiment()
    (root / "variable/seed=1/config.yaml").unlink()
    (root / "variable/seed=1/metrics.jsonl").unlink()
    run_on(root, "uniform/seed=0", device=None)
    run_on(root, "uniform/seed=1")
    assert rows(root)["environment", "device"] == {"uniform": [None, "H100"], "variable": []}
    assert rows(root)["config", "width.start"] == {"uniform": [1.0], "variable": [0.9]}


@pytest.mark.parametrize(("key", "value"), [("code", "abc"), ("code", ["abc"]), ("machine", [1])])
def test_a_broken_record_is_a_sentence(experiment: Write, key: str, value: Any) -> None:
    path = experiment() / "experiment.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {key: value}))
    with pytest.raises(UserError, match=rf"experiment.yaml: .*{key}") as caught:
        read_experiment(path.parent)
    assert "\n" not in str(caught.value)


def test_an_environment_that_is_none_is_no_environment(experiment: Write) -> None:
    root = experiment()
    record = {"time": "", "cell": "uniform/seed=0", "state": "running", "attempt": 1, "job": "", "reason": ""}
    metrics_log.append(root / "events.jsonl", record | {"environment": "n1"})
    assert read_experiment(root).cell("uniform", 0).environments == []
    assert compute(root).pairs


def test_a_real_cell_records_where_it_ran(
    orchestrate: Callable[..., int], small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "a-secret")
    arms = ("++arms={a: [], b: ['width=ramp']}", "declared=[width]", "seeds=[0]", "name=x")
    assert orchestrate(*small, *arms, "launcher=debug", "train.steps=4") == 0
    root = tmp_path / "outputs/x"
    read = read_experiment(root)
    (environment,) = read.cell("b", 0).environments
    recorded = read.code[0]
    assert environment["versions"] == recorded["versions"]
    assert environment["commit"] == recorded.get("commit")
    assert environment["threads"] == 1
    assert environment["device"]
    assert environment["attempt"] == 1
    assert {row.kind for row in differences(read)} == {"config"}
    assert constant(read)["host"] == environment["host"]
    assert "a-secret" not in (root / "events.jsonl").read_text()
    json.dumps(constant(read), allow_nan=False)
