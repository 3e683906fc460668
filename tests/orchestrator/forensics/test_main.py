"""The command: what it prints and writes, and the three ways it exits."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from orchestrator.checkpoint import save
from orchestrator.forensics import analyze
from orchestrator.forensics.__main__ import main


def test_files_and_table(
    checkpoint: Callable[..., Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    path = checkpoint().write()
    assert main([str(path), "--json", str(tmp_path / "f.json"), "--csv", str(tmp_path / "f.csv")]) == 0
    result = json.loads((tmp_path / "f.json").read_text())
    assert result == analyze(path)

    with (tmp_path / "f.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row, layer in zip(rows, result["layers"], strict=True):
        assert row["role"] == layer["role"]
        assert float(row["score_hub"]) == layer["scores"]["hub"]
        for key, value in layer["measures"].items():
            assert row[key] == ("" if value is None else str(value))

    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 120
    for layer in result["layers"]:
        assert " ".join(layer["evidence"]) in out, "nothing is cut where the output is a file"
    assert all(layer["role"] in out for layer in result["layers"])
    assert "60 to 70 % of an untrained model's layers get a role too" in out
    assert "needs an activation probe" in out


def test_exit_code_of_a_critical_pathology(checkpoint: Callable[..., Any]) -> None:
    ours = checkpoint(widths=(16,) * 4)
    ours.tensors[ours.name(2, "gate")] *= np.float32(200)
    done = _run(ours.write())
    assert done.returncode == 1
    assert "critical" in done.stdout
    assert "model.layers.2.mlp.gate_proj.weight" in done.stdout


def test_bad_input_is_one_sentence(checkpoint: Callable[..., Any]) -> None:
    ours = checkpoint()
    ours.tensors[ours.name(1, "up")][0, 0] = np.nan
    done = _run(ours.write())
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "model.layers.1.mlp.up_proj.weight" in done.stderr


@pytest.fixture
def cell(checkpoint: Callable[..., Any], tmp_path: Path) -> Path:
    """A cell's directory with sealed checkpoints of steps 0 and 7."""
    for step in (0, 7):
        ours = checkpoint(seed=step)
        tensors = {name: torch.from_numpy(value) for name, value in ours.tensors.items()}
        save(tmp_path / "cell/checkpoints", step, {"model": tensors}, {"schema": 1, "step": step, "spec": ours.spec})
    return tmp_path / "cell"


def test_a_cell_is_read_from_its_newest_whole_checkpoint(
    cell: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(cell), "--json", str(tmp_path / "f.json")]
    assert main(arguments) == 0
    assert json.loads((tmp_path / "f.json").read_text())["step"] == 7
    _flip_last_byte(cell / "checkpoints/step_00000007/model.safetensors")
    assert main(arguments) == 0
    assert json.loads((tmp_path / "f.json").read_text())["step"] == 0
    assert "1 newer checkpoint(s) are damaged" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["", "model.safetensors"])
def test_a_flipped_byte_is_one_sentence(name: str, cell: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = cell / "checkpoints/step_00000007"
    assert main([str(path / name)]) == 0
    _flip_last_byte(path / "model.safetensors")
    capsys.readouterr()
    assert main([str(path / name)]) == 2
    printed = capsys.readouterr()
    assert "model.safetensors" in printed.err
    assert printed.err.count("\n") == 1
    assert printed.out == ""


def test_a_target_that_cannot_be_written_is_refused_before_reading(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path / "nowhere"), "--json", str(tmp_path / "absent" / "f.json")]) == 2
    assert "make the directory" in capsys.readouterr().err


def test_absent_values_print_as_dashes(checkpoint: Callable[..., Any], capsys: pytest.CaptureFixture[str]) -> None:
    ours = checkpoint(norm="pre")
    for kind in ("q", "k", "v", "o", "gate", "up", "down"):
        ours.tensors[ours.name(1, kind)][:] = 0
    assert main([str(ours.write(optimizer=False))]) == 0
    assert "–" in capsys.readouterr().out


def _flip_last_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def _run(path: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "orchestrator.forensics", str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=False)
