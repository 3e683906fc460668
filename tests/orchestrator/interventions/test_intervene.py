"""The command, from a source and a text to the table and its files."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch.nn import functional as F

from orchestrator import export, trace
from orchestrator.config import load
from orchestrator.data import prepare
from orchestrator.intervene import main
from orchestrator.interventions import damage, samples
from orchestrator.interventions.edits import CORE, EDITS
from orchestrator.interventions.passes import Pass
from orchestrator.interventions.subject import Subject
from tests.naming import names
from tests.orchestrator.interventions.conftest import decoder_of
from tests.orchestrator.interventions.models import LAYERS, SIZES


def test_a_cell_from_end_to_end(cell: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.json"
    assert main([str(cell), "--documents", "5", "--json", str(out), "--csv", str(tmp_path / "out.csv")]) == 0
    result = json.loads(out.read_text())
    assert (result["step"], result["unit"], result["edits"]) == (7, "nats/token", list(CORE))
    assert result["documents"] == {"words": 5, "numbers": 5}
    corpus = prepare(load.from_file(cell / "config.yaml").data, 264, 16)
    decoder = decoder_of(7)
    for domain in ("words", "numbers"):
        rows = corpus.heldout(domain, "validation")
        rows = rows[torch.linspace(0, len(rows) - 1, 5).long()]
        with torch.no_grad():
            intact = decoder.loss(rows).item()
            decoder.model.layers[1].mlp.down_proj.weight.zero_()  # type: ignore[union-attr,operator]
            rise = decoder.loss(rows).item() - intact
        decoder = decoder_of(7)
        assert result["intact"][domain] == pytest.approx(intact, abs=1e-5)
        found = result["layers"][1]["damage"]["delete_ffn"][domain]
        assert found["mean"] == pytest.approx(rise, abs=1e-5)
        assert found["low"] <= found["mean"] <= found["high"]
    with (tmp_path / "out.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == LAYERS * len(CORE) * 2
    assert float(lines[0]["mean"]) == result["layers"][0]["damage"]["delete"]["words"]["mean"]
    printed = capsys.readouterr()
    assert len(re.findall(r"[+−]\d\.\d{3} \(", printed.out)) == LAYERS * len(CORE) * 2
    assert names(printed.err, f"{LAYERS * len(CORE)} trials", "10 documents")


def test_a_named_checkpoint_is_taken_instead_of_the_newest(cell: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    newest = cell / "checkpoints/step_00000000"
    assert main([str(newest), "--documents", "2", "--edits", "delete", "--json", str(out)]) == 0
    assert json.loads(out.read_text())["step"] == 0


def test_a_llama_with_its_own_text_and_every_edit(llama: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    arguments = [str(llama), "--data", f"mine={text}", "--edits", "all", "--blocks", "2"]
    assert main([*arguments, "--json", str(out)]) == 0
    result = json.loads(out.read_text())
    assert result["edits"] == [*EDITS, "delete_2"]
    model = transformers.AutoModelForCausalLM.from_pretrained(llama).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(llama)
    documents = [tokenizer(json.loads(line)["text"])["input_ids"] for line in text.read_text().split("\n")]
    documents = list({tuple(document) for document in documents if len(document) >= 8})
    losses = []
    for skipped in ([], [1, 2]):
        model.model.layers = torch.nn.ModuleList(
            layer for index, layer in enumerate(model.model.layers) if index not in skipped
        )
        model.config.num_hidden_layers = len(model.model.layers)
        total = tokens = 0.0
        for document in documents:
            row = torch.tensor([document])
            with torch.no_grad():
                total += F.cross_entropy(model(row, use_cache=False).logits[0, :-1], row[0, 1:], reduction="sum").item()
            tokens += len(document) - 1
        losses.append(total / tokens)
    assert result["documents"] == {"mine": len(documents)}
    assert result["layers"][1]["damage"]["delete_2"]["mine"]["mean"] == pytest.approx(losses[1] - losses[0], abs=1e-5)
    assert result["layers"][LAYERS - 1]["damage"]["delete_2"] is None
    assert result["layers"][LAYERS - 1]["damage"]["swap"] is None
    assert not out.with_name("out.json.partial").exists()


def test_the_page_ends_with_advice_that_json_holds(
    llama: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.json"
    arguments = [str(llama), "--data", str(text), "--edits", "delete,repeat", "--blocks", "2", "--json", str(out)]
    assert main(arguments) == 0
    result = json.loads(out.read_text())
    deletions = [line for line in result["advice"]["lines"] if line["kind"] == "delete"]
    costs = [layer["damage"]["delete"]["text"]["mean"] for layer in result["layers"]]
    assert deletions[0]["layers"] == [costs.index(min(costs))]
    assert deletions[0]["predicted"]["text"]["mean"] == min(costs)
    ffn = 3 * SIZES["hidden_size"] * SIZES["intermediate_size"]
    assert [layer["ffn_parameters"] for layer in result["layers"]] == [ffn] * LAYERS
    printed = " ".join(capsys.readouterr().out.partition("Advice")[2].split())
    assert names(printed, f"--drop {costs.index(min(costs))}", "add delete_attention to --edits")
    block = next(line for line in deletions if line["edit"] == "delete_2")
    words = shlex.split(block["command"])
    assert words[:3] == ["python", "-m", "orchestrator.export"]
    words[4] = str(tmp_path / "pruned")
    assert export.main(words[3:]) == 0
    assert names(capsys.readouterr().out, "damage of the block")


def test_an_encoder(tmp_path: Path, text: Path, bert: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(bert), "--data", str(text), "--json", str(tmp_path / "o.json")]) == 0
    result = json.loads((tmp_path / "o.json").read_text())
    assert (result["unit"], result["intact"]) == ("1 − cosine", {"text": None})
    assert all(0 < layer["damage"]["delete"]["text"]["mean"] < 2 for layer in result["layers"])
    assert "cosine" in capsys.readouterr().out


def test_an_interrupted_run_goes_on_and_ends_the_same(
    llama: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(llama), "--data", str(text), "--json"]
    assert main([*arguments, str(tmp_path / "whole.json")]) == 0
    edited, computed = Pass.edited, []

    def interrupted(*given: Any) -> Any:
        computed.append(given)
        if len(computed) == 8:  # of the 12 trials of the first batch, after one that asks whether any can be changed
            raise KeyboardInterrupt
        return edited(*given)

    monkeypatch.setattr(Pass, "edited", interrupted)
    out, kept = tmp_path / "out.json", tmp_path / "out.json.partial"
    capsys.readouterr()
    assert main([*arguments, str(out)]) == 130
    assert names(capsys.readouterr().err, "same command", kept, "6 of 12")
    assert main([str(llama), "--data", str(text), "--edits", "repeat", "--json", str(out)]) == 0  # another command
    assert names(capsys.readouterr().err, kept)
    computed.clear()
    assert main([*arguments, str(out)]) == 0
    assert len(computed) == 1 + 6
    assert names(capsys.readouterr().err, kept, "6 of 12")
    assert out.read_text().replace("out.json", "whole.json") == (tmp_path / "whole.json").read_text()
    assert not kept.exists()


def test_what_the_model_wrote_itself_is_kept_too(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(samples, "AT_ONCE", 24)  # two texts at once
    arguments = [str(llama), "--own", "--documents", "5", "--length", "12", "--edits", "delete", "--json"]
    assert main([*arguments, str(tmp_path / "whole.json")]) == 0
    assert names(capsys.readouterr().err, "Writing 5 texts")
    drawn, begun = samples._drawn, []

    def interrupted(*given: Any) -> Any:
        begun.append(given)
        if len(begun) == 3:
            raise KeyboardInterrupt
        return drawn(*given)

    monkeypatch.setattr(samples, "_drawn", interrupted)
    out = tmp_path / "out.json"
    assert main([*arguments, str(out)]) == 130
    assert names(capsys.readouterr().err, "same command", f"{out}.partial")
    torch.rand(9)  # the state of the generator is not what it was
    assert main([*arguments, str(out)]) == 0
    assert names(capsys.readouterr().err, "Writing 1 text ")
    assert out.read_text().replace("out.json", "whole.json") == (tmp_path / "whole.json").read_text()
    assert not out.with_name("out.json.partial").exists()


def test_without_a_file_an_interrupted_run_says_that_nothing_is_kept(
    llama: Path, text: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("orchestrator.interventions.intervene.LONG", 0)
    monkeypatch.setattr(damage, "measure", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    monkeypatch.setattr("orchestrator.interventions.intervene.measure", damage.measure)
    handler = signal.getsignal(signal.SIGTERM)
    assert main([str(llama), "--data", str(text)]) == 130
    before, last = capsys.readouterr().err.splitlines()[-2:]
    assert names(before, "--json")
    assert names(last, "Interrupted", "--json")
    assert signal.getsignal(signal.SIGTERM) == handler


def test_bad_input_is_one_sentence_and_exit_code_2(
    cell: Path, llama: Path, text: Path, tmp_path: Path, refuses: Callable[..., None]
) -> None:
    empty = tmp_path / "empty"
    (empty / "checkpoints").mkdir(parents=True)
    (tmp_path / "folder").mkdir()
    blank, odd = tmp_path / "blank.txt", tmp_path / "odd.jsonl"
    blank.touch()
    odd.write_text('{"txt": "a b c"}')
    cases: list[tuple[list[object], list[object]]] = [
        ([tmp_path / "nowhere"], [tmp_path / "nowhere", "exist"]),
        ([empty], [empty, "0 corrupt"]),
        ([tmp_path / "folder"], [tmp_path / "folder"]),
        ([cell, "--json", tmp_path / "no/out.json"], [tmp_path / "no/out.json", tmp_path / "no"]),
        ([llama, "--edits", "delet"], ["delet", "delete"]),
        ([llama, "--data", tmp_path / "nothing.txt"], [tmp_path / "nothing.txt", "exist"]),
        ([llama, "--data", text, "--data", text], [text, "text"]),
        ([llama, "--data", text, "--length", "41"], ["41", "40"]),
        ([llama, "--data", tmp_path / "seed=0" / "notes.txt"], [tmp_path / "seed=0" / "notes.txt", "exist"]),
        ([llama, "--edits", ""], ["--edits"]),
        ([llama, "--edits", "delete,,repeat"], ["--edits", "delete,,repeat"]),
        ([llama, "--data", ""], ["--data"]),
        ([llama, "--data", f"docs={tmp_path / 'no.txt'}"], [f"--data docs={tmp_path / 'no.txt'}", "exist"]),
        ([llama, "--data", blank], [f"--data {blank} is empty"]),
        ([llama, "--data", odd], [odd, "'text'", "txt"]),
        ([llama, "--blocks", "0"], ["--blocks", "0", "2 or more"]),
        ([cell / "checkpoints"], ["2 checkpoints", cell / "checkpoints/step_00000007"]),
        ([llama, "--data", text, "--blocks", LAYERS + 1], ["--blocks", LAYERS + 1, LAYERS]),
    ]
    for arguments, named in cases:
        refuses(main, arguments, named)


@pytest.mark.parametrize("after", [0, 1, 2, 3, 9])  # of the model's runs: as it is loaded, checked, calibrated, changed
def test_a_gpu_without_memory_is_a_sentence(
    llama: Path, text: Path, after: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A stand-in for the GPU, which says so from one run of the model on."""
    run, runs = Subject.run, iter(range(100))

    def full(*given: Any) -> torch.Tensor:
        if next(runs) >= after:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return run(*given)

    monkeypatch.setattr(Subject, "run", full)
    assert main([str(llama), "--data", str(text)]) == 2
    sentence = capsys.readouterr().err.splitlines()[-1]
    assert names(sentence, llama, "memory", "GPU", "CUDA_VISIBLE_DEVICES= ")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_full_gpu_is_a_sentence(llama: Path, text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1e-6)
    try:
        assert main([str(llama), "--data", str(text)]) == 2
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert names(capsys.readouterr().err, llama, "memory", "GPU", "CUDA_VISIBLE_DEVICES= ")


def test_a_model_larger_than_memory_is_refused_before_it_is_loaded(
    llama: Path, text: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("orchestrator.interventions.subject.free_memory", lambda: 1000)
    assert main([str(llama), "--data", str(text)]) == 2
    assert names(capsys.readouterr().err, llama, "40.6 kB", "1.0 kB")


def test_so_is_one_that_cannot_even_be_mapped(
    llama: Path, text: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    name, shape = "model.layers.0.mlp.up_proj.weight", [2**21, 2**20]
    head = json.dumps({name: {"dtype": "BF16", "shape": shape, "data_offsets": [0, 2**42]}}).encode()
    with (llama / "model.safetensors").open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        file.truncate(8 + len(head) + 2**42)  # a sparse file of 4.4 TB
    for command, more in ((main, []), (export.main, [str(tmp_path / "out")]), (trace.main, ["a b c"])):
        data = [] if more == ["a b c"] else ["--data", str(text)]
        assert command([str(llama), *more, *data]) == 2
        assert names(capsys.readouterr().err, llama, "4.4 TB", "memory")
