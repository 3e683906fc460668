"""The cost of an experiment, from its event log, against hours counted by hand."""

from __future__ import annotations

import json
import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from orchestrator.config import load
from orchestrator.config.schema import BudgetConfig, Config, DataConfig, DomainConfig, TrainConfig
from orchestrator.experiments import budget, costs
from orchestrator.experiments.costs import Cost
from orchestrator.storage.event_log import EventLog

START = datetime(2026, 1, 1, tzinfo=UTC).timestamp()


def log(directory: Path, *events: tuple[float, str, str, int] | tuple[float, str, str, int, dict[str, Any]]) -> Path:
    """Write an event log of (hours since the start, cell, state, attempt[, environment])."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "events.jsonl").open("a", encoding="utf-8") as file:
        for hours, cell, state, attempt, *where in events:
            when = datetime.fromtimestamp(START + 3600 * hours, UTC).isoformat(timespec="milliseconds")
            record = {"time": when, "cell": cell, "state": state, "attempt": attempt, "job": "1", "reason": ""}
            more = {"environment": where[0]} if where else {}
            file.write(json.dumps(record | more) + "\n")
    return directory


def beat(directory: Path, cell: str, attempt: int, hours: float) -> None:
    """Have the attempt's last heartbeat be `hours` after the start."""
    path = directory / cell / f"attempts/{attempt:04d}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{}")
    os.utime(path, (START + 3600 * hours, START + 3600 * hours))


def test_an_attempt_shorter_than_a_second_has_a_cost(tmp_path: Path) -> None:
    events = EventLog(tmp_path)
    events.append("a/seed=0", "running", attempt=1)
    time.sleep(0.05)
    events.append("a/seed=0", "done", attempt=1)
    assert 0.04 / 3600 <= costs.of_cells(tmp_path)["a/seed=0"].core_hours < 0.9 / 3600


def test_every_attempt_counts_and_waiting_does_not(tmp_path: Path) -> None:
    two, gpus = {"threads": 2, "ranks": 1, "cuda": None}, {"threads": 4, "ranks": 3, "cuda": "12.8"}
    log(
        tmp_path,
        (0.0, "a/seed=0", "submitted", 1),
        (1.0, "a/seed=0", "running", 1, two),
        (1.5, "a/seed=0", "stopped", 1),
        (9.0, "a/seed=0", "submitted", 2),
        (10.0, "a/seed=0", "running", 2, two),
        (12.0, "a/seed=0", "done", 2),
        (0.0, "b/seed=0", "submitted", 1),
        (1.0, "b/seed=0", "running", 1, gpus),
        (3.0, "b/seed=0", "preempted", 1),
        (5.0, "b/seed=0", "running", 2, gpus),
        (6.0, "b/seed=0", "done", 2),
        (6.0, "comparison", "running", 1),
        (8.0, "comparison", "done", 1),
    )
    assert costs.of_cells(tmp_path) == {
        "a/seed=0": Cost(core_hours=pytest.approx(2 * 2.5)),
        "b/seed=0": Cost(gpu_hours=pytest.approx(3 * 3.0)),
    }
    assert costs.of_experiment(tmp_path) == Cost(pytest.approx(5.0), pytest.approx(9.0))


def test_an_attempt_that_died_counts_until_its_last_heartbeat(tmp_path: Path) -> None:
    log(
        tmp_path,
        (0.0, "a/seed=0", "submitted", 1),
        (0.0, "a/seed=0", "running", 1, {"threads": 1, "ranks": 1}),
        (48.0, "a/seed=0", "crashed", 1),  # found two days later
        (48.0, "a/seed=0", "submitted", 2),
        (48.0, "a/seed=0", "running", 2, {"threads": 1, "ranks": 1}),
    )
    beat(tmp_path, "a/seed=0", 1, 2.0)
    beat(tmp_path, "a/seed=0", 2, 49.0)  # it runs
    assert costs.of_cells(tmp_path) == {"a/seed=0": Cost(core_hours=pytest.approx(3.0))}


def test_the_search_belongs_to_the_experiment(tmp_path: Path) -> None:
    one = {"threads": 1, "ranks": 1}
    for directory, hours in ((tmp_path, 1.0), (tmp_path / "search/3_steps", 2.0), (tmp_path / "search/6_steps", 3.0)):
        log(directory, (0.0, "a/seed=0", "running", 1, one), (hours, "a/seed=0", "done", 1))
    assert costs.of_search(tmp_path) == Cost(pytest.approx(5.0))
    assert costs.of_experiment(tmp_path) == Cost(pytest.approx(6.0))
    for directory in (tmp_path, tmp_path / "search/3_steps", tmp_path / "search/6_steps"):
        done(directory, "a/seed=0", 10)
    cap = BudgetConfig(core_hours=6.5)
    (tmp_path / "search/study.log").touch()
    assert budget.refusal(tmp_path / "search/6_steps", cap, ["b/seed=0"])  # 6 and about 3
    assert budget.refusal(tmp_path, cap, ["b/seed=0"])  # 6 and about 1
    assert not budget.refusal(tmp_path, BudgetConfig(core_hours=7.5), ["b/seed=0"])


def test_money_is_the_price_of_gpus_and_of_the_cores_of_other_cells() -> None:
    assert Cost(10.0, 2.0).money(3.0) == 36.0, "what was spent never falls"
    assert Cost(10.0).money(0.5) == 5.0
    assert Cost(0.0, 2.0).money(3.0) == 6.0


@pytest.mark.parametrize(
    ("cap", "starts"),
    [
        ({}, True),
        ({"core_hours": 6.1}, True),  # 3 spent, 1 more of a cell that runs, 2 of the next
        ({"core_hours": 5.9}, False),
        ({"core_hours": 2.5}, False),  # spent already
        ({"gpu_hours": 0.5}, True),
        ({"money": 5.9, "price": 1.0}, False),
        ({"money": 6.1, "price": 1.0}, True),
        ({"core_hours": 6.1, "money": 5.9, "price": 1.0}, False),
    ],
)
def test_a_cell_starts_where_it_fits_beside_what_runs(tmp_path: Path, cap: dict[str, float], starts: bool) -> None:
    one = {"threads": 1, "ranks": 1}
    log(
        tmp_path,
        (0.0, "a/seed=0", "running", 1, one),
        (2.0, "a/seed=0", "done", 1),
        (2.0, "b/seed=0", "running", 1, one),
    )
    beat(tmp_path, "b/seed=0", 1, 3.0)
    done(tmp_path, "a/seed=0", 10)
    refused = budget.refusal(tmp_path, BudgetConfig(**cap), ["a/seed=1"])
    assert (refused is None) == starts
    if refused:
        assert any(f"budget.{key}={value:g}" in refused for key, value in cap.items())


def done(directory: Path, cell: str, steps: int) -> None:
    """Have the metrics log of the cell end with a test loss."""
    path = directory / cell / "metrics.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"step": steps, "test": {"code": 1.0}}) + "\n")


def test_the_first_cell_starts_alone_whatever_it_will_take(tmp_path: Path) -> None:
    cap = BudgetConfig(core_hours=0.01)
    assert budget.refusal(log(tmp_path), cap, ["a/seed=0"]) is None
    assert budget.refusal(tmp_path, cap, ["b/seed=0"], beside=["a/seed=0"])


def test_what_was_submitted_beside_counts_before_it_runs(tmp_path: Path) -> None:
    one = {"threads": 1, "ranks": 1}
    log(tmp_path, (0.0, "a/seed=0", "running", 1, one), (1.0, "a/seed=0", "done", 1), (1.0, "b/seed=0", "submitted", 1))
    done(tmp_path, "a/seed=0", 10)
    assert budget.refusal(tmp_path, BudgetConfig(core_hours=2.5), ["a/seed=1"], beside=["b/seed=0"])
    assert not budget.refusal(tmp_path, BudgetConfig(core_hours=3.5), ["a/seed=1"], beside=["b/seed=0"])


def test_a_longer_cell_is_expected_to_take_longer_and_the_search_tells_what_a_first_one_takes(tmp_path: Path) -> None:
    one, explored = {"threads": 1, "ranks": 1}, tmp_path / "search/10_steps"
    log(explored, (0.0, "trial_0/seed=7", "running", 1, one), (1.0, "trial_0/seed=7", "done", 1))
    done(explored, "trial_0/seed=7", 10)
    (tmp_path / "search/study.log").touch()
    log(tmp_path)
    config = Config(train=TrainConfig(steps=40), data=DataConfig(domains={"code": DomainConfig()}, cache_dir="x"))
    (tmp_path / "a/seed=0").mkdir(parents=True)
    (tmp_path / "a/seed=0/config.yaml").write_text(load.to_yaml(config))
    assert budget.refusal(tmp_path, BudgetConfig(core_hours=4.9), ["a/seed=0"])  # 1 and 4 times 1
    assert not budget.refusal(tmp_path, BudgetConfig(core_hours=5.1), ["a/seed=0"])


def test_a_record_of_another_program_costs_nothing_and_ends_nothing(tmp_path: Path) -> None:
    log(tmp_path, (0.0, "a/seed=0", "running", 1, {"threads": "two", "ranks": None}), (1.0, "a/seed=0", "done", 1))
    assert costs.of_cells(tmp_path) == {"a/seed=0": Cost(core_hours=pytest.approx(1.0))}
    text = (tmp_path / "events.jsonl").read_text()
    (tmp_path / "events.jsonl").write_text(text.replace("2026-01-01T00:00:00.000+00:00", "yesterday"))
    assert costs.of_cells(tmp_path) == {"a/seed=0": Cost()}
