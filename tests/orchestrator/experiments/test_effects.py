"""The effects of a search's keys, on disk."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest

from orchestrator.common.errors import UserError
from orchestrator.experiments import effects
from orchestrator.experiments.effects import Effect
from tests.naming import naming


def test_effects_come_back_as_they_were_written_with_t_beside_them(tmp_path: Path) -> None:
    every = [Effect("a.b", -0.5, 0.5, 0.02, 0.01), Effect("c", 0.0, 1.0, -0.3, 0.0), Effect("d", 0.0, 1.0, 0.0, 0.0)]
    assert effects.read(tmp_path) == []
    effects.write(tmp_path, every)
    assert effects.read(tmp_path) == every
    with (tmp_path / "search/effects.csv").open(encoding="utf-8") as file:
        assert [float(row["t"]) for row in csv.DictReader(file)] == [2.0, -math.inf, 0.0]
    assert [one.key for one in effects.ranked(every)] == ["c", "a.b", "d"]


@pytest.mark.parametrize("content", ["key,low\na,1\n", "key,low,high,effect,error,t\na,1,2,much,0,0\n", "\x00"])
def test_a_file_that_holds_something_else_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "search/effects.csv"
    path.parent.mkdir()
    path.write_text(content)
    with pytest.raises(UserError, match=naming("effects.csv")):
        effects.read(tmp_path)
