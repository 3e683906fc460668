"""`--import`: a choice with which a cell begins with the weights of another model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from transformers import AutoModelForCausalLM

from models.spec import DecoderSpec, LayerShape
from models.width import build_spec
from orchestrator.config import load
from orchestrator.export import main
from orchestrator.interventions.imported import keys_of, misfit, spec_at
from orchestrator.storage import checkpoint
from tests.naming import names, naming
from tests.orchestrator.interventions.models import SIZES

TOKENS = torch.randint(0, 41, (2, 20), generator=torch.Generator().manual_seed(3))


def test_a_cell_starts_from_a_foreign_llama(
    llama: Path, small: list[str], tmp_path: Path, orchestrate: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(llama), str(tmp_path / "conf"), "--import"]) == 0
    printed = capsys.readouterr().out
    assert names(printed, llama, "model=imported")
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(" ".join("abcd"[(i * j) % 4] for j in range(1, 40)) for i in range(1, 400)))
    command = printed.strip().splitlines()[-1].split()
    assert command[:3] == ["python", "-m", "orchestrator"]
    data = ["data=files", f"data.domains.text.path={text}"]
    others = [one for one in small if not one.startswith("model.")]
    assert orchestrate(*command[3:], *data, *others, "train.steps=2", "name=begun") == 0
    cell = tmp_path / "outputs/begun/main/seed=0"
    assert load.from_file(cell / "config.yaml").train.init_from == str(llama)
    first = checkpoint.load_decoder(cell / "checkpoints/step_00000000")
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(llama)(TOKENS).logits
        torch.testing.assert_close(first(TOKENS), expected, rtol=0, atol=1e-5)


def test_a_cell_of_ours_brings_its_widths(cell: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(cell), str(tmp_path / "conf"), "--import"]) == 0
    assert names(capsys.readouterr().out, "model=imported width=imported")
    chosen = yaml.safe_load((tmp_path / "conf/model/imported.yaml").read_text())
    width = yaml.safe_load((tmp_path / "conf/width/imported.yaml").read_text())
    source = checkpoint.find(cell)
    assert chosen["train"]["init_from"] == str(source)
    assert chosen["data"]["tokenizer"] == {"kind": "byte"}
    built = build_spec(**chosen["model"], **width, seq_len=16)
    assert built == spec_at(source)
    assert misfit(built, spec_at(source)) is None


@pytest.mark.parametrize(
    "sizes",
    [
        {"layers": 2, "width": 576, "head_dim": 64, "queries_per_kv": 3, "ffn_ratio": 1536 / 576},
        {"layers": 3, "width": 100, "head_dim": 20, "ffn_ratio": 1.77},
        {"layers": 4, "width": 64, "head_dim": 16, "profile": "ramp", "start": 0.5, "end": 1.5},
        {"layers": 4, "width": 64, "head_dim": 16, "profile": "x_shape", "start": 1.3, "end": 0.7, "heads": "equal"},
        {"layers": 4, "width": 64, "head_dim": 16, "profile": "ramp", "start": 0.8, "end": 1.2, "heads": "nearest"},
        {"layers": 4, "width": 64, "head_dim": 16, "profile": "ramp", "start": 0.8, "end": 1.2, "match": "params"},
    ],
)
def test_keys_describe_the_spec_that_they_are_made_of(sizes: dict[str, Any]) -> None:
    spec = build_spec(vocab_size=50, seq_len=16, norm="pre", tie_embeddings=False, rope_theta=5e5, **sizes)
    keys = keys_of(spec)
    assert build_spec(**keys["model"], **keys["width"], seq_len=16) == spec


def test_sizes_that_no_keys_describe_are_refused() -> None:
    with pytest.raises(ValueError, match=naming("4 heads of 12", "width 16")):
        keys_of(DecoderSpec((LayerShape(16, 4, 4, 12, 24),), 50))
    with pytest.raises(ValueError, match=naming("sizes")):
        keys_of(DecoderSpec((LayerShape(16, 2, 2, 8, 24),) * 2, 50, embedding=24))


def test_a_foreign_family_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    transformers.GPTNeoXConfig(**SIZES).save_pretrained(tmp_path / "neox")
    (tmp_path / "neox/model.safetensors").touch()
    assert main([str(tmp_path / "neox"), str(tmp_path / "conf"), "--import"]) == 2
    assert names(capsys.readouterr().err, tmp_path / "neox", "model_type=gpt_neox")
    assert not (tmp_path / "conf").exists()
