"""The command, from a source to a directory that `AutoModelForCausalLM` loads."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
import transformers
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from models.transformer import Decoder
from orchestrator import intervene
from orchestrator.config import load
from orchestrator.data import prepare
from orchestrator.export import main
from orchestrator.interventions import export as library
from orchestrator.interventions.export_report import _cost
from orchestrator.interventions.measured import SUM
from tests.naming import names
from tests.orchestrator.forensics.measures.test_runner import save_tokenizer
from tests.orchestrator.interventions.conftest import decoder_of
from tests.orchestrator.interventions.models import LAYERS, SIZES

TEXT = "def f(x): ☃ é\n"


def without(decoder: Decoder, layer: int) -> Decoder:
    """The decoder with every write of a layer zero, which for ours is the layer left out."""
    block: Any = decoder.model.layers[layer]
    with torch.no_grad():
        block.self_attn.o_proj.weight.zero_()
        block.mlp.down_proj.weight.zero_()
    return decoder


def test_a_cell_without_a_layer_scores_what_was_promised(
    cell: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target, out = tmp_path / "exported", tmp_path / "out.json"
    assert main([str(cell), str(target), "--drop", "1", "--documents", "5", "--json", str(out)]) == 0
    result = json.loads(out.read_text())
    assert (result["layers"], result["dropped"], result["class"]) == (LAYERS, [1], "LayeredDecoderForCausalLM")
    assert result["parameters"]["before"] == sum(p.numel() for p in decoder_of(7).parameters())
    assert result["parameters"]["before"] - result["parameters"]["exported"] == sum(
        p.numel() for p in decoder_of(7).model.layers[1].parameters()
    )
    corpus = prepare(load.from_file(cell / "config.yaml").data, 264, 16)
    model = AutoModelForCausalLM.from_pretrained(target)
    for domain, of in result["loss"].items():
        rows = corpus.heldout(domain, "validation")
        rows = rows[torch.linspace(0, len(rows) - 1, 5).long()]
        with torch.no_grad():
            assert of["before"] == pytest.approx(decoder_of(7).loss(rows).item(), abs=1e-5)
            assert of["promised"] == pytest.approx(without(decoder_of(7), 1).loss(rows).item(), abs=1e-5)
            assert of["exported"] == pytest.approx(model(rows, labels=rows).loss.item(), abs=1e-5)
    assert result["largest_logit_difference"] < 1e-5
    assert names(capsys.readouterr().out, target, "3 of 4 layers", "without 1", "words", "numbers")
    assert not list(tmp_path.glob(".*partial"))


def test_what_was_predicted_is_told_beside_what_it_costs(
    cell: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evidence, out = tmp_path / "evidence.json", tmp_path / "out.json"
    measure = ["--documents", "6"]
    assert intervene.main([str(cell), "--edits", "delete", *measure, "--json", str(evidence)]) == 0
    line = json.loads(evidence.read_text())["advice"]["lines"][0]
    assert line["command"].endswith(f"--documents 6 --evidence {evidence}")
    capsys.readouterr()
    arguments = ["--drop", "1,3", *measure, "--evidence", str(evidence), "--json", str(out)]
    assert main([str(cell), str(tmp_path / "exported"), *arguments]) == 0
    result = json.loads(out.read_text())
    assert (result["prediction"]["how"], result["prediction"]["same_text"]) == (SUM, True)
    corpus = prepare(load.from_file(cell / "config.yaml").data, 264, 16)
    for domain, rise in result["rise"].items():
        rows = corpus.heldout(domain, "validation")
        rows = rows[torch.linspace(0, len(rows) - 1, 6).long()]
        with torch.no_grad():
            whole, one, three, both = (
                [decoder.loss(row[None]).item() for row in rows]
                for decoder in (
                    decoder_of(7),
                    without(decoder_of(7), 1),
                    without(decoder_of(7), 3),
                    without(without(decoder_of(7), 1), 3),
                )
            )
        rises = np.array(both) - whole
        assert rise["mean"] == pytest.approx(rises.mean(), abs=1e-5)
        half = scipy.stats.t.ppf(0.975, 5) * rises.std(ddof=1) / 6**0.5  # all documents are as long
        assert rise["low"] <= rises.mean() - half + 1e-5
        assert rise["high"] >= rises.mean() + half - 1e-5
        found = result["prediction"]["cost"][domain]
        assert found["mean"] == pytest.approx(np.mean(one) + np.mean(three) - 2 * np.mean(whole), abs=1e-5)
        assert found["low"] < found["mean"] < found["high"]
    assert capsys.readouterr().out.count(": predicted ") == 2


@pytest.mark.parametrize(("half", "told"), [(0.1, False), (0.01, True)])
def test_a_ratio_is_told_only_where_one_of_the_two_is_told_from_0(half: float, told: bool) -> None:
    rise, of = ({"mean": mean, "low": mean - half, "high": mean + half} for mean in (0.05, 0.02))
    result = {"rise": {"code": rise}, "prediction": {"cost": {"code": of}, "how": SUM, "same_text": True}}
    assert ("2.5 times" in next(_cost(result))) == told


def test_evidence_on_other_text_is_said_and_of_another_step_refused(
    cell: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evidence = tmp_path / "evidence.json"
    arguments = ["--drop", "1", "--evidence", str(evidence), "--documents"]
    assert intervene.main([str(cell), "--edits", "delete", "--documents", "2", "--json", str(evidence)]) == 0
    assert main([str(cell), str(tmp_path / "a"), *arguments, "3"]) == 0
    assert names(capsys.readouterr().out, "other text")
    renamed = tmp_path / "renamed.json"
    renamed.write_text(evidence.read_text().replace('"words"', '"mine"'))
    assert main([str(cell), str(tmp_path / "c"), "--drop", "1", "--evidence", str(renamed), "--documents", "3"]) == 0
    assert names(capsys.readouterr().out, "mine: predicted", "words: measured", "numbers: predicted")
    for documents in ("2", "3"):
        assert main([str(cell / "checkpoints/step_00000000"), str(tmp_path / "b"), *arguments, documents]) == 2
        assert names(capsys.readouterr().err, evidence, cell / "checkpoints/step_00000000")
    assert not (tmp_path / "b").exists()


def test_a_whole_checkpoint_with_its_tokenizer_generates(cell: Path, tmp_path: Path) -> None:
    target = tmp_path / "exported"
    assert main([str(cell / "checkpoints/step_00000000"), str(target), "--documents", "2"]) == 0
    tokenizer, model = AutoTokenizer.from_pretrained(target), AutoModelForCausalLM.from_pretrained(target)
    rows = tokenizer(TEXT, return_tensors="pt")["input_ids"]
    assert rows[0].tolist() == list(TEXT.encode())
    assert tokenizer.decode(rows[0]) == TEXT
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == 256
    assert (tokenizer.model_max_length, model.config.max_position_embeddings) == (16, 16)
    decoder, expected = decoder_of(0), rows
    with torch.no_grad():
        torch.testing.assert_close(model(rows).logits, decoder(rows), rtol=0, atol=1e-5)
        for _ in range(5):
            expected = torch.cat((expected, decoder(expected)[:, -1:].argmax(-1)), dim=1)
    assert 256 not in expected
    assert torch.equal(model.generate(rows, max_new_tokens=5, do_sample=False), expected)


def test_a_foreign_directory_in_its_own_precision(
    llama: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.bfloat16)
    model.save_pretrained(llama)
    out, recipe = tmp_path / "out.json", tmp_path / "merge.yaml"
    arguments = ["--drop", "0,2", "--data", str(text), "--json", str(out), "--mergekit", str(recipe)]
    assert main(["llama", "pruned", *arguments]) == 0
    result = json.loads(out.read_text())
    assert (result["class"], result["dtype"], result["dropped"]) == ("LlamaForCausalLM", "bfloat16", [0, 2])
    saved, whole = (load_file(tmp_path / name / "model.safetensors") for name in ("pruned", "llama"))
    for name, tensor in saved.items():
        origin = (
            name.replace("layers.0.", "layers.a.").replace("layers.1.", "layers.3.").replace("layers.a.", "layers.1.")
        )
        assert torch.equal(tensor, whole[origin])
    assert len(saved) == len(whole) - 2 * 9
    assert (
        AutoTokenizer.from_pretrained("pruned")("a b")["input_ids"]
        == AutoTokenizer.from_pretrained(llama)("a b")["input_ids"]
    )
    merge = yaml.safe_load(recipe.read_text())
    assert [piece["sources"][0]["layer_range"] for piece in merge["slices"]] == [[1, 2], [3, 4]]
    assert {piece["sources"][0]["model"] for piece in merge["slices"]} == {"llama"}


def test_a_promise_that_is_not_kept_is_said(
    llama: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write = library._write

    def corrupt(model: Any, tokenizer: Any, context: Any, target: Path) -> None:
        write(model, tokenizer, context, target)
        tensors = load_file(target / "model.safetensors")
        save_file(
            {name: tensor * 1.5 for name, tensor in tensors.items()}, target / "model.safetensors", {"format": "pt"}
        )

    monkeypatch.setattr(library, "_write", corrupt)
    assert main([str(llama), str(tmp_path / "out"), "--data", str(text)]) == 1
    assert names(capsys.readouterr().out, tmp_path / "out", "do not use")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_export_leaves_nothing_and_says_so(
    number: signal.Signals, llama: Path, text: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    write = library._write

    def interrupted(*given: Any) -> None:
        write(*given)
        assert list(tmp_path.glob(".out.partial/*.safetensors"))
        os.kill(os.getpid(), number)

    monkeypatch.setattr(library, "_write", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # which a background process may ignore
    try:
        assert main([str(llama), str(tmp_path / "out"), "--data", str(text)]) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert names(capsys.readouterr().err.splitlines()[-1], "Interrupted", tmp_path / "out")
    assert not list(tmp_path.glob("*out*"))


def test_what_is_written_is_for_those_whom_the_umask_lets_read(llama: Path, text: Path, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        assert main([str(llama), str(tmp_path / "out"), "--data", str(text)]) == 0
    finally:
        os.umask(before)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o750
    assert {file.stat().st_mode & 0o777 for file in (tmp_path / "out").iterdir()} == {0o640}


def test_a_family_whose_layers_alternate_by_a_rule_is_refused(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = transformers.Qwen2MoeConfig(
        **SIZES, num_key_value_heads=2, moe_intermediate_size=8, shared_expert_intermediate_size=8, num_experts=4,
        decoder_sparse_step=2,
    )  # fmt: skip
    transformers.Qwen2MoeForCausalLM(config).save_pretrained(tmp_path / "moe")
    save_tokenizer(tmp_path / "moe")
    command = [str(tmp_path / "moe"), str(tmp_path / "out"), "--data", str(text), "--drop"]
    assert main([*command, "1"]) == 2
    assert names(capsys.readouterr().err, tmp_path / "moe", "qwen2_moe")
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".*partial"))
    assert main([*command, "1-2"]) == 0


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["llama", "out", "--drop", "0-3"], ["0-3", "4 layers"]),
        (["llama", "out", "--drop", "4"], ["--drop 4", "0 to 3"]),
        (["llama", "out", "--drop", ""], ["--drop"]),
        (["llama", "out", "--drop", ","], ["--drop"]),
        (["llama", "out", "--mergekit", "m.txt"], ["m.txt", ".yml or .yaml"]),
        (["llama", "llama"], ["llama", "exists"]),
        (["llama", "absent/out"], ["absent/out"]),
        (["bert", "out"], ["bert", "next token"]),
        (["bare", "out"], ["bare", "tokenizer"]),
        (["absent", "out"], ["absent"]),
        (["test", "out"], ["test", "seed=0"]),
        (["test/main/seed=0", "out", "--mergekit", "m.yaml"], ["--mergekit", "export it whole"]),
        (["llama", "out", "--import", "--drop", "1"], ["--drop", "--import"]),
        (["llama", "out", "--evidence", "notes.jsonl"], ["--evidence", "--drop"]),
        (["llama", "out", "--drop", "1", "--evidence", "notes.jsonl"], ["notes.jsonl", "JSON"]),
    ],
)
def test_what_cannot_be_exported_is_one_sentence(
    arguments: list[str], named: list[str], cell: Path, llama: Path, bert: Path, text: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, refuses: Callable[..., None],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "test/experiment.yaml").touch()
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES)).save_pretrained("bare")
    data = [] if "--import" in arguments else ["--data", str(text)]
    refuses(main, [*arguments, *data], named)
    assert not (tmp_path / "out").exists()
