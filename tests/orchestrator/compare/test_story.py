"""The first answers, on the paper's own figures and on hand-written ones."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from orchestrator.compare import compare, print_summary
from orchestrator.compare.comparison import Comparison, compute
from orchestrator.compare.figures import draw
from orchestrator.compare.sections.inside import layers
from orchestrator.compare.story import Finding, findings

Write = Callable[..., Path]

# The paper, §5: CV and saturated positions of run A (global decay) and run B (learned per tensor), roles where told.
PAPER = {
    3: (0.264, 0.075, 5, 0, "specialist", "passthrough"),
    4: (0.270, 0.041, 6, 0, "specialist", "passthrough"),
    5: (0.732, 0.064, 3, 0, "specialist", "passthrough"),
    6: (0.069, 0.296, 0, 5, "passthrough", "hub"),
    8: (0.080, 0.125, 0, 2, "passthrough", "specialist"),
    9: (0.200, 0.200, 4, 6, "hub", "hub"),
}
QUIET = (0.06, 0.06, 0, 0, "passthrough", "passthrough")  # a layer of which it says nothing


@pytest.fixture
def paper(experiment: Write) -> Path:
    """Runs A and B as an experiment of 11 layers whose readings hold the paper's figures."""
    root = experiment(arms=("run_a", "run_b"), seeds=(0,), budget=lambda *_: [0.0] * 11, chance=0.1, steps=(0, 100))
    for side, arm in enumerate(("run_a", "run_b")):
        path = root / arm / "seed=0/forensics/step_00000100.json"
        reading = json.loads(path.read_text())
        for layer in reading["layers"]:
            told = PAPER.get(layer["layer"], QUIET)
            layer["role"] = told[4 + side]
            layer["measures"] |= {"cv": told[side], "effective_rank.o": 500.0 + 2.5 * side}
            layer["measures"] |= dict.fromkeys(("saturated", "saturated_robust", "saturated_fixed"), told[2 + side])
        path.write_text(json.dumps(reading))
    return root


def told(c: Comparison, arm: str, question: str) -> Finding:
    (found,) = (finding for finding in findings(c, arm) if finding.question.startswith(question))
    return found


def printed(c: Comparison, width: int = 200) -> str:
    console = Console(width=width, file=io.StringIO())
    print_summary(c, console)
    return console.file.getvalue()


def test_the_papers_table_and_story_come_out_of_its_measurements(paper: Path) -> None:
    c = compare(paper)
    flat = told(c, "run_b", "Which layers were flattened")
    assert flat.answer == "L3, L4, L5 flattened; L6 raised"
    for line in ("L3 3.5 × (5 → 0 saturated)", "L4 6.6 × (6 → 0 saturated)", "L5 11.4 × (3 → 0 saturated)",
                 "L6 0.23 × (0 → 5 saturated)"):  # fmt: skip
        assert line in flat.sentence
    roles = told(c, "run_b", "Which layers changed role").sentence
    for move in ("L3 specialist → passthrough", "L6 passthrough → hub"):
        assert move in roles
    assert all(" ".join(sentence.split()) in " ".join(printed(c).split()) for sentence in (flat.sentence, roles))
    table = layers(c, ["run_a", "run_b"])
    shown = {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    for layer, (cv_a, cv_b, _, _, role_a, role_b) in PAPER.items():
        row = shown[str(layer)]
        assert [row["CV\na"], row["CV\nb"], row["CV\na / b"]] == [f"{x:.2f}" for x in (cv_a, cv_b, cv_a / cv_b)]
        assert [row["roles a\nseed 0"].roles, row["roles b\nseed 0"].roles] == [[role_a], [role_b]]
    assert "33 of 33 mean differences" in draw(c)["effective_rank"].text


def test_of_the_papers_counts_conservation_cannot_be_said(paper: Path) -> None:
    """18 → 13 positions: one pair has no interval, and 3504 Gaussian positions a layer give 52 by chance."""
    budget = told(compute(paper), "run_b", "Was the budget conserved")
    assert (budget.answer, budget.sure) == ("inconclusive", False)
    assert "Saturated positions 18.0 → 13.0 (by chance 1.1 → 1.1): ratio 0.72" in budget.sentence
    assert budget.scale is not None
    assert budget.scale.band == (0.80, 1.25)
    for path in paper.rglob("step_*.json"):
        path.write_text(path.read_text().replace('_expected": 0.1', '_expected": 4.7'))
    assert told(compute(paper), "run_b", "Was the budget conserved").answer == "no larger than chance"


def pushed(by: float) -> Callable[..., float]:
    return lambda arm, seed, *_: 3.0 + 0.01 * seed + by * (1 + 0.01 * seed) * (arm == "variable")


def shaken(by: float) -> Callable[..., float]:
    return lambda arm, seed, *_: 3.0 + by * (-1) ** seed * (arm == "variable")


@pytest.mark.parametrize(
    ("loss", "answer", "sure"),
    [
        (pushed(-0.1), "variable is better", True),
        (pushed(0.1), "uniform is better", True),
        (shaken(0.001), "equivalent within 1\u00a0%", True),
        (shaken(0.5), "inconclusive", False),
    ],
)
def test_the_winner_is_named(experiment: Write, loss: Callable[..., float], answer: str, sure: bool) -> None:
    found = told(compute(experiment(seeds=range(6), loss=loss)), "variable", "Which arm won")
    assert (found.answer, found.sure) == (answer, sure)
    assert "6 pairs, p = " in found.sentence


def test_a_role_that_moved_in_every_seed_is_named(experiment: Write) -> None:
    root = experiment(seeds=range(6), arms=("uniform", "variable"))
    for path in root.glob("variable/*/forensics/step_00000100.json"):
        reading: dict[str, Any] = json.loads(path.read_text())
        for layer, role in ((0, "hub"), (1, "damper"), (2, "hub"), (3, "hub")):
            reading["layers"][layer]["role"] = role
        path.write_text(json.dumps(reading))
    found = told(compute(root), "variable", "Which layers changed role")
    assert (found.answer, found.sure) == ("roles moved", True)
    assert "p = 0.031" in found.sentence  # 2/2⁶
    assert "By themselves: L0 passthrough → hub" in found.sentence


def test_without_a_pair_nothing_is_answered(experiment: Write) -> None:
    c = compute(experiment(arms=("uniform",)))
    assert findings(c, "uniform") == []
    assert "●" not in printed(c)


def test_many_arms_are_one_line_each(experiment: Write) -> None:
    root = experiment(arms=tuple("abcdef"), seeds=(0, 1))
    compare(root)
    page = (root / "comparison/report.html").read_text()
    assert "Every arm against a" in page
    assert "class='card" not in page
