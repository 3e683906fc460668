"""Cells that begin with the weights of a checkpoint."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers

from models.hf import llama_config
from models.spec import DecoderSpec, LayerShape
from orchestrator.common.errors import UserError
from orchestrator.storage import checkpoint
from orchestrator.training import initial_weights
from tests.naming import names, naming
from tests.orchestrator.training.cells import Crash, CrashAt, complete, fingerprints, new_cell, new_experiment, run_with

SPEC = DecoderSpec((LayerShape(16, 4, 4, 4, 48),) * 3, 264, norm="pre")  # as `small` and model.norm=pre describe it
TOKENS = torch.randint(0, 264, (2, 20), generator=torch.Generator().manual_seed(3))


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "llama"
    transformers.LlamaForCausalLM(llama_config(SPEC)).save_pretrained(path)
    return path


@pytest.fixture
def begun(small: list[str], llama: Path) -> list[str]:
    return [*small, "model=nano", *(one for one in small if one.startswith("model.")), f"train.init_from={llama}"]


def test_a_cell_computes_at_step_0_what_the_source_does_and_resumes_without_it(
    begun: list[str], llama: Path, tmp_path: Path
) -> None:
    source = transformers.AutoModelForCausalLM.from_pretrained(llama)
    whole = new_cell(begun, tmp_path / "whole")
    assert complete(whole)
    first = checkpoint.load_decoder(whole.directory / "checkpoints/step_00000000")
    with torch.no_grad():
        torch.testing.assert_close(first(TOKENS), source(TOKENS).logits, rtol=0, atol=1e-5)
    cell = new_cell(begun, tmp_path / "crashed")
    with pytest.raises(Crash):
        run_with(cell, CrashAt(5))
    shutil.rmtree(llama)
    assert complete(cell)
    assert fingerprints(cell) == fingerprints(whole)


def test_a_cell_of_ours_is_a_beginning_too_for_every_seed(small: list[str], tmp_path: Path) -> None:
    source = new_cell([*small, "width=ramp", "name=first"], tmp_path / "source")
    assert complete(source)
    overrides = [*small, "width=ramp", f"train.init_from='{source.directory}'", "seeds=[3,4]", "train.steps=1"]
    for cell in new_experiment(overrides, tmp_path / "next").cells:
        assert complete(cell)
        first = checkpoint.read_tensors(cell.directory / "checkpoints/step_00000000", "model")
        last = checkpoint.read_tensors(source.directory / "checkpoints/step_00000012", "model")
        assert first.keys() == last.keys()
        assert all(torch.equal(first[name], last[name]) for name in first)


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("model.layers=2", ["model.layers", "2 against 3"]),
        ("model.width=20", ["model.width", "20 against 16"]),
        ("model.head_dim=8", ["model.head_dim", "8 against 4"]),
        ("model.queries_per_kv=2", ["model.queries_per_kv", "2 against 4"]),
        ("model.ffn_ratio=2", ["model.ffn_ratio", "32 against 48"]),
        ("model.vocab_size=300", ["model.vocab_size", "300 against 264"]),
        ("model.norm=sandwich", ["model.norm", "sandwich against pre"]),
        ("model.tie_embeddings=false", ["model.tie_embeddings", "False against True"]),
        ("model.rope_theta=500", ["model.rope_theta", "500.0 against 10000.0"]),
        ("model.norm_eps=1e-5", ["model.norm_eps", "1e-05 against 1e-06"]),
        ("width.profile=ramp", ["model.width", "[16, 16, 16]"]),
    ],
)
def test_a_model_of_another_shape_is_refused_with_the_key(
    override: str, named: list[str], begun: list[str], llama: Path, tmp_path: Path
) -> None:
    extra = ["width.end=1.5"] if "ramp" in override else []
    given = [one for one in begun if one.partition("=")[0] != override.partition("=")[0]]
    cell = new_cell([*given, override, *extra], tmp_path / "cells")
    with pytest.raises(UserError, match=naming(llama, *named)):
        initial_weights.check(cell.config)


def test_a_launch_refuses_what_cannot_be_a_beginning(
    small: list[str], tmp_path: Path, orchestrate: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert orchestrate(*small, f"train.init_from={tmp_path}/absent", "dry_run=true") == 2
    assert names(capsys.readouterr().err, "train.init_from", tmp_path / "absent")
    transformers.GPT2Config().save_pretrained(tmp_path / "gpt2")
    (tmp_path / "gpt2/model.safetensors").touch()
    assert orchestrate(*small, f"train.init_from={tmp_path}/gpt2") == 2
    assert names(capsys.readouterr().err, "train.init_from", "model_type=gpt2")
    assert not list(tmp_path.glob("outputs/*"))
