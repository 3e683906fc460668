"""The command: what it prints and writes, and the three ways it exits."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from orchestrator.forensics.__main__ import main
from orchestrator.forensics.analyzer import analyze
from orchestrator.storage.checkpoint import save
from tests.naming import names


def test_files_and_table(
    checkpoint: Callable[..., Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = checkpoint().write()
    files = [tmp_path / name for name in ("f.json", "f.csv", "f.png")]
    options = zip(("--json", "--csv", "--figure"), map(str, files), strict=True)
    assert main([str(path), *chain.from_iterable(options)]) == 0
    result = json.loads(files[0].read_text())
    assert result == analyze(path).to_json()

    with files[1].open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row, layer in zip(rows, result["layers"], strict=True):
        assert row["role"] == layer["role"]
        assert float(row["score_hub"]) == layer["scores"]["hub"]
        for key, value in layer["measures"].items():
            assert row[key] == ("" if value is None else str(value))
    assert files[2].read_bytes().startswith(b"\x89PNG")

    out = capsys.readouterr().out
    assert out.startswith(str(path)[:40])
    assert all(layer["role"] in out for layer in result["layers"] if "/" not in layer["role"])
    assert names(out, "activation probe")


@pytest.mark.parametrize("columns", [80, 100, 160])
def test_as_wide_as_the_terminal_and_a_hundred_columns_in_a_pipe(
    checkpoint: Callable[..., Any],
    columns: int,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = checkpoint(widths=(16,) * 4).write()
    monkeypatch.delenv("COLUMNS", raising=False)
    assert main([str(path)]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 100
    monkeypatch.setenv("COLUMNS", str(columns))
    assert main([str(path)]) == 0
    longest = max(map(len, capsys.readouterr().out.splitlines()))
    assert columns - 30 < longest <= columns


def test_scoring_chooses_what_is_shown_and_both_are_written(
    checkpoint: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, documents = checkpoint(widths=(16,) * 6).write(), []
    for scoring in ("calibrated", "paper"):
        assert main([str(path), "--scoring", scoring, "--json", str(tmp_path / "f.json")]) == 0
        documents.append(json.loads((tmp_path / "f.json").read_text()))
    assert names(capsys.readouterr().out, "paper's rule", "untrained", "60 %")
    for calibrated, paper in zip(*(document["layers"] for document in documents), strict=True):
        assert calibrated["scorings"] == paper["scorings"]
        assert calibrated["role"] == paper["scorings"]["calibrated"]["role"]
        assert paper["role"] == calibrated["role_paper"] == paper["scorings"]["paper"]["role"]


def test_two_models_side_by_side(
    checkpoint: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = (checkpoint(seed=seed, path=f"model_{seed}").write() for seed in (0, 1))
    files = ["--json", str(tmp_path / "f.json"), "--csv", str(tmp_path / "f.csv"), "--figure", str(tmp_path / "f.svg")]
    assert main([str(a), "--against", str(b), *files]) == 0
    document = json.loads((tmp_path / "f.json").read_text())
    assert document["a"] == analyze(a).to_json()
    assert document["b"] == analyze(b).to_json()
    assert len((tmp_path / "f.csv").read_text().splitlines()) == 1 + len(document["layers"])
    assert "role A  role B" in capsys.readouterr().out


def test_a_directory_of_checkpoints_is_a_trajectory(
    cell: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ["--json", str(tmp_path / "f.json"), "--csv", str(tmp_path / "f.csv"), "--figure", str(tmp_path / "f.png")]
    assert main([str(cell / "checkpoints"), *files]) == 0
    document = json.loads((tmp_path / "f.json").read_text())
    assert [result["step"] for result in document["checkpoints"]] == [0, 7]
    assert len((tmp_path / "f.csv").read_text().splitlines()) == 1 + 2 * 3
    assert "2 checkpoints · steps 0 to 7" in capsys.readouterr().out


def test_a_checkpoint_that_cannot_be_read_is_left_out_of_its_run(
    checkpoint: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [checkpoint(seed=step, path=f"run/checkpoint-{step}").write() for step in (0, 5, 9)]
    (paths[1] / "state.json").write_text("{")
    target = tmp_path / "f.json"
    assert main([str(tmp_path / "run"), "--json", str(target)]) == 0
    out, err = capsys.readouterr()
    assert "2 checkpoints · steps 0 to 9" in out
    assert names(err, paths[1], "state.json", target)
    assert err.count("\n") == 2  # the second says what was written
    last = json.loads(target.read_text())["checkpoints"][-1]
    assert last["options"]["reference"] == str(paths[0]), "step 0 of any run gives its thresholds"
    assert last["totals"]["saturated_fixed"] is not None
    for path in paths:
        (path / "model.safetensors").write_bytes(b"")
    assert main([str(tmp_path / "run")]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert names(err, "3 checkpoints", tmp_path / "run", paths[0])


def test_a_probe_by_text_or_by_a_file_of_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 16, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=3)).save_pretrained(tmp_path / "llama")
    words = Tokenizer(WordLevel({"<unk>": 0, "a": 1, "b": 2, "c": 3}, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()  # type: ignore[assignment]
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>").save_pretrained(tmp_path / "llama")
    (tmp_path / "text").write_text("a b c b " * 20)
    documents = []
    for probe in ("a b c b " * 20, str(tmp_path / "text")):
        assert main([str(tmp_path / "llama"), "--probe", probe, "--json", str(tmp_path / "f.json")]) == 0
        documents.append(json.loads((tmp_path / "f.json").read_text()))
    assert documents[0] == documents[1]
    assert documents[0]["options"]["probed"] is True
    assert all(-1 <= layer["measures"]["adjacent_alignment"] <= 1 for layer in documents[0]["layers"])
    printed = capsys.readouterr().out
    assert "activation probe" not in " ".join(printed.split())
    assert names(printed, "80 tokens")
    assert all(column in printed for column in ("write", "copy"))
    monkeypatch.setattr("orchestrator.forensics.output.LONGEST", 40)  # of a longer file, the beginning
    assert main([str(tmp_path / "llama"), "--probe", str(tmp_path / "text")]) == 0
    assert names(capsys.readouterr().out, "20 tokens")
    for missing in ("nofile.txt", "texts/nofile"):  # not text of its own
        assert main([str(tmp_path / "llama"), "--probe", missing]) == 2
        assert names(capsys.readouterr().err, missing, "file")


def test_help_waits_for_neither_torch_nor_matplotlib() -> None:
    code = (
        "import sys\nfrom orchestrator.forensics.__main__ import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as done:\n    assert done.code == 0\n"
        "print(sorted({'torch', 'transformers', 'matplotlib', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "--against OTHER" in done.stdout


@pytest.mark.parametrize(("factor", "code", "severity"), [(1, 0, "none"), (14, 0, "warn"), (200, 1, "critical")])
def test_exit_code_of_a_pathology(
    checkpoint: Callable[..., Any], factor: int, code: int, severity: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = checkpoint(widths=(16,) * 4)
    ours.tensors[ours.name(2, "gate")] *= np.float32(factor)
    path = ours.write()
    assert main([str(path)]) == code
    out = capsys.readouterr().out
    assert f"{severity}: " in out
    assert ("model.layers.2.mlp.gate_proj.weight" in out) == (factor > 1)
    assert main([str(path), "--against", str(path)]) == code


def test_one_of_two_models_in_a_file(
    checkpoint: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = {name: torch.from_numpy(value) for name, value in checkpoint(widths=(16,) * 3).tensors.items()}
    averaged = {name: 2 * value for name, value in plain.items()}
    torch.save({"model": plain, "ema": averaged}, tmp_path / "m.pt")
    assert main([str(tmp_path / "m.pt")]) == 2
    assert names(capsys.readouterr().err, tmp_path / "m.pt", "model", "ema", "--weights")
    read = {}
    for chosen in ("model", "ema"):
        assert main([str(tmp_path / "m.pt"), "--weights", chosen, "--json", str(tmp_path / "f.json")]) == 0
        read[chosen] = json.loads((tmp_path / "f.json").read_text())
        assert read[chosen]["options"]["weights"] == chosen
        out, err = capsys.readouterr()
        assert names(err, tmp_path / "f.json")
        assert names(out, chosen, "3 layers")
    norms = [read[chosen]["layers"][1]["measures"]["spectral_norm.q"] for chosen in ("model", "ema")]
    assert norms[1] == pytest.approx(4 * norms[0])  # the scale of the norm before it is doubled too
    both = [str(tmp_path / "m.pt"), "--against", str(tmp_path / "m.pt"), "--weights", "model", "--weights", "ema"]
    assert main([*both, "--json", str(tmp_path / "f.json")]) == 0
    assert main([str(tmp_path / "m.pt"), "--weights", "model", "--weights", "ema"]) == 2
    assert names(capsys.readouterr().err, "--weights model --weights ema")
    assert main([str(tmp_path / "m.pt"), "--weights", "emma"]) == 2
    assert names(capsys.readouterr().err, "emma", "did you mean 'ema'?")


def test_a_critical_pathology_of_the_past_still_sets_the_exit_code(
    checkpoint: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for step, factor in ((1, 200), (2, 1)):
        ours = checkpoint(widths=(16,) * 4, path=f"run/checkpoint-{step}")
        ours.tensors[ours.name(2, "gate")] *= np.float32(factor)
        ours.write()
    assert main([str(tmp_path / "run")]) == 1
    assert names(capsys.readouterr().out, "critical at step 1", "model.layers.2.mlp.gate_proj.weight")


def test_the_process_exits_with_the_code(checkpoint: Callable[..., Any]) -> None:
    ours = checkpoint(widths=(16,) * 4)
    ours.tensors[ours.name(2, "gate")] *= np.float32(200)
    done = _run(ours.write(), PYTHONIOENCODING="ascii")  # a terminal that lacks most of the page's characters
    assert done.returncode == 1
    assert done.stderr == ""
    assert "critical" in done.stdout


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
    assert names(capsys.readouterr().err, "step_00000000", "1 newer checkpoint(s)")


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
    assert names(capsys.readouterr().err, tmp_path / "absent/f.json", tmp_path / "absent")


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


def _run(path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "orchestrator.forensics", str(path)]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
