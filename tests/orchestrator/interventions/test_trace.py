"""The command, from a source and a text to the page of the terminal and its files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from rich.console import Console

from orchestrator.config import load
from orchestrator.config.schema import TokenizerConfig, TokenizerKind
from orchestrator.forensics.analyzer import analyze
from orchestrator.forensics.measures.encoding import Encoding
from orchestrator.interventions.calibration import ffn_positions
from orchestrator.interventions.trace_page.page import page
from orchestrator.interventions.trace_report import report
from orchestrator.interventions.trace_words import shown
from orchestrator.storage import checkpoint
from orchestrator.trace import main
from tests.orchestrator.interventions.conftest import decoder_of
from tests.orchestrator.interventions.models import LAYERS, SIZES


def traced(*arguments: object, out: Path) -> dict[str, Any]:
    assert main([*map(str, arguments), "--json", str(out)]) == 0
    result: dict[str, Any] = json.loads(out.read_text())
    return result


def test_a_cell_from_end_to_end(cell: Path, tmp_path: Path) -> None:
    text = "7: [b]ï🙂"  # markup, and bytes that are not characters
    result = traced(cell, text, out=tmp_path / "out.json")
    assert [token["token"] for token in result["tokens"]] == list(text.encode())
    assert (result["step"], result["text"], result["chat"], result["continued"]) == (7, text, False, 0)
    with torch.no_grad():
        logits = decoder_of(7)(torch.tensor([list(text.encode())]))[0, -1]
    assert result["answer"]["token"] == int(logits.argmax())
    assert result["answer"]["probability"] == pytest.approx(float(logits.softmax(-1).max()), rel=1e-4)
    roles = [layer.role for layer in analyze(checkpoint.find(cell)).layers]
    assert [layer["role"] for layer in result["layers"]] == roles
    for width in (80, 100):
        console = Console(width=width)
        with console.capture() as capture:
            console.print(report(result))
        assert max(map(len, capture.get().splitlines())) <= width
        assert "[b]" in capture.get()


def test_a_llama_says_what_transformers_says_and_goes_on(llama: Path, tmp_path: Path) -> None:
    result = traced(llama, "a b c d a b", "--continue", "2", out=tmp_path / "out.json")
    tokenizer = transformers.AutoTokenizer.from_pretrained(llama)
    model = transformers.AutoModelForCausalLM.from_pretrained(llama).eval()
    expected = model.generate(
        torch.tensor([tokenizer("a b c d a b")["input_ids"]]), do_sample=False, max_new_tokens=3, eos_token_id=None
    )[0].tolist()
    assert [*(token["token"] for token in result["tokens"]), result["answer"]["token"]] == expected
    assert result["missing"] == {}
    depths = [result["embedding"], *result["layers"]]
    ranks = [depth["answer"]["rank"][-1] for depth in depths]
    stays, first = (result["answer"][key] + 1 for key in ("stays", "first"))
    assert not any(ranks[stays:])
    assert stays == 0 or ranks[stays - 1]
    assert first == ranks.index(0)
    parts = [layer["attribution"][key] for layer in result["layers"] for key in ("attention", "ffn")]
    whole = sum(parts) + sum(result["embedding"]["attribution"].values())
    assert whole == pytest.approx(result["answer"]["logit"], abs=1e-4)


def test_neurons_of_a_layer_are_listed_the_saturated_first(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = llama / "model.safetensors"
    from safetensors.torch import load_file, save_file

    weights = load_file(path)
    weights["model.layers.2.mlp.down_proj.weight"][:, 5] *= 40
    weights["model.layers.2.mlp.up_proj.weight"][5] *= 40
    save_file(weights, path, metadata={"format": "pt"})
    loud = ffn_positions(llama)[2]["saturated"]
    result = traced(llama, "a b c", "--neurons", "2", out=tmp_path / "out.json")
    found = result["layers"][2]["neurons"]
    assert [neuron["position"] for neuron in found[: len(loud)]] == loud.tolist()
    assert found[0]["position"] == 5
    assert found[0]["why"][0] == "saturated"
    lines = capsys.readouterr().out.split("FFN positions of layer 2")[1].splitlines()
    assert [line.split()[0] for line in lines if line.strip()][1:] == [str(neuron["position"]) for neuron in found]


def test_the_chat_template_is_the_tokenizers_own(llama: Path, tmp_path: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(llama)
    tokenizer.chat_template = (
        "{% for m in messages %}a {{ m.content }} b{% endfor %}{% if add_generation_prompt %} c{% endif %}"
    )
    tokenizer.save_pretrained(llama)
    result = traced(llama, "d d", "--chat", out=tmp_path / "out.json")
    expected = tokenizer("a d d b c", add_special_tokens=False)["input_ids"]
    assert [token["token"] for token in result["tokens"]] == expected
    assert result["chat"] is True


def test_tokens_are_shown_on_one_line(cell: Path) -> None:
    encoding = Encoding(checkpoint.find(cell))
    assert [encoding.text(token) for token in (65, 32, 200, 256, 263)] == ["A", " ", "#200", "#256", "#263"]
    assert [shown(text) for text in (" Paris", " ", "\n\n", "a\nb", "\x1b[1m")] == [
        " Paris",
        "␣",
        "⏎⏎",
        "a⏎b",
        "\\x1b[1m",
    ]


@pytest.mark.parametrize("kind", [TokenizerKind.byte, TokenizerKind.bpe])
def test_a_tokenizer_learnt_from_other_data_is_refused(
    kind: TokenizerKind, cell: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bytes are the same whatever the corpus; the tokens of a BPE are not."""
    config = load.from_file(cell / "config.yaml")
    config.data.tokenizer = TokenizerConfig(kind, vocab_size=264)
    (cell / "config.yaml").write_text(load.to_yaml(config))
    path = Path(config.data.domains["words"].path or "")
    path.write_text(path.read_text() + "\none line more")
    code = main([str(cell), "line 7"])
    assert code == (2 if kind == TokenizerKind.bpe else 0)
    assert ("other data" in capsys.readouterr().err) == (kind == TokenizerKind.bpe)


def test_layers_that_are_not_told_apart_leave_the_lens_and_the_reason(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    config = transformers.GraniteConfig(**SIZES, residual_multiplier=0.3)
    transformers.GraniteForCausalLM(config).save_pretrained(tmp_path / "granite")
    for file in llama.glob("tokenizer*"):
        file.rename(tmp_path / "granite" / file.name)
    result = traced(tmp_path / "granite", "a b c", "--neurons", "0", out=tmp_path / "out.json")
    assert set(result["missing"]) == {"attention_write, ffn_write", "attribution"}
    assert [layer["attribution"] for layer in result["layers"]] == [None] * LAYERS
    printed = capsys.readouterr().out
    assert all(why in " ".join(printed.split()) for why in result["missing"].values())
    assert "not told" in page(result)


def test_bad_input_is_one_sentence_and_exit_code_2(
    cell: Path, llama: Path, bert: Path, tmp_path: Path, refuses: Callable[..., None]
) -> None:
    bare = tmp_path / "bare"
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES)).save_pretrained(bare)
    cases: list[tuple[list[object], list[object]]] = [
        ([tmp_path / "nowhere", "text"], [tmp_path / "nowhere", "exist"]),
        ([cell, ""], ["text", "empty"]),
        ([llama, ""], ["text", "empty"]),
        ([cell, "x" * 17], ["17 tokens", "16"]),
        ([llama, "a " * 40], ["41 tokens", "40"]),
        ([llama, "a " * 37, "--continue", "5"], ["--continue 5", "40", "38 tokens", "2 at most"]),
        ([bert, "a b"], [bert, "encoder", "orchestrator.intervene"]),
        ([cell / "config.yaml", "a b"], [cell / "config.yaml", "no checkpoint"]),
        ([cell / "checkpoints", "a b"], ["2 checkpoints", cell / "checkpoints/step_00000007"]),
        ([llama.parent / "text", "a b"], [llama.parent / "text", "no weights"]),
        ([cell, "text", "--neurons", "x"], ["--neurons", "x"]),
        ([bare, "a b"], [bare, "tokenizer"]),
        ([llama, "a b", "--chat"], [llama, "--chat"]),
        ([cell, "text", "--chat"], ["--chat"]),
        ([llama, "a b", "--neurons", LAYERS], [LAYERS, f"0 to {LAYERS - 1}"]),
        ([cell, "text", "--json", tmp_path / "no/out.json"], [tmp_path / "no/out.json", tmp_path / "no"]),
        ([cell, "text", "--html", tmp_path / "out.png"], [tmp_path / "out.png", ".html"]),
    ]
    for arguments, named in cases:
        refuses(main, arguments, named)
