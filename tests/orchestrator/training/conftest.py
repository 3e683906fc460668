"""A cell that nothing interrupted."""

from __future__ import annotations

import pytest

from orchestrator.experiments.experiment import Cell
from tests.orchestrator.training.cells import complete, new_cell


@pytest.fixture(scope="module")
def whole(small_cell: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Cell:
    cell = new_cell(small_cell, tmp_path_factory.mktemp("whole"))
    assert complete(cell)
    return cell
