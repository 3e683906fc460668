"""Two models side by side: the comparison's numbers, its table and its page."""

from __future__ import annotations

import re
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from orchestrator.forensics.analyzer import analyze
from orchestrator.forensics.reading import Reading
from orchestrator.forensics.render.side_by_side import SideBySide, report, rows
from tests.naming import names
from tests.orchestrator.forensics.pages import entry, printed, with_roles

TIE = "damper/hub"
FLATTENING = {  # DESIGN's table, but for the seed and the step, which two checkpoints need not share
    "layer", "cv_a", "cv_b", "flattening", "saturated_a", "saturated_b", "max_abs_a", "max_abs_b",
    "effective_rank_o_a", "effective_rank_o_b", "attention_share_a", "attention_share_b",
}  # fmt: skip


@pytest.fixture
def build(checkpoint: Callable[..., Any]) -> Callable[..., Any]:
    return lambda name, **options: checkpoint(path=name, **options)


@pytest.fixture
def two(build: Callable[..., Any]) -> tuple[Any, Any]:
    """Checkpoints of equal shape and unequal weights."""
    return tuple(build(name, widths=(16,) * 4, seed=seed) for seed, name in enumerate("ab"))


def results(two: tuple[Any, Any]) -> tuple[Reading, Reading]:
    """Under short names, so that each stands on one line."""
    a, b = (replace(analyze(ours.write(), resamples=2), source=ours.path.name) for ours in two)
    return a, b


def spread(ours: Any, layer: int) -> float:
    c = np.linalg.norm(ours.folded(layer, "gate"), axis=1) * np.linalg.norm(ours.folded(layer, "up"), axis=1)
    return float(c.std() / c.mean())


def rank(w: np.ndarray) -> float:
    p = np.linalg.svd(w, compute_uv=False)
    p /= p.sum()
    return float(np.exp(-(p * np.log(p)).sum()))


def test_the_comparison_against_the_weights(two: tuple[Any, Any]) -> None:
    document = SideBySide(*results(two)).to_json()
    assert document["schema"] == 1
    a, b = two
    for row in document["layers"]:
        layer = row["layer"]
        assert set(row) >= FLATTENING
        assert row["flattening"] == pytest.approx(spread(a, layer) / spread(b, layer), rel=1e-5)
        difference = rank(b.weight(layer, "o")) - rank(a.weight(layer, "o"))
        assert row["effective_rank_o_delta"] == pytest.approx(difference, abs=1e-4)
        assert row["role_a"] == document["a"]["layers"][layer]["role"]


def test_a_model_against_itself_differs_nowhere(two: tuple[Any, Any]) -> None:
    a, _ = results(two)
    both = SideBySide(a, deepcopy(a))
    assert [row["flattening"] for row in rows(both)] == [1.0] * 4
    lines = printed(report(both, 1.0))
    assert names(lines[3], "0 of 4 layers", "B")
    assert not any(line.startswith("B ") for line in map(str.strip, lines[5:])), "what both have is said once"
    assert names(entry(lines, "pathology"), "A, B none")
    assert all(
        " 0.0" in line and not re.search("[-−]0\\.0", line) for line in lines if line[:1].isdigit() and "→" in line
    )


def test_changed_roles_are_listed_and_all_ties_are_one(two: tuple[Any, Any]) -> None:
    a, b = results(two)
    a = with_roles(a, ["hub", TIE, "damper", "specialist"])
    b = with_roles(b, ["hub", "hub/specialist", TIE, "passthrough"])
    lines = printed(report(SideBySide(a, b), 1.0))
    assert names(lines[3], "2 of 4 layers", "B", "L2–3")
    assert entry(lines, "roles") == "A hub 1 · damper 1 · specialist 1 · none 1 B hub 1 · passthrough 1 · none 2"


def test_unequal_depths_compare_the_common_layers(build: Callable[..., Any]) -> None:
    a, b = results((build("a", widths=(16,) * 3), build("b", widths=(16,) * 5)))
    both = SideBySide(a, b)
    assert [row["layer"] for row in both.to_json()["layers"]] == [0, 1, 2]
    assert len(rows(both)) == 3
    assert names("\n".join(printed(report(both, 1))), "3 and 5 layers", "first 3")


def test_two_families_are_told(two: tuple[Any, Any]) -> None:
    a, b = results(two)
    other = replace(b, family="gpt2")
    assert names("\n".join(printed(report(SideBySide(a, other), 1.0))), a.family, "gpt2", "two families")
    assert "families" not in "\n".join(printed(report(SideBySide(a, b), 1.0)))


def test_rows_hold_both_models(two: tuple[Any, Any]) -> None:
    a, b = results(two)
    table = rows(SideBySide(a, b))
    for row, x, y in zip(table, a.layers, b.layers, strict=True):
        assert {key.replace(".", "_") for key in row} >= FLATTENING
        assert (row["role_a"], row["role_b"]) == (x.role, y.role)
        assert all(row[f"{key}_a"] == value for key, value in x.measures.items())
        assert all(row[f"{key}_b"] == value for key, value in y.measures.items())
    assert len({tuple(row) for row in table}) == 1


def test_undefined_ratios_are_absent(two: tuple[Any, Any]) -> None:
    for kind in ("gate", "o"):
        two[1].tensors[two[1].name(1, kind)][:] = 0
    both = SideBySide(*results(two))
    compared = both.to_json()["layers"][1]
    assert compared["flattening"] is None
    assert compared["effective_rank_o_delta"] is None
    row = next(line for line in printed(report(both, 1.0))[5:] if line.startswith("1 "))
    assert row.count("–") >= 2


@pytest.mark.parametrize("width", [60, 80, 100])
@pytest.mark.parametrize("depth", [1, 40])
def test_no_line_is_longer_than_the_terminal(build: Callable[..., Any], width: int, depth: int) -> None:
    small = {"widths": (8,) * depth, "heads": 2, "kv_heads": 2, "head_dim": 4, "ffn": 12}
    a, b = results((build("a", **small), build("b" * 100, **small, seed=1)))
    a, b = with_roles(a, ["passthrough"] * depth), with_roles(b, ["specialist"] * depth)
    lines = printed(report(SideBySide(a, b), 1.0), width)
    assert max(map(len, lines)) <= width
    assert "…" not in "".join(lines)
