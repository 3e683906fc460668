"""Files of losses, and what is none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.common.errors import UserError
from orchestrator.forensics.trajectory.losses import read_losses
from tests.naming import naming

RECORDS = [{"step": 20, "train_loss": 2.5, "lr": 0.1}, {"step": 0, "train_loss": 4.0, "eval_Loss": None}]
CURVES = {"train_loss": [(0, 4.0), (20, 2.5)]}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "step,train_loss,lr,eval_Loss\n20,2.5,0.1,\n0,4.0,0.1,\n"),
        ("a.json", json.dumps(RECORDS)),
        ("a.jsonl", "\n".join(map(json.dumps, RECORDS)) + "\n\n"),
    ],
)
def test_every_format_gives_the_same_curves(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert read_losses(tmp_path / name) == CURVES


@pytest.mark.parametrize(
    ("name", "text", "named"),
    [
        ("a.csv", "time,loss\n1,2\n", "no step"),
        ("a.csv", "step,value\n1,2\n", "no loss"),
        ("a.csv", "step,loss\n1,2\n1,3\n", "step 1 twice"),
        ("a.csv", "step,loss\n1,nan\n", "loss='nan'"),
        ("a.csv", "step,loss\n1.5,2\n", "step='1.5'"),
        ("a.csv", "step,loss\nx,2\n", "step='x'"),
        ("a.csv", "", "no loss"),
        ("a.json", "{}", "list"),
        ("a.json", "[1]", "no step"),
        ("a.json", "nothing", "a.json"),
        ("a.jsonl", '{"step": 1, "loss": 2}\n{"step"', "a.jsonl"),
        ("a.jsonl", '{"step": 1, "loss": [2]}', "loss=[2]"),
    ],
)
def test_anything_else_is_one_sentence(tmp_path: Path, name: str, text: str, named: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=naming(named, name)):
        read_losses(tmp_path / name)
    with pytest.raises(UserError, match=naming("none.csv")) as raised:
        read_losses(tmp_path / "none.csv")
    assert "Errno" not in str(raised.value)
