"""Gradient–weight cosines against transformers' own loss, split by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from orchestrator.common.errors import UserError
from orchestrator.forensics.analyzer import analyze
from orchestrator.forensics.measures import gradients
from orchestrator.forensics.output import read
from tests.naming import naming
from tests.orchestrator.forensics.measures.test_runner import SIZES, save_llama, save_tokenizer
from tests.orchestrator.forensics.untrained import model, spec, write

TOKENS = torch.randint(0, 16, (5, 9), generator=torch.Generator().manual_seed(0))


def _cosine(gradient: torch.Tensor, w: torch.Tensor) -> float:
    g, w = (x.detach().double().numpy().ravel() for x in (gradient, w))
    return float(-(g @ w) / np.linalg.norm(g) / np.linalg.norm(w))


def _mean_cosines(of: Any, cut: Any) -> list[dict[str, float]]:
    """Mean over passes of 2, 2 and 1 rows, by the model's own loss; `cut`: a layer's tensor → kind → matrix."""
    passes = []
    for rows in TOKENS.split(2):
        of.zero_grad()
        of(rows, labels=rows).loss.backward()
        passes.append([cut(lambda name, i=i: of.get_parameter(name.format(i))) for i in range(2)])
    return [{kind: float(np.mean([p[i][kind] for p in passes])) for kind in passes[0][i]} for i in range(2)]


def _llama(get: Any) -> dict[str, float]:
    names = {kind: f"self_attn.{kind}_proj" for kind in "qkvo"} | {k: f"mlp.{k}_proj" for k in ("gate", "up", "down")}
    found = {kind: get(f"model.layers.{{}}.{name}.weight") for kind, name in names.items()}
    return {kind: _cosine(w.grad, w) for kind, w in found.items()}


def _gpt2(get: Any) -> dict[str, float]:
    fused = get("transformer.h.{}.attn.c_attn.weight")
    cosines = {
        kind: _cosine(fused.grad[:, 16 * at : 16 * at + 16], fused[:, 16 * at : 16 * at + 16])
        for at, kind in enumerate("qkv")
    }
    for kind, name in {"o": "attn.c_proj", "up": "mlp.c_fc", "down": "mlp.c_proj"}.items():
        w = get(f"transformer.h.{{}}.{name}.weight")
        cosines[kind] = _cosine(w.grad, w)
    return cosines


@pytest.mark.parametrize("live", [True, False])
@pytest.mark.parametrize(("kind", "cut"), [("llama", _llama), ("gpt2", _gpt2)])
def test_every_matrix_against_the_models_own_loss(
    kind: str, cut: Any, live: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gradients, "GROUP", 18)
    torch.manual_seed(0)
    of = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(kind, **SIZES)).eval()
    of.save_pretrained(tmp_path)
    reading = analyze(of if live else tmp_path, gradients=TOKENS)
    assert reading.options.gradients == 45
    assert all(parameter.grad is None for parameter in of.parameters())  # a live module is left as it is
    for layer, expected in zip(reading.layers, _mean_cosines(of, cut), strict=True):
        for matrix, cosine in expected.items():
            assert layer.measures[f"gradient_alignment.{matrix}"] == pytest.approx(cosine, rel=1e-3, abs=1e-6)
            assert layer.measures[f"gradient_alignment.{matrix}_chance"] > 0
            assert layer.measures[f"momentum_alignment.{matrix}"] is None


def test_our_own_checkpoints(tmp_path: Path) -> None:
    decoder = model(spec(layers=2), 0)
    reading = analyze(write(decoder, tmp_path / "step"), gradients=TOKENS)
    decoder.loss(TOKENS).backward()
    for i, layer in enumerate(reading.layers):
        w = decoder.get_parameter(f"model.layers.{i}.mlp.down_proj.weight")
        assert layer.measures["gradient_alignment.down"] == pytest.approx(_cosine(w.grad, w), rel=1e-3)


def test_without_a_next_token_loss_it_is_refused(tmp_path: Path) -> None:
    transformers.BertForMaskedLM(transformers.BertConfig(**SIZES)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=naming(tmp_path, "gradients")):
        analyze(tmp_path, gradients=TOKENS)
    with pytest.raises(UserError, match="outside the vocabulary"):
        analyze(transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES)), gradients=TOKENS + 16)
    with pytest.raises(UserError, match="1 token"):
        analyze(transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES)), gradients=TOKENS[:, :1])


def test_text_from_the_command_line(tmp_path: Path) -> None:
    save_llama(tmp_path)
    save_tokenizer(tmp_path)
    output = read(str(tmp_path), gradients="a b c d a b", device="cpu", clock=lambda: 0.0, progress=lambda line: None)
    (reading,) = output.readings
    assert reading.options.gradients == 7  # with the BOS
    assert reading.options.tokens is None
    assert reading.layers[0].measures["gradient_alignment.q"] is not None
