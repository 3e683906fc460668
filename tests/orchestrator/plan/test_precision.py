"""The smallest difference that the seeds find, by pairs that lie on disk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from orchestrator.analysis import compare
from orchestrator.config import load
from orchestrator.experiments.experiment import Cell, Experiment
from orchestrator.plan.precision import pilot_of
from orchestrator.plan.view import _finds
from tests.naming import names
from tests.orchestrator.analysis.conftest import experiment

__all__ = ["experiment"]

Write = Callable[..., Path]
SHIFTS = (-0.10, -0.12, -0.07, -0.11)


def loss(arm: str, seed: int, *_: object) -> float:
    return 3.0 + 0.01 * seed + (SHIFTS[seed] if arm == "variable" else 0.0)


def planned(root: Path, seeds: int, *, layers: int | None = None) -> Experiment:
    """An experiment beside `root` of the model that its baseline trains, with two arms."""
    config = load.from_file(next(root.glob("uniform/seed=*/config.yaml")))
    if layers is not None:
        config = replace(config, model=replace(config.model, layers=layers))
    own = [replace(config, arm=arm, seeds=list(range(seeds))) for arm in ("a", "b")]
    directory = root.parent / "planned"
    cells = tuple(Cell(one, directory / one.arm / "seed=0") for one in own)
    return Experiment("planned", replace(config, seeds=list(range(seeds))), directory, cells)


@pytest.fixture
def pilot(experiment: Write) -> Path:
    root = experiment(seeds=range(4), loss=loss)
    compare(root)
    return root


def test_the_spread_is_that_of_the_pairs_beside_it(pilot: Path) -> None:
    found = pilot_of(planned(pilot, 6))
    assert found is not None
    assert (found.directory, found.pairs) == (pilot, 4)
    assert found.std == pytest.approx(np.std(SHIFTS, ddof=1))
    total, said = _finds(planned(pilot, 6))
    assert total.endswith("%")
    assert names(said, "6 pairs", "80%", "4 pairs")


def test_another_model_is_no_pilot(pilot: Path) -> None:
    assert pilot_of(planned(pilot, 6, layers=7)) is None
    assert _finds(planned(pilot, 6, layers=7))[0] == "unknown"


def test_too_few_seeds_find_nothing(pilot: Path) -> None:
    total, said = _finds(planned(pilot, 5))
    assert total == "nothing"
    assert names(said, "5 pairs", "6 can")


def test_a_broken_configuration_beside_it_is_passed_over(pilot: Path) -> None:
    path = next(pilot.glob("uniform/seed=*/config.yaml"))
    fine = planned(pilot, 6)
    for broken in pilot.glob("*/seed=*/config.yaml"):
        broken.write_text(yaml.safe_dump({"model": "nothing"}))
    assert path.exists()
    assert pilot_of(fine) is None
