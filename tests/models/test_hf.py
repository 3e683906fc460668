"""Round trips through transformers' files and stock Llama."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from models.hf import LayeredDecoderForCausalLM, to_huggingface
from models.spec import DecoderSpec, LayerShape
from models.transformer import Decoder, init_weights
from tests.naming import naming

SHAPE = LayerShape(32, 4, 2, 8, 64)
SPECS = {
    "llama": DecoderSpec((SHAPE,) * 2, 50, norm="pre"),
    "untied llama": DecoderSpec((SHAPE,) * 2, 50, norm="pre", tie_embeddings=False),
    "sandwich": DecoderSpec((SHAPE,) * 2, 50),
    "ramp": DecoderSpec((LayerShape(16, 2, 1, 8, 48), SHAPE), 50, norm="pre"),
    "untied ramp": DecoderSpec((LayerShape(16, 2, 1, 8, 48), SHAPE), 50, tie_embeddings=False),
    "indivisible": DecoderSpec((LayerShape(32, 3, 3, 8, 64),) * 2, 50, norm="pre"),
}
ROWS = torch.randint(0, 50, (2, 10), generator=torch.Generator().manual_seed(0))


def built(name: str) -> Decoder:
    model = Decoder(SPECS[name])
    init_weights(model, 0)
    return model


@pytest.mark.parametrize("name", SPECS)
def test_saved_models_come_back_through_the_auto_class(name: str, tmp_path: Path) -> None:
    model = built(name)
    to_huggingface(model).save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert isinstance(loaded, LlamaForCausalLM if name.endswith("llama") else LayeredDecoderForCausalLM)
    with torch.no_grad():
        tolerance = {"atol": 1e-5, "rtol": 1e-5} if name.endswith("llama") else {"atol": 0, "rtol": 0}
        torch.testing.assert_close(loaded(ROWS).logits, model(ROWS), **tolerance)
        torch.testing.assert_close(loaded(ROWS, labels=ROWS).loss, model.loss(ROWS), atol=1e-5, rtol=0)
    with safe_open(tmp_path / "model.safetensors", "pt") as saved:
        assert set(saved.keys()) == set(model.state_dict())


@pytest.mark.parametrize("name", ["llama", "ramp"])
@pytest.mark.parametrize("use_cache", [True, False])
def test_generate_continues_with_the_likeliest_token(name: str, use_cache: bool) -> None:
    model = built(name)
    expected = ROWS
    with torch.no_grad():
        for _ in range(6):
            expected = torch.cat((expected, model(expected)[:, -1:].argmax(-1)), dim=1)
        written = to_huggingface(model).generate(ROWS, max_new_tokens=6, do_sample=False, use_cache=use_cache)
    assert torch.equal(written, expected)


def test_padding_on_the_left_is_refused_and_on_the_right_is_harmless() -> None:
    ours = to_huggingface(built("ramp"))
    mask = torch.ones_like(ROWS)
    mask[0, 7:] = 0
    with torch.no_grad():
        assert torch.equal(ours(ROWS, attention_mask=mask).logits[0, :7], ours(ROWS).logits[0, :7])
        with pytest.raises(ValueError, match=naming("attention_mask", "on the right")):
            ours(ROWS, attention_mask=mask.flip(1))
