"""An arm's trajectory over its seeds: the tables, the figure, and what is too short for them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy

from orchestrator.analysis import compare
from orchestrator.analysis.cells import CellResult
from orchestrator.analysis.coincidence import ANY
from orchestrator.analysis.comparison import compute
from orchestrator.analysis.figures import draw
from orchestrator.analysis.report.chapters import chapters
from orchestrator.analysis.sections import trajectory as sections
from orchestrator.analysis.trajectory import trajectory
from orchestrator.forensics.trajectory.commitment import commitments, p_of
from tests.naming import names
from tests.orchestrator.forensics.trajectory.runs import run_of

Write = Callable[..., Path]
LONG = tuple(range(0, 50 * 12, 50))


def cell_of(strips: list[str], seed: int = 0, drops: dict[str, int] | None = None) -> CellResult:
    """A cell read at every ten steps; the loss of each domain in `drops` falls before that reading."""
    readings = {reading.step or 0: reading for reading in run_of(strips)}
    noise = np.random.default_rng(seed)
    metrics = [
        {
            "step": step,
            "heldout": {
                domain: 5 - step / 100 - (step > 10 * at - 5) + 1e-4 * noise.standard_normal()
                for domain, at in (drops or {"code": 99, "facts": 99}).items()
            },
        }
        for step in range(0, 10 * len(readings), 5)
    ]
    return CellResult("b", seed, Path(), metrics, readings, None)


def late(step: int, count: int = 20) -> str:
    """A passthrough that is a specialist from this reading on."""
    return "P" * step + "S" * (count - step)


def test_steps_are_means_over_seeds_with_their_t_interval() -> None:
    cells = [cell_of([late(at), late(at + 2), "-" * 20], seed) for seed, at in enumerate((2, 4, 9))]
    found = trajectory("b", cells, ["code", "facts"])
    assert found is not None
    roles, scores_free = found.commitments[0], found.commitments[1:]
    assert scores_free == []  # all scores are alike: nothing to be like
    assert (roles.kind, roles.scoring, roles.seeds, roles.layers, roles.depth) == ("roles", "paper", [0, 1, 2], 2.0, 3)
    steps = np.array([20, 40, 90])
    assert roles.half.mean == pytest.approx(steps.mean())
    assert (roles.half.low, roles.half.high) == pytest.approx(
        scipy.stats.t.interval(0.95, 2, steps.mean(), scipy.stats.sem(steps))
    )
    assert roles.most.mean == pytest.approx(steps.mean() + 20)
    assert roles.early.mean == pytest.approx(np.mean([1.0, 0.5, 0.0]))  # the last reading up to 30 % of 190 is of 50
    assert (roles.early.low, roles.early.high) == (0.0, 1.0)  # t reaches beyond what a share can be
    assert roles.half_by_chance > roles.half.mean
    runs = [run for cell in cells for run in commitments(list(cell.readings.values()), list(cell.readings))]
    assert roles.p == p_of(runs) < 0.01
    # the border is step 57: five intervals before it, 13 after it, and one change in the interval in which it lies
    assert roles.apart == 10
    assert roles.before == pytest.approx(np.mean([2, 1, 0]) / 3 / 5 * 100)
    assert roles.after == pytest.approx(np.mean([0, 0, 2]) / 3 / 13 * 100)
    assert json.loads(json.dumps(asdict(found), allow_nan=False))


def test_a_cell_in_which_no_layer_ends_with_a_role_does_not_count() -> None:
    found = trajectory("b", [cell_of([late(3)]), cell_of(["S" * 19 + "-"], 1)], [])
    assert found is not None
    assert [(one.kind, one.seeds) for one in found.commitments] == [("roles", [0])]
    assert found.seeds == [0, 1]
    assert found.commitments[0].after == pytest.approx(np.mean([0, 1]) / 13 * 100)  # but how fast it changes does
    assert found.coincidences == []  # no domain, no loss
    none = trajectory("b", [cell_of(["S" * 19 + "-"])], [])
    assert none is not None
    assert none.commitments == []


def test_too_few_readings_are_no_trajectory() -> None:
    assert trajectory("b", [cell_of([late(3, 7)])], []) is None
    assert trajectory("b", [], []) is None
    whole = cell_of([late(3)])
    assert trajectory("b", [replace(whole, missing="running at step 190")], []) is None  # its end is not yet known
    assert trajectory("b", [whole], []) is not None


def test_events_meet_the_drops_of_any_domain_and_of_each() -> None:
    strips = [late(9), late(14), "HHHDDDHHHHHHHHHHHHHH", "S" * 20]
    cells = [cell_of(strips, seed, {"code": 9, "facts": 14}) for seed in range(3)]
    found = trajectory("b", cells, ["code", "facts"])
    assert found is not None
    of = {(one.event, one.domain): one for one in found.coincidences}
    kind = "passthrough → specialist"
    assert [of[kind, domain].drops for domain in (ANY, "mean", "code", "facts")] == [6, 6, 3, 3]
    assert [of[kind, domain].together for domain in (ANY, "mean", "code", "facts")] == [6, 6, 3, 3]
    assert [of[event, ANY].events for event in (kind, "to specialist", "any change of role")] == [6, 6, 12]
    assert (of[kind, ANY].p or 1.0) < 0.01
    assert (of["any change of role", ANY].together, of["any change of role", "facts"].together) == (6, 3)
    deep = of["hub deepens a head pair", ANY]
    assert (deep.events, deep.p) == (0, None)
    assert names(deep.sentence, "such event")


def test_it_is_told_in_tables_figure_and_report(experiment: Write) -> None:
    root = experiment(steps=LONG)
    c = compare(root)
    tables = root / "comparison/tables"
    for name in ("trajectory", "loss_drops"):
        parquet, text = pd.read_parquet(tables / f"{name}.parquet"), pd.read_csv(tables / f"{name}.csv")
        assert len(parquet) == len(text) == len(c.tables[name]) > 0
    curves = c.tables["trajectory"].query("arm == 'uniform' and seed == 0 and kind == 'roles'")
    assert list(curves["step"]) == list(LONG)
    assert curves["held"].is_monotonic_increasing
    assert curves["held"].iloc[-1] == 1.0
    drawn = draw(c)
    assert "trajectory" in drawn
    (chapter,) = [one for one in chapters(c, drawn) if one.key == "trajectory"]
    assert chapter.figures == ["trajectory"]
    assert len(chapter.sections) == 3
    for section in sections.tables(c):
        assert {len(row) for row in section.rows} == {len(section.columns)}
        assert section.columns[0] == "arm"  # of two
    found = json.loads((root / "comparison/verdict.json").read_text())["trajectories"]
    assert list(found) == ["uniform", "variable"]


def test_a_short_run_has_no_chapter_of_it(experiment: Write) -> None:
    c = compute(experiment())
    assert c.trajectories == []
    assert len(c.tables["trajectory"]) == len(c.tables["loss_drops"]) == 0
    assert "trajectory" not in draw(c)
    assert "trajectory" not in [one.key for one in chapters(c, draw(c))]
