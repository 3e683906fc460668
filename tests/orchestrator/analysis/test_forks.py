"""The report on a short look ahead, against counts by hand from the decisions of the metrics logs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from orchestrator.analysis.cells import read_experiment
from orchestrator.analysis.comparison import compute
from orchestrator.analysis.flops import spent
from orchestrator.analysis.sections import sections
from orchestrator.experiments.experiment import decoder_spec, training_flops

Write = Callable[..., Path]
DIFFERENCES = {0: [[1.0, -2.0], [0.5, 1.0]], 50: [[-1.0, -1.5], [2.0, 2.0]], 100: [[None, 1.0], [0.1, None]]}


@pytest.fixture
def forked(experiment: Write) -> Path:
    root = experiment(sidecar=True)
    for log in root.glob("variable/*/metrics.jsonl"):
        records = [json.loads(line) for line in log.read_text().splitlines()]
        for record in records:
            record["sidecar"] |= {"fork_steps": 4 * record["step"], "differences": DIFFERENCES[record["step"]]}
        log.write_text("".join(json.dumps(record) + "\n" for record in records))
    return root


def test_the_report_has_the_share_that_disagrees_and_r(forked: Path) -> None:
    (section,) = (s for s in sections(compute(forked)) if "horizon" in s.title)
    pairs = [pair for at in (0, 50) for pair in DIFFERENCES[at]]
    r = np.corrcoef(np.array(pairs).T)[0, 1]
    assert section.rows == [[seed, "4", "25\u00a0%", f"{r:.2f}"] for seed in "01"]
    (note,) = section.notes
    assert "25\u00a0% of 8 pairs" in note
    assert f"r = {r:.2f}" in note


def test_a_run_without_forks_has_no_such_table(experiment: Write) -> None:
    assert not [s for s in sections(compute(experiment(sidecar=True))) if "horizon" in s.title]


def test_steps_of_forks_count_like_steps_of_the_run(forked: Path, experiment: Write) -> None:
    cell = read_experiment(forked).cell("variable", 0)
    plain = read_experiment(experiment(sidecar=True, name="plain")).cell("variable", 0)
    one_step = training_flops(cell.config, decoder_spec(cell.config)) / cell.config.train.steps
    assert spent(cell)[100] - spent(plain)[100] == pytest.approx(400 * one_step)
