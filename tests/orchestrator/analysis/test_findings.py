"""The first answers, on the paper's own figures and on hand-written ones."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from orchestrator.analysis import compare, print_summary
from orchestrator.analysis.cells import CellResult
from orchestrator.analysis.comparison import Comparison, compute
from orchestrator.analysis.figures import draw
from orchestrator.analysis.findings import Finding, changes, findings
from orchestrator.analysis.migration import role_shift
from orchestrator.analysis.pairs import Pair
from orchestrator.analysis.sections.layers import by_layer
from tests.naming import names
from tests.orchestrator.reading import reading_of

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
    (found,) = (finding for finding in findings(c, arm) if question in finding.question)
    return found


def printed(c: Comparison, width: int = 200) -> str:
    console = Console(width=width, file=io.StringIO())
    print_summary(c, console)
    return console.file.getvalue()


def test_the_papers_table_and_story_come_out_of_its_measurements(paper: Path) -> None:
    c = compare(paper)
    flat = told(c, "run_b", "flattened")
    assert flat.answer == "L3, L4, L5 flattened; L6 raised"
    for line in ("L3 3.5 × (5 → 0", "L4 6.6 × (6 → 0", "L5 11.4 × (3 → 0", "L6 0.23 × (0 → 5"):
        assert line in flat.sentence
    roles = told(c, "run_b", "changed role").sentence
    assert flat.sure is False  # one pair tests nothing
    assert names(roles, "1 pair at step 100")
    for move in ("L3 specialist → passthrough", "L6 passthrough → hub"):
        assert move in roles
    assert all(" ".join(sentence.split()) in " ".join(printed(c).split()) for sentence in (flat.sentence, roles))
    table = by_layer(c, ["run_a", "run_b"])
    shown = {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    for layer, (cv_a, cv_b, _, _, role_a, role_b) in PAPER.items():
        row = shown[str(layer)]
        assert [row["CV\na"], row["CV\nb"], row["CV\na / b"]] == [f"{x:.2f}" for x in (cv_a, cv_b, cv_a / cv_b)]
        assert [row["roles a\nseed 0"].roles, row["roles b\nseed 0"].roles] == [[role_a], [role_b]]
    assert "Of 33 differences" in draw(c)["effective_rank"].text


def test_of_the_papers_counts_conservation_cannot_be_said(paper: Path) -> None:
    """18 → 13 positions: one pair has no interval, and 3504 Gaussian positions a layer give 52 by chance."""
    budget = told(compute(paper), "run_b", "budget")
    assert (budget.answer, budget.sure) == ("inconclusive", False)
    assert names(budget.sentence, "18.0 → 13.0", "by chance 1.1 → 1.1", "above chance 0.70 ×")
    assert budget.scale is not None
    assert budget.scale.band == (0.80, 1.25)
    for path in paper.rglob("step_*.json"):
        path.write_text(path.read_text().replace('_expected": 0.1', '_expected": 4.7'))
    assert told(compute(paper), "run_b", "budget").answer == "no larger than chance"


def pushed(by: float) -> Callable[..., float]:
    return lambda arm, seed, *_: 3.0 + 0.01 * seed + by * (1 + 0.01 * seed) * (arm == "variable")


def shaken(by: float) -> Callable[..., float]:
    return lambda arm, seed, *_: 3.0 + by * (-1) ** seed * (arm == "variable")


@pytest.mark.parametrize(
    ("loss", "answer", "sure"),
    [
        (pushed(-0.1), "variable is better", True),
        (pushed(0.1), "uniform is better", True),
        (shaken(0.001), "equivalent within 0.25\u00a0%", True),
        (shaken(0.5), "inconclusive", False),
    ],
)
def test_the_winner_is_named(experiment: Write, loss: Callable[..., float], answer: str, sure: bool) -> None:
    found = told(compute(experiment(seeds=range(6), loss=loss)), "variable", "won")
    assert (found.answer, found.sure) == (answer, sure)
    assert "6 pairs, p = " in found.sentence
    assert found.scale is not None
    assert found.scale.level == 95
    assert ", 95 % interval" in found.sentence


def test_a_role_that_moved_in_every_seed_is_named(experiment: Write) -> None:
    root = experiment(seeds=range(6), arms=("uniform", "variable"))
    for path in root.glob("variable/*/forensics/step_00000100.json"):
        reading: dict[str, Any] = json.loads(path.read_text())
        for layer, role in ((0, "hub"), (1, "damper"), (2, "hub"), (3, "hub")):
            reading["layers"][layer]["role"] = role
        path.write_text(json.dumps(reading))
    found = told(compute(root), "variable", "changed role")
    assert (found.answer, found.sure) == ("L0, L1, L2 moved", True)
    assert "p = 0.031" in found.sentence  # 2/2⁶
    assert names(found.sentence, "L0 passthrough → hub")


def test_without_a_pair_nothing_is_answered(experiment: Write) -> None:
    c = compute(experiment(arms=("uniform",)))
    assert findings(c, "uniform") == []
    assert "●" not in printed(c)


def test_many_arms_are_one_line_each(experiment: Write) -> None:
    root = experiment(arms=tuple("abcdef"), seeds=(0, 1))
    compare(root)
    page = (root / "comparison/report.html").read_text()
    assert "against a<" in page
    assert 'class="card' not in page


def test_a_difference_within_the_margin_says_so(experiment: Write) -> None:
    """Six pairs call a difference that is not 0, and of which all is under a quarter of a per cent."""
    found = told(compute(experiment(seeds=range(6), loss=pushed(0.001))), "variable", "won")
    assert found.answer == "uniform is better"
    assert names(found.sentence, "less than 0.25\u00a0%", "6 pairs")
    assert (
        "less than"
        not in told(compute(experiment(name="y", seeds=range(6), loss=pushed(0.1))), "variable", "won").sentence
    )


def test_what_is_not_decided_says_what_would_decide_it(experiment: Write) -> None:
    c = compute(experiment(seeds=range(3), loss=pushed(0.1)))
    loss = told(c, "variable", "won")
    assert loss.answer == "inconclusive"
    assert loss.pairs == 6  # so large an effect needs no more than the fewest
    assert names(loss.sentence, "About 3 more pairs", "would decide it")
    decided = told(compute(experiment(name="y", seeds=range(6), loss=pushed(0.1))), "variable", "won")
    assert "would decide" not in decided.sentence


def flatter(root: Path, cv: Callable[[int, int], float | None]) -> Path:
    """Give layer `i` of the arm at seed `s` the CV `cv(s, i)` at step 100, and no saturation count to layer 3."""
    for path in root.glob("*/*/forensics/step_00000100.json"):
        reading, seed = json.loads(path.read_text()), int(path.parts[-3].removeprefix("seed="))
        for layer in reading["layers"]:
            if path.parts[-4] == "variable":
                layer["measures"]["cv"] = cv(seed, layer["layer"])
            if layer["layer"] == 3:
                layer["measures"]["saturated"] = None
        path.write_text(json.dumps(reading))
    return root


@pytest.mark.parametrize(("seeds", "sure", "p"), [(2, False, "p = 0.5"), (6, True, "p = 0.031")])
def test_a_flattened_layer_is_sure_where_the_test_says_so(experiment: Write, seeds: int, sure: bool, p: str) -> None:
    root = flatter(experiment(seeds=range(seeds)), lambda s, i: 0.1 if i == 3 else 0.1 * (i + 1) + 0.001 * (s % 2))
    found = told(compute(root), "variable", "flattened")
    assert (found.answer, found.sure) == ("L3 flattened", sure)
    assert names(found.sentence, f"{seeds} seeds", "step 100", "L3 4.0 × (– → –", p)


def test_a_layer_that_lacks_its_ratio_in_one_seed_is_not_told_of_all(experiment: Write) -> None:
    root = flatter(experiment(), lambda s, i: (None if s else 0.01) if i == 3 else 0.1 * (i + 1))
    assert not [f for f in findings(compute(root), "variable") if "flattened" in f.question]


def test_the_centre_shift_is_told_with_its_interval(experiment: Write) -> None:
    def budget(arm: str, seed: int, step: int) -> list[float]:
        return [0.0] * 4 if (arm, seed) == ("uniform", 0) else [30, 0, 0, 10 * seed + (20 if arm == "variable" else 0)]

    c = compute(experiment(seeds=range(4), budget=budget))
    shift = c.conservation[0]
    sentence = told(c, "variable", "budget").sentence
    assert names(sentence, "centre", f"{shift.centre_shift:+.2f}", "95 % interval")


def test_layers_read_before_training_only_give_no_answer(experiment: Write) -> None:
    c = compute(experiment(seeds=range(6), read_at=(0,)))
    for question in ("changed role", "budget"):
        found = told(c, "variable", question)
        assert (found.answer, found.sure) == ("not measured", False)
        assert "before training" in found.sentence
    assert [note for note in c.notes if "step 0 of 100" in note]


def test_stale_and_mixed_readings_are_told(experiment: Write) -> None:
    root = experiment(seeds=range(6))
    for seed in range(6):
        (root / f"variable/seed={seed}/forensics/step_00000100.json").unlink()
    (root / "variable/seed=5/forensics/step_00000050.json").unlink()
    c = compute(root)
    assert [note for note in c.notes if "step 50 of 100" in note]
    for question in ("changed role", "budget"):
        sentence = told(c, "variable", question).sentence
        assert names(sentence, "5 pairs", "step 50 of 100", "step 50: 5")
    assert c.symmetry[0].step == c.role_shifts[0].step == 50
    assert names(c.symmetry[0].sentence, "step 50: 5")
    table = by_layer(c, ["uniform", "variable"])
    assert names(table.title, "Layers", "step 50 of 100")
    assert "roles a\nseed 0…4" in table.columns


def test_undecided_lines_are_counted(experiment: Write) -> None:
    root = experiment()
    path = root / "experiment.yaml"
    path.write_text(path.read_text() + "expect: {L3: hub, L9: hub}\n")
    found = told(compute(root), "variable", "organise")
    assert (found.answer, found.sure) == ("none of 4 decided", False)


def test_notes_on_few_pairs_name_their_arms(experiment: Write) -> None:
    root = experiment(arms=("uniform", "variable", "third", "fourth"), seeds=range(6))
    for seed in range(5):
        (root / f"fourth/seed={seed}/metrics.jsonl").unlink()
        if seed < 4:
            (root / f"third/seed={seed}/metrics.jsonl").unlink()
    one, two = compute(root).notes[:2]
    assert names(one, "1 pair (fourth)", "no p")
    assert names(two, "2 pairs (third)", "sign-flip", "p under 0.5")


@settings(deadline=None, max_examples=40)
@given(st.data(), st.integers(1, 4), st.integers(1, 4))
def test_the_story_of_the_roles_is_that_of_the_table(data: st.DataObject, n: int, depth: int) -> None:
    """Sentences of random roles, checked seed by seed: arms that swap two roles over the seeds differ in each."""
    roles = st.lists(st.sampled_from(["hub", "damper", "specialist"]), min_size=depth, max_size=depth)
    a, b = ([data.draw(roles) for _ in range(n)] for _ in range(2))
    cells = [[CellResult(arm, s, Path(), [], {0: reading_of(own)}, None) for s, own in enumerate(of)]
             for arm, of in (("a", a), ("b", b))]  # fmt: skip
    shift = role_shift("b", [Pair(x, y, ()) for x, y in zip(*cells, strict=True)])
    assert shift is not None
    told = changes(shift)
    for layer in range(depth):
        count = sum(x[layer] != y[layer] for x, y in zip(a, b, strict=True))
        before, after = {x[layer] for x in a}, {y[layer] for y in b}
        moved = f"L{layer} {min(before)} → {min(after)}" in told
        assert moved == (len(before) == len(after) == 1 and before != after)
        assert (f"L{layer} ({count} of {n})" in told) == (count > 0 and not moved)


def test_a_budget_of_which_nothing_is_seen_to_move_is_not_decided(experiment: Write) -> None:
    """More pairs might show that it moved."""

    def budget(arm: str, seed: int, step: int) -> list[float]:
        return [50.0 + (seed * 7 + (arm == "variable") * 3) % 5] * 4

    found = told(compute(experiment(seeds=range(6), budget=budget)), "variable", "conserved")
    assert found.answer == "nothing moved"
    assert not found.sure
    assert "more pair" not in found.sentence, "as many as would decide the ratio, which is decided"
