"""The plan's memory of a step is within a tenth of what the tensors of a real step hold."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks.bench_memory import LARGE, compared, compared_without_values, main

LITTLE = ["model.layers=3", "model.vocab_size=300"]
CASES = {
    "whole": LITTLE,
    "parts": [*LITTLE, "train.micro_batch_size=2"],
    "long": [*LITTLE, "train.seq_len=300"],
    "half": [*LITTLE, "train.precision=bf16"],
    "ramp": [*LITTLE, "width=ramp", "model.norm=pre"],
    "mostly gradients": ["model.layers=3", "train.batch_size=1", "train.seq_len=16"],
    "chunks": ["model.layers=3", "model.vocab_size=40000", "model.tie_embeddings=false"],
}


@pytest.mark.parametrize("name", CASES)
def test_the_sum_on_paper_is_what_tensors_hold(name: str, tmp_path: Path) -> None:
    found, paper, _ = compared(name, CASES[name], tmp_path)
    assert found == pytest.approx(paper, rel=0.1)


@pytest.mark.parametrize("name", ["paper_478m", "paper_478m, ramp"])
def test_the_papers_sizes_hold_what_the_plan_says(name: str, tmp_path: Path) -> None:
    found, paper = compared_without_values(LARGE[name], tmp_path)
    assert found == pytest.approx(paper, rel=0.1)
    assert found < 80e9  # one H100


def test_the_benchmark_prints_a_line_for_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert main({name: CASES[name] for name in ("whole", "half")}, {}) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
