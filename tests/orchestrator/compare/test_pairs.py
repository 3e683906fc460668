"""What makes two cells a pair, and what keeps them from being one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.compare.cells import read_experiment
from orchestrator.compare.comparison import compute
from orchestrator.compare.pairs import losses, pair_up
from orchestrator.errors import UserError
from orchestrator.manifest import Manifest

Write = Callable[..., Path]
Edit = Callable[[Path, Callable[[list[dict[str, Any]]], Any]], None]


def test_pairs_are_baseline_by_other_by_seed(experiment: Write) -> None:
    pairs, left_out = pair_up(read_experiment(experiment(arms=("a", "b", "c"), seeds=(3, 5))))
    assert [(p.a.label, p.b.label) for p in pairs] == [
        ("a/seed=3", "b/seed=3"), ("a/seed=5", "b/seed=5"), ("a/seed=3", "c/seed=3"), ("a/seed=5", "c/seed=5"),
    ]  # fmt: skip
    assert not left_out


def test_losses_by_hand(experiment: Write, edit_ledger: Edit) -> None:
    root = experiment(steps=(0, 10, 20))
    edit_ledger(root / "uniform/seed=0", lambda r: r[1].update(heldout={"code": 1.0, "facts": 2.5}))
    edit_ledger(root / "uniform/seed=0", lambda r: r[2].update(heldout={"code": 1.5, "facts": 2.0}))
    edit_ledger(root / "uniform/seed=0", lambda r: r[2].update(test={"code": 4.0, "facts": 6.0}))
    found = losses(read_experiment(root).cell("uniform", 0), ["code", "facts"])
    assert found["test_loss", "mean"] == 5.0
    assert found["validation_loss", "code"] == 1.5
    assert (found["best_validation_loss", "code"], found["best_validation_loss", "facts"]) == (1.0, 2.0)
    assert found["best_validation_loss", "mean"] == 1.75  # of the mean's own curve, not the mean of the minima
    assert next(iter(found)) == ("test_loss", "mean")


def test_a_failed_cell_takes_its_pair_out_with_the_reason(experiment: Write, edit_ledger: Edit) -> None:
    root = experiment()
    edit_ledger(root / "variable/seed=1", lambda r: r.pop())
    Manifest(root).append("variable/seed=1", "failed", attempt=2, reason="The training loss became nan.")
    pairs, (out,) = pair_up(read_experiment(root))
    assert [p.seed for p in pairs] == [0]
    assert (out.arm, out.seed) == ("variable", 1)
    assert out.reason == "variable/seed=1: failed at step 50: The training loss became nan."


def test_cells_that_never_ran_or_ended_in_nan(experiment: Write, edit_ledger: Edit) -> None:
    root = experiment(seeds=(0, 1, 2))
    (root / "uniform/seed=0/ledger.jsonl").unlink()
    edit_ledger(root / "variable/seed=0", lambda r: r.pop())
    edit_ledger(root / "variable/seed=1", lambda r: r[-1]["test"].update(code=float("nan")))
    pairs, left_out = pair_up(read_experiment(root))
    assert [p.seed for p in pairs] == [2]
    assert [out.reason for out in left_out] == [
        "uniform/seed=0: never started; variable/seed=0: unfinished at step 50",
        "variable/seed=1: its final test loss on code is nan",
    ]


def test_different_batches_are_refused_with_the_step(experiment: Write, edit_ledger: Edit) -> None:
    root = experiment()
    edit_ledger(root / "variable/seed=1", lambda r: [x.update(digest="other") for x in r[1:]])
    with pytest.raises(UserError, match=r"uniform/seed=1 and variable/seed=1 saw different batches at step 50"):
        pair_up(read_experiment(root))


@pytest.mark.parametrize("declared", ["data", "data.train_tokens", "train.batch_size"])
def test_batches_that_differ_by_declaration_are_paired_by_seed(
    experiment: Write, edit_ledger: Edit, declared: str
) -> None:
    root = experiment()
    edit_ledger(root / "variable/seed=1", lambda r: [x.update(digest="other") for x in r])
    spec = yaml.safe_load((root / "experiment.yaml").read_text())
    (root / "experiment.yaml").write_text(yaml.safe_dump(spec | {"declared": ["width", declared]}, sort_keys=False))
    comparison = compute(root)
    assert len(comparison.pairs) == 2
    assert any("may differ in their batches, as declared" in note for note in comparison.notes)


def test_undeclared_difference_is_refused_by_name(experiment: Write) -> None:
    root = experiment()
    path = root / "variable/seed=0/config.yaml"
    config = yaml.safe_load(path.read_text())
    config["optim"]["lr"] = 0.5
    path.write_text(yaml.safe_dump(config))
    with pytest.raises(UserError, match=r"differ in optim\.lr \(0\.002 against 0\.5\)"):
        pair_up(read_experiment(root))


def test_unreadable_directories_and_files_are_named(experiment: Write, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere holds no experiment\.yaml"):
        read_experiment(tmp_path / "nowhere")
    root = experiment()
    broken = root / "uniform/seed=0/forensics/step_00000050.json"
    broken.write_text(broken.read_text()[:100])
    with pytest.raises(UserError, match=r"step_00000050\.json is not JSON"):
        read_experiment(root)
    for content, reason in (("arms: {}\nseeds: [0]", "names no arms"), ("[1, 2", "is not YAML"), ("", "names no arms")):
        (root / "experiment.yaml").write_text(content)
        with pytest.raises(UserError, match=reason):
            read_experiment(root)


def test_a_torn_last_line_does_not_count(experiment: Write) -> None:
    root = experiment()
    ledger = root / "uniform/seed=0/ledger.jsonl"
    whole = ledger.read_text()
    ledger.write_text(whole + json.dumps({"step": 200})[:-4])
    assert len(read_experiment(root).cell("uniform", 0).ledger) == 3
