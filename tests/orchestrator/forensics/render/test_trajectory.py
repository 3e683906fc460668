"""A run over its checkpoints: changes of role, growth towards a pathology, and the page."""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from orchestrator.common.errors import UserError
from orchestrator.forensics.analyzer import analyze
from orchestrator.forensics.reading import Reading
from orchestrator.forensics.render.trajectory import Change, changes, growths, report, rows, spaced, trajectory, worst
from orchestrator.forensics.roles.routing import ROLES
from tests.naming import names, naming
from tests.orchestrator.forensics.pages import entry, printed, with_roles

TIE = "damper/hub"


@pytest.fixture
def result(checkpoint: Callable[..., Any]) -> Reading:
    """A real one, of four layers."""
    return analyze(checkpoint(widths=(16,) * 4).write(), resamples=2)


def at(result: Reading, step: int, roles: list[str]) -> Reading:
    return replace(with_roles(result, roles), step=step)


@pytest.fixture
def growing(checkpoint: Callable[..., Any]) -> Callable[..., list[Reading]]:
    """Checkpoints in which one gate grows as exp(rate · step)."""

    def build(rate: float, *steps: int) -> list[Reading]:
        found = []
        for step in steps:
            ours = checkpoint(widths=(16,) * 4, path=f"step-{step}")
            ours.step = step
            ours.tensors[ours.name(2, "gate")] *= np.float32(math.exp(rate * step))
            found.append(analyze(ours.write(), resamples=2))
        return found

    return build


def ratio_of(ours: Any) -> float:
    """The spectral norm of layer 2's gate over its peers', by numpy."""
    norms = [np.linalg.norm(ours.folded(layer, "gate"), 2) for layer in range(4)]
    return float(norms[2] / np.median(np.delete(norms, 2)))


@pytest.mark.parametrize("rate", [0.002, 0.011])
def test_the_step_of_thirty_times_is_predicted_to_a_step(
    growing: Callable[..., list[Reading]], checkpoint: Callable[..., Any], rate: float
) -> None:
    start = ratio_of(checkpoint(widths=(16,) * 4))
    truth = math.log(30 / start) / rate
    results = growing(rate, *(round(share * truth) for share in (0.2, 0.5, 0.75)))
    (growth,) = growths(results)
    assert (growth.layer, growth.kind) == (2, "gate")
    assert growth.rate == pytest.approx(rate, rel=1e-3)
    assert abs(growth.critical - truth) <= 1
    lines = printed(report(trajectory("run", results), 1.0))
    assert names(entry(lines, "growth"), "30×", f"step {growth.critical:,}")


def test_what_shrinks_is_small_or_is_critical_already_is_not_predicted(growing: Callable[..., list[Reading]]) -> None:
    assert growths(growing(0.0, 0, 100)) == []
    assert growths(growing(0.001, 0, 100)) == [], "no more than 1.1 times its peers"
    assert growths(growing(-0.01, -200, -150)) == [], "on its way back"
    assert growths(growing(0.05, 50, 100)) == [], "beyond 30 already: a pathology, no prediction"
    assert growths(growing(0.02, 100)) == [], "one checkpoint has no rate"


def test_changes_between_checkpoints_count_all_ties_as_one(result: Reading) -> None:
    run = [
        at(result, 0, [TIE, "hub", "hub", TIE]),
        at(result, 10, ["hub/specialist", "hub", "damper", "specialist"]),
        at(result, 20, ["passthrough", "hub", TIE, "specialist"]),
    ]
    assert changes(run) == [
        Change(2, 10, "hub", "damper"),
        Change(3, 10, "", "specialist"),
        Change(0, 20, "", "passthrough"),
        Change(2, 20, "damper", ""),
    ]
    lines = printed(report(trajectory("run", run), 2.0))
    assert lines[1] == "llama_sandwich · 3 checkpoints · steps 0 to 20 · 4 layers · 2.0 s"
    assert names(lines[3], "3 of 4 layers", "L0, L2–3")
    assert [line.split() for line in lines[5:10]] == [
        ["step", "0", "10", "20"],
        ["0", "–", "H/S", "P"],
        ["1", "H", "H", "H"],
        ["2", "H", "D", "–"],
        ["3", "–", "S", "S"],
    ]
    assert "step 20 layer 2 damper → –" in entry(lines, "changes")
    still = printed(report(trajectory("run", [run[0], replace(run[0], step=1)]), 2.0))
    assert "No layer" in still[3]


def test_rows_have_the_step_first(result: Reading) -> None:
    run = trajectory("run", [at(result, step, [TIE] * 4) for step in (0, 10)])
    table = rows(run)
    assert [(row["step"], row["layer"]) for row in table] == [(s, i) for s in (0, 10) for i in range(4)]
    assert next(iter(table[0])) == "step"
    assert set(run.to_json()) == {"schema", "definitions", "source", "unit", "checkpoints"}


def test_epochs_are_not_called_steps(growing: Callable[..., list[Reading]]) -> None:
    healthy, ill = growing(0.01, 0, 250)
    run = trajectory("run", [replace(healthy, step=1), replace(ill, step=2), replace(healthy, step=3)], "epoch")
    assert next(iter(rows(run)[0])) == "epoch"
    lines = printed(report(run, 1.0))
    assert "3 checkpoints · epochs 1 to 3" in lines[1]
    assert names(entry(lines, "pathology"), "at epoch 2", "model.layers.2.mlp.gate_proj.weight")
    assert not [line for line in lines if "step" in line.replace("(step 0 of", "")]


def test_checkpoints_of_unlike_models_are_refused(checkpoint: Callable[..., Any], result: Reading) -> None:
    wider = analyze(checkpoint(widths=(16, 16, 16, 24), path="wider").write(), resamples=2)
    deeper = analyze(checkpoint(widths=(16,) * 5, path="deeper").write(), resamples=2)
    with pytest.raises(UserError, match=naming("llama_sandwich of 4 layers", "llama_sandwich of 5 layers")):
        trajectory("run", [result, deeper])
    with pytest.raises(UserError, match=naming("run", "one run")):
        trajectory("run", [result, wider])


def test_a_pathology_that_is_over_is_still_told(growing: Callable[..., list[Reading]]) -> None:
    healthy, ill = growing(0.05, 0, 100)
    lines = printed(report(trajectory("run", [healthy, ill, replace(healthy, step=200)]), 1.0))
    told = entry(lines, "pathology")
    assert told.startswith("none: ")
    assert names(told, "critical at step 100", "model.layers.2.mlp.gate_proj.weight")
    last = entry(printed(report(trajectory("run", [healthy, ill]), 1.0)), "pathology")
    assert last.startswith("critical: model.layers.2.mlp.gate_proj.weight ")
    assert "at step" not in last
    assert worst(ill) == pytest.approx(ill.pathology[0].ratio)


def test_a_long_run_is_thinned_out_evenly_with_both_ends() -> None:
    assert spaced(5, 9) == [0, 1, 2, 3, 4]
    for count in range(3, 200, 7):
        for room in range(2, count):
            chosen = spaced(count, room)
            gaps = np.diff(chosen)
            assert (chosen[0], chosen[-1], len(chosen)) == (0, count - 1, room)
            assert gaps.min() >= 1
            assert gaps.max() - gaps.min() <= 1


@pytest.mark.parametrize("width", [56, 80, 100])
def test_no_line_is_longer_than_the_terminal(result: Reading, width: int) -> None:
    rng = np.random.default_rng(0)
    roles = [*ROLES, TIE, "hub/specialist"]
    run = [at(result, 12_500 * i, list(rng.choice(roles, 4))) for i in range(30)]
    lines = printed(report(trajectory("/a/very/long/" * 12, run), 1.0), width)
    assert max(map(len, lines)) <= width
    assert any(names(line, "of 30 checkpoints") for line in lines)
    steps = next(line for line in lines if line.startswith("step ")).split()[1:]
    assert (steps[0], steps[-1]) == ("0", "362,500")
    assert "…" not in "".join(lines)


def test_a_long_list_of_changes_is_counted(result: Reading) -> None:
    run = [at(result, i, ["hub" if i % 2 else TIE] * 4) for i in range(8)]
    assert names(entry(printed(report(trajectory("run", run), 1.0)), "changes"), "8 more")
    assert len(changes(deepcopy(run))) == 28
