"""Round trips through transformers' files and stock classes, and the class that is shipped for the others."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, Gemma2ForCausalLM, LlamaForCausalLM

from models.hf import from_huggingface, llama_config, spec_of, to_huggingface
from models.layered_decoder import LayeredDecoderForCausalLM
from models.spec import DecoderSpec, LayerShape
from models.transformer import Decoder, init_weights
from tests.naming import naming

SHAPE = LayerShape(32, 4, 2, 8, 64)
RAMP = (LayerShape(16, 2, 1, 8, 48), SHAPE)
SPECS = {
    "llama": DecoderSpec((SHAPE,) * 2, 50, norm="pre"),
    "untied llama": DecoderSpec((SHAPE,) * 2, 50, norm="pre", tie_embeddings=False, rope_theta=500.0, norm_eps=1e-3),
    "gemma": DecoderSpec((SHAPE,) * 2, 50),
    "untied gemma": DecoderSpec((SHAPE,) * 2, 50, tie_embeddings=False, rope_theta=500.0, norm_eps=1e-3),
    "long-headed gemma": DecoderSpec((LayerShape(32, 4, 4, 16, 64),) * 2, 50),
    "ramp": DecoderSpec(RAMP, 50, norm="pre"),
    "untied ramp": DecoderSpec(RAMP, 50, tie_embeddings=False),
    "indivisible": DecoderSpec((LayerShape(32, 3, 3, 8, 64),) * 2, 50, norm="pre"),
    "pruned": DecoderSpec((SHAPE, *RAMP, SHAPE), 50).without([0, 3]),
    "wider ends": DecoderSpec((SHAPE,) * 2, 50, norm="pre", embedding=40, head=36),
}
CLASSES = {"llama": LlamaForCausalLM, "gemma": Gemma2ForCausalLM}
ROWS = torch.randint(0, 50, (2, 10), generator=torch.Generator().manual_seed(0))


def built(name: str) -> Decoder:
    model = Decoder(SPECS[name])
    init_weights(model, 0)
    with torch.no_grad():
        for at, parameter in enumerate(model.parameters()):  # norm scales that are not 1
            parameter.mul_(0.5 + torch.rand(parameter.shape, generator=torch.Generator().manual_seed(at)))
    return model


def tolerance(name: str) -> dict[str, float]:
    return {"atol": 1e-5, "rtol": 1e-5} if name.split()[-1] in CLASSES else {"atol": 0, "rtol": 0}


@pytest.mark.parametrize("name", SPECS)
def test_saved_models_come_back_through_the_auto_class(name: str, tmp_path: Path) -> None:
    model = built(name)
    to_huggingface(model).save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert isinstance(loaded, CLASSES.get(name.split()[-1], LayeredDecoderForCausalLM))
    with torch.no_grad():
        torch.testing.assert_close(loaded(ROWS).logits, model(ROWS), **tolerance(name))
        torch.testing.assert_close(loaded(ROWS, labels=ROWS).loss, model.loss(ROWS), atol=1e-5, rtol=0)
        again = from_huggingface(loaded)
        assert again.spec == model.spec
        torch.testing.assert_close(again(ROWS), model(ROWS), atol=1e-6, rtol=1e-6)
    with safe_open(tmp_path / "model.safetensors", "pt") as saved:
        assert set(saved.keys()) == set(model.state_dict())


SHIPPED = """
import sys
from importlib.abc import MetaPathFinder

class Absent(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("models", "orchestrator", "sidecar"):
            raise ModuleNotFoundError(f"No module named {name!r}")

sys.meta_path.insert(0, Absent())
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

for folder in sys.argv[1:]:
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    rows = load_file(f"{folder}/rows.safetensors")["rows"]
    written = model.generate(rows, max_new_tokens=6, do_sample=False)
    save_file({"logits": model(rows).logits.detach(), "written": written}, f"{folder}/found.safetensors")
    model.save_pretrained(f"{folder}/again")
"""


def test_the_class_is_shipped_to_where_this_project_is_not(tmp_path: Path) -> None:
    names = ["ramp", "untied ramp", "pruned"]
    for name in names:
        to_huggingface(built(name)).save_pretrained(tmp_path / name)
        save_file({"rows": ROWS}, tmp_path / name / "rows.safetensors")
    environment = {"PATH": os.environ["PATH"], "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-I", "-c", SHIPPED, *(str(tmp_path / name) for name in names)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    for name in names:
        model = built(name)
        with safe_open(tmp_path / name / "found.safetensors", "pt") as found, torch.no_grad():
            torch.testing.assert_close(found.get_tensor("logits"), model(ROWS), atol=1e-5, rtol=0)
            assert torch.equal(found.get_tensor("written"), continued(model, 6))
        again = AutoModelForCausalLM.from_pretrained(tmp_path / name / "again")  # saved there, by the shipped class
        with torch.no_grad():
            assert torch.equal(again(ROWS).logits, model(ROWS))
        assert {path.name for path in (tmp_path / name).glob("*.py")} == {
            path.name for path in (tmp_path / name / "again").glob("*.py")
        }


def continued(model: Decoder, count: int) -> torch.Tensor:
    rows = ROWS
    with torch.no_grad():
        for _ in range(count):
            rows = torch.cat((rows, model(rows)[:, -1:].argmax(-1)), dim=1)
    return rows


@pytest.mark.parametrize("name", ["llama", "gemma", "ramp"])
@pytest.mark.parametrize("use_cache", [True, False])
def test_generate_continues_with_the_likeliest_token(name: str, use_cache: bool) -> None:
    model = built(name)
    written = to_huggingface(model).generate(ROWS, max_new_tokens=6, do_sample=False, use_cache=use_cache)
    assert torch.equal(written, continued(model, 6))


def test_padding_on_the_left_is_refused_and_on_the_right_is_harmless() -> None:
    ours = to_huggingface(built("ramp"))
    mask = torch.ones_like(ROWS)
    mask[0, 7:] = 0
    with torch.no_grad():
        assert torch.equal(ours(ROWS, attention_mask=mask).logits[0, :7], ours(ROWS).logits[0, :7])
        with pytest.raises(ValueError, match=naming("attention_mask", "on the right")):
            ours(ROWS, attention_mask=mask.flip(1))


SIZES: dict[str, Any] = {
    "vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip
FOREIGN: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaForCausalLM(transformers.LlamaConfig(**SIZES)),
    "untied llama": lambda: LlamaForCausalLM(
        transformers.LlamaConfig(**SIZES, tie_word_embeddings=False, rms_norm_eps=1e-5, head_dim=12)
    ),
    "mistral": lambda: transformers.MistralForCausalLM(transformers.MistralConfig(**SIZES, sliding_window=None)),
    "gemma2": lambda: Gemma2ForCausalLM(
        transformers.Gemma2Config(
            **SIZES, head_dim=8, query_pre_attn_scalar=8, hidden_activation="silu", attn_logit_softcapping=None,
            final_logit_softcapping=None, layer_types=["full_attention"] * 3,
        )
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_model_of_the_shape_is_a_decoder(name: str) -> None:
    torch.manual_seed(1)
    model = FOREIGN[name]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
        torch.testing.assert_close(from_huggingface(model)(ROWS), model(ROWS).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("attention_bias", True),
        ("mlp_bias", True),
        ("hidden_act", "gelu"),
        ("rope_parameters", {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}),
    ],
)
def test_what_no_decoder_of_ours_has_is_refused_by_its_key(key: str, value: Any) -> None:
    config = llama_config(SPECS["llama"])
    assert spec_of(config) == SPECS["llama"]
    setattr(config, key, value)
    with pytest.raises(ValueError, match=naming(key)):
        spec_of(config)


def test_windows_and_other_families_are_refused() -> None:
    with pytest.raises(ValueError, match=naming("sliding_window=4096")):
        spec_of(transformers.MistralConfig(**SIZES, sliding_window=4096))
    with pytest.raises(ValueError, match=naming("hidden_activation=gelu_pytorch_tanh")):
        spec_of(transformers.Gemma2Config(**SIZES, head_dim=8))
    with pytest.raises(ValueError, match=naming("model_type=qwen3")):
        spec_of(transformers.Qwen3Config(**SIZES))


def test_what_needs_a_class_of_its_own_is_not_a_stock_model() -> None:
    for changed in ({"embedding": 40}, {"head": 24}, {"layers": RAMP}):
        assert isinstance(to_huggingface(Decoder(replace(SPECS["llama"], **changed))), LayeredDecoderForCausalLM)  # type: ignore[arg-type]
