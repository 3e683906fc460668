"""Comparisons at equal FLOPs count what the sidecar spent."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.analysis.cells import read_experiment
from orchestrator.analysis.comparison import compute
from orchestrator.analysis.flops import at_equal_flops, spent
from orchestrator.analysis.pairs import EQUAL_FLOPS
from orchestrator.analysis.sections import sections
from orchestrator.experiments.experiment import decoder_spec, training_flops

Write = Callable[..., Path]
Set = Callable[[Path, str, object], None]


def test_a_held_out_forward_costs_a_third_of_a_training_batch_and_a_backward_two(experiment: Write) -> None:
    cell = read_experiment(experiment(sidecar=True)).cell("variable", 0)
    config = cell.config
    one_step = training_flops(config, decoder_spec(config)) / config.train.steps
    flops = spent(cell)
    assert flops[0] == pytest.approx(one_step * (2 + 2) / 3)  # two forward passes and a backward, on a batch of rows
    assert flops[100] == pytest.approx(one_step * (100 + 3 * (2 + 2) / 3))
    plain = read_experiment(cell.path.parents[1]).cell("uniform", 0)
    assert spent(plain)[100] == pytest.approx(100 * one_step)


def test_the_dearer_run_is_read_where_the_cheaper_one_ends() -> None:
    curve = [(0, 4.0), (50, 3.0), (100, 2.0)]
    cheap, dear = {0: 0.0, 50: 50.0, 100: 100.0}, {0: 0.0, 50: 100.0, 100: 200.0}
    assert at_equal_flops((cheap, curve), (dear, curve)) == (2.0, 3.0)
    assert at_equal_flops((dear, curve), (cheap, curve)) == (3.0, 2.0)
    assert at_equal_flops((dear, curve), (cheap, curve), (dear, [(0, 4.0), (50, 1.0), (100, 0.0)])) == (3.0, 2.0, 1.0)
    assert at_equal_flops((cheap, curve), ({k: v * 1.004 for k, v in cheap.items()}, curve)) is None


def test_a_comparison_has_it_only_where_runs_cost_unequally(experiment: Write, edit_config: Set) -> None:
    root = experiment(sidecar=True)
    found = compute(root)
    (row,) = (r for r in found.statistics if r.metric == EQUAL_FLOPS and r.domain == "mean")
    (at_end,) = (r for r in found.statistics if r.metric == "validation_loss" and r.domain == "mean")
    assert row.a == at_end.a
    assert row.b > at_end.b  # its curve falls, and it is read 4 batches early
    assert row.b - at_end.b == pytest.approx(
        0.021 * 4 * 50 / (50 + 4 / 3)
    )  # along the last 50 steps and their evaluation
    (section,) = (s for s in sections(found) if s.title.startswith("Validation loss at equal cost"))
    assert [line[0] for line in section.rows] == ["steps", "FLOPs"]
    assert not [r for r in compute(experiment(name="plain")).statistics if r.metric == EQUAL_FLOPS]
