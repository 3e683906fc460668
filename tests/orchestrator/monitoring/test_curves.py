"""The live page's curves of the losses, read from metrics logs as these grow."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from orchestrator.monitoring.live import curves
from orchestrator.monitoring.live.curves import Curve


def written(path: Path, steps: Sequence[int], loss: float = 0.0) -> None:
    lines = [json.dumps({"step": s, "loss": loss + s, "heldout": {"a": loss, "b": s}}) for s in steps]
    path.write_text("".join(f"{line}\n" for line in lines))


def test_a_curve_is_the_mean_of_each_hundredth(tmp_path: Path) -> None:
    curve, path = Curve(tmp_path / "log"), tmp_path / "log"
    curve.read_on(1000)
    assert curve.lines() == ([], [])
    written(path, range(0, 1001, 5))
    curve.read_on(1000)
    train, heldout = curve.lines()
    assert train == [*((10 * place + 5, 10 * place + 2.5) for place in range(100)), (1000, 1000.0)]
    assert heldout == [*((10 * place + 5, 5 * place + 2.5) for place in range(100)), (1000, 500.0)]


def test_a_curve_reads_on_and_starts_anew_where_the_log_was_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    curve, path = Curve(tmp_path / "log"), tmp_path / "log"
    written(path, range(0, 60, 10))
    monkeypatch.setattr(curves, "BYTES", 150)  # a part at a time
    for _ in range(9):
        curve.read_on(100)
    assert [step for step, _ in curve.lines()[0]] == [*range(0, 60, 10)]
    with path.open("a") as log:
        log.write('{"step": 60, "loss": NaN}\n{"step": 70, "loss": null}\n{"step": 80, "loss": 8.0}\n{"step": 90, "lo')
    for _ in range(3):
        curve.read_on(100)
    assert curve.lines()[0][-1] == (80, 8.0)
    written(path, range(0, 100, 10), loss=1.0)  # another, that is longer than what was read
    for _ in range(9):
        curve.read_on(100)
    assert curve.lines()[0] == [(step, step + 1.0) for step in range(0, 100, 10)]


def test_steps_that_are_trained_again_replace_the_first(tmp_path: Path) -> None:
    curve, path = Curve(tmp_path / "log"), tmp_path / "log"
    written(path, [0, 10, 20, 30])
    with path.open("a") as log:
        log.write('{"step": 20, "loss": 7.0}\n')
    curve.read_on(100)
    assert curve.lines() == ([(0, 0.0), (10, 10.0), (20, 7.0)], [(0, 0.0), (10, 5.0)])


def test_the_mean_is_over_steps_that_all_have() -> None:
    assert curves.mean([[(0, 1.0), (10, 2.0), (20, 9.0)], [(0, 3.0), (10, 4.0)]]) == [(0, 2.0), (10, 3.0)]
    assert curves.mean([]) == []
