"""The change between two checkpoints, against numpy, and its share of what the learning rates allow."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.forensics.architecture.model import CheckpointModel
from orchestrator.forensics.measures import change
from orchestrator.forensics.measures.change import changes
from orchestrator.forensics.output import read
from tests.naming import names
from tests.orchestrator.forensics.pages import printed


@pytest.fixture
def cell(checkpoint: Callable[..., Any], tmp_path: Path) -> tuple[Any, Any]:
    """Steps 4 and 10 of one cell, whose learning rate rises by 0.001 a step and is logged every second step."""
    found = []
    for step, seed in ((4, 0), (10, 1)):
        ours = checkpoint(widths=(16,) * 4, seed=seed, path=f"cell/checkpoints/step_{step:08d}")
        ours.step = step
        found.append(ours)
    lines = [json.dumps({"step": step, "lr": 0.001 * step}) for step in range(0, 13, 2)]
    (tmp_path / "cell").mkdir()
    (tmp_path / "cell/metrics.jsonl").write_text("\n".join(lines) + "\n")
    return found[0], found[1]


@pytest.mark.parametrize("block", [5, 2048])
def test_every_tensor_against_numpy(cell: tuple[Any, Any], block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(change, "ROWS", block)
    a, b = cell
    name = a.name(2, "up")
    b.tensors[name] = a.tensors[name] + 30  # moves most
    found = changes(CheckpointModel(a.write()), CheckpointModel(b.write()))
    assert found is not None
    assert found.consistent == pytest.approx(0.001 * sum(range(5, 11)))
    assert {of.tensor for of in found.tensors} == set(a.tensors)
    assert found.tensors[0].tensor == name
    assert [of.relative for of in found.tensors] == sorted((of.relative for of in found.tensors), reverse=True)
    for of in found.tensors:
        x, y = (ours.tensors[of.tensor].astype(float) for ours in cell)
        assert of.relative == pytest.approx(np.linalg.norm(y - x) / np.linalg.norm(x))
        assert of.rms == pytest.approx(np.sqrt(np.mean((y - x) ** 2)))
        assert of.of_consistent == pytest.approx(of.rms / 0.045)


def test_what_cannot_be_compared_is_left_out_and_named(cell: tuple[Any, Any]) -> None:
    a, b = cell
    zero, other, absent = a.name(0, "q"), "model.embed_tokens.weight", a.name(1, "q")
    a.tensors[zero][:] = 0
    b.tensors[other] = np.ones((33, 16), np.float32)
    b.spec["vocab_size"] = 33
    b.tensors["extra"] = a.tensors[absent]
    found = changes(CheckpointModel(a.write()), CheckpointModel(b.write()))
    assert found.left == ["extra", other]
    assert found.tensors[0].tensor == zero
    assert found.tensors[0].relative is None
    assert {of.tensor for of in found.tensors} == set(a.tensors) - {other}


def test_without_a_log_of_both_no_rate_is_known(cell: tuple[Any, Any], checkpoint: Callable[..., Any]) -> None:
    a, b = (CheckpointModel(ours.write()) for ours in cell)
    assert changes(b, a).consistent is None  # backwards
    elsewhere = checkpoint(widths=(16,) * 4, path="other/checkpoints/step_00000010")
    elsewhere.step = 10
    assert changes(a, CheckpointModel(elsewhere.write())).consistent is None
    log = a.directory.parents[1] / "metrics.jsonl"
    log.write_text("\n".join(log.read_text().splitlines()[:4]) + "\n")  # ends at step 6
    assert changes(a, b).consistent is None


def test_against_writes_and_prints_it(cell: tuple[Any, Any]) -> None:
    a, b = cell
    b.tensors[a.name(3, "v")] = -2 * a.tensors[a.name(3, "v")]
    output = read(str(a.write()), against=str(b.write()), device="cpu", clock=lambda: 0.0, progress=lambda line: None)
    assert output.document["change"]["tensors"][0]["tensor"] == a.name(3, "v")
    assert output.document["change"]["tensors"][0]["relative"] == pytest.approx(3)
    page = "\n".join(printed(output.report))
    assert names(page, a.name(3, "v"), "3")
    assert "‖B − A‖ / ‖A‖" in page


def test_it_says_what_was_not_compared(cell: tuple[Any, Any], checkpoint: Callable[..., Any]) -> None:
    a, b = cell
    b.tensors["extra"] = a.tensors[a.name(0, "q")]
    other = checkpoint(widths=(24,) * 4, seed=2, path="other")
    for of, said in ((b, ("1 tensor", "extra")), (other, ("no tensor",))):
        output = read(
            str(a.write()), against=str(of.write()), device="cpu", clock=lambda: 0.0, progress=lambda line: None
        )
        assert names("\n".join(printed(output.report)), *said)
