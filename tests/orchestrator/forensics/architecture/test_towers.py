"""Encoders beside a text model: read by name, in the order of heads that their own modules have."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CLIPConfig, CLIPModel

from orchestrator.common.errors import UserError
from orchestrator.forensics.analyzer import analyze
from orchestrator.forensics.architecture.description import Description, tower
from orchestrator.forensics.architecture.model import CheckpointModel
from tests.naming import names, naming
from tests.orchestrator.forensics.architecture.zoo.flow import TOKENS, Recorder, silence
from tests.orchestrator.forensics.architecture.zoo.tiny import WIDTH, build
from tests.orchestrator.forensics.architecture.zoo.truth import same, scale_of

TOWERS: dict[str, dict[str, Any]] = {
    "qwen2_vl": {"depth": 2, "embed_dim": 64, "hidden_size": WIDTH, "num_heads": 4, "mlp_ratio": 2},
    "qwen2_5_vl": {"depth": 2, "hidden_size": 64, "out_hidden_size": WIDTH, "num_heads": 4, "intermediate_size": 40},
}


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("mark", TOWERS)
def test_qwens_vision_towers(tmp_path: Path, mark: str) -> None:
    model: Any = build(mark, vision_config=TOWERS[mark])
    model.save_pretrained(tmp_path)
    opened = CheckpointModel(tmp_path, weights="visual")
    assert (opened.family_name, len(opened), opened.assumed) == (f"{mark}_vision", 2, [])
    silence(model)
    model.requires_grad_(False)
    x = torch.randn(TOKENS, 64, generator=torch.Generator().manual_seed(0))
    still = (torch.ones(TOKENS, 16), torch.zeros(TOKENS, 16))  # no rotation
    for layer, block in zip(opened, model.model.visual.blocks, strict=True):
        recorder = Recorder()
        with recorder:
            written = block.attn(x, cu_seqlens=torch.tensor([0, TOKENS]), position_embeddings=still)
        seen = recorder.attentions[0]
        q, k, v = ((x @ layer.weight(kind).T).unflatten(-1, (4, 16)).transpose(0, 1) for kind in "qkv")
        assert same(v, seen.value)
        scores = (q @ k.mT / 16**0.5).softmax(-1)
        assert same((scores @ v).transpose(0, 1).flatten(1) @ layer.weight("o").T, written)
        up = x @ layer.weight("up").T
        if "gate" in layer.kinds:
            inner = torch.nn.functional.silu(x @ layer.weight("gate").T) * up
        else:
            inner = up * torch.sigmoid(1.702 * up)
        assert same(inner @ layer.weight("down").T, block.mlp(x))
        for place, norm in {"pre_attention": block.norm1, "pre_ffn": block.norm2}.items():
            gamma, wanted = layer.norm(place), scale_of(norm, 64)
            assert gamma is not None
            assert torch.allclose(gamma, wanted, rtol=3e-3, atol=3e-3)
    assert [layer.holds for layer in analyze(tmp_path, weights="visual").layers] == [["attention", "FFN"]] * 2
    text = CheckpointModel(tmp_path)
    assert len(text) == 3
    assert [said for said in text.assumed if names(said, "--weights visual")]


def test_two_encoders_side_by_side(tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = sizes | {"image_size": 8, "patch_size": 4, "num_hidden_layers": 3}
    model = CLIPModel(CLIPConfig(text_config=sizes | {"vocab_size": 32}, vision_config=vision, projection_dim=8))
    model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=naming("--weights text_model", "--weights vision_model")):
        CheckpointModel(tmp_path)
    assert len(CheckpointModel(tmp_path, weights="text_model")) == 2
    for name in ("vision_model", "visual", "vision"):
        tower = CheckpointModel(tmp_path, weights=name)
        truth = model.vision_model.encoder.layers[2].self_attn.q_proj.weight
        assert len(tower) == 3
        assert torch.equal(tower.layer(2).weight("q"), truth)
    with pytest.raises(UserError, match=naming("text_model, vision_model")) as refusal:
        CheckpointModel(tmp_path, weights="teacher")
    assert not names(refusal.value, "logit_scale")


def test_a_tower_that_nothing_describes() -> None:
    assert tower(Description(config={"model_type": "llama"}), "visual") == Description()
    with pytest.raises(UserError, match=naming("vision_config")):
        tower(Description(config={"vision_config": {"depth": "many"}}), "visual")
