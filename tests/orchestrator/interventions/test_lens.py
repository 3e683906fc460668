"""The effect of each layer on a text agrees with a forward pass written out in float64."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from models.spec import DecoderSpec, LayerShape
from models.transformer import Decoder, init_weights
from orchestrator.config import load
from orchestrator.config.schema import (
    Config,
    DataConfig,
    DomainConfig,
    ModelConfig,
    Profile,
    Source,
    TokenizerConfig,
    TokenizerKind,
    TrainConfig,
    WidthConfig,
)
from orchestrator.data import prepare
from orchestrator.data.tokenizer import ByteTokenizer
from orchestrator.interventions.lens import lens, report, token_text, trace_tokens
from orchestrator.storage import checkpoint
from orchestrator.trace import main
from tests.naming import names

WIDTHS = (8, 16, 12)
EPS = 1e-6


def decoder_of(norm: str = "sandwich", tied: bool = True) -> Decoder:
    shapes = tuple(LayerShape(width=w, heads=w // 4, kv_heads=1, head_dim=4, ffn=2 * w) for w in WIDTHS)
    decoder = Decoder(DecoderSpec(shapes, vocab_size=264, norm=norm, tie_embeddings=tied, norm_eps=EPS))
    init_weights(decoder, 0)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.mul_(1 + torch.rand(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return decoder.eval()


def rms(x: np.ndarray, gamma: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + EPS) * gamma


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def rope(x: np.ndarray) -> np.ndarray:
    """Position t turns coordinate i with i + 2 by the angle t·θ_i; x: [T, 4]."""
    angle = np.arange(len(x))[:, None] * 10_000.0 ** (-np.arange(0, 4, 2) / 4)
    a, b = x[:, :2], x[:, 2:]
    return np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)], 1)


def by_hand(decoder: Decoder, tokens: list[int]) -> list[dict[str, Any]]:
    """The residual stream layer by layer, in numpy and float64."""
    w = {name: tensor.double().numpy() for name, tensor in decoder.state_dict().items()}
    sandwich = decoder.spec.norm == "sandwich"
    mask = np.triu(np.full((len(tokens), len(tokens)), -np.inf), 1)
    x = np.zeros((len(tokens), max(WIDTHS)))
    table = w["model.embed_tokens.weight"]
    x[:, : WIDTHS[0]] = table[tokens, : WIDTHS[0]] * (table.shape[1] ** 0.5 if sandwich else 1)  # Gemma 2 scales
    rows = []
    for layer, width in enumerate(WIDTHS):
        m = {name.removeprefix(f"model.layers.{layer}."): v for name, v in w.items() if f"layers.{layer}." in name}
        h = rms(x[:, :width], m["input_layernorm.weight"])
        q, k, v = (h @ m[f"self_attn.{p}_proj.weight"].T for p in "qkv")
        heads = [softmax(rope(q[:, 4 * i : 4 * i + 4]) @ rope(k).T / 2 + mask) @ v for i in range(width // 4)]
        attention = np.concatenate(heads, 1) @ m["self_attn.o_proj.weight"].T
        if sandwich:
            attention = rms(attention, m["post_attention_layernorm.weight"])
        middle = x[:, :width] + attention
        h = rms(middle, m["pre_feedforward_layernorm.weight" if sandwich else "post_attention_layernorm.weight"])
        gate = h @ m["mlp.gate_proj.weight"].T
        ffn = (gate / (1 + np.exp(-gate)) * (h @ m["mlp.up_proj.weight"].T)) @ m["mlp.down_proj.weight"].T
        if sandwich:
            ffn = rms(ffn, m["post_feedforward_layernorm.weight"])
        after = x.copy()
        after[:, :width] = middle + ffn
        size = np.linalg.norm(x, axis=1)
        head = w["model.embed_tokens.weight" if decoder.spec.tie_embeddings else "lm_head.weight"][:, : WIDTHS[-1]]
        probabilities = softmax(rms(after[:, : WIDTHS[-1]], w["model.norm.weight"]) @ head.T)
        rows.append(
            {
                "write": np.linalg.norm(after - x, axis=1) / size,
                "attention_write": np.linalg.norm(attention, axis=1) / size,
                "ffn_write": np.linalg.norm(ffn, axis=1) / size,
                "cosine": (x * after).sum(1) / size / np.linalg.norm(after, axis=1),
                "loss": -np.log(probabilities[np.arange(len(tokens) - 1), tokens[1:]]).mean(),
                "last": probabilities[-1],
            }
        )
        x = after
    return rows


@pytest.mark.parametrize(("norm", "tied"), [("pre", True), ("sandwich", True), ("sandwich", False)])
def test_every_number_equals_the_forward_pass_by_hand(norm: str, tied: bool) -> None:
    decoder, tokens = decoder_of(norm, tied), list(b"to be or not to be")
    traced = trace_tokens(decoder, torch.tensor(tokens))
    for got, expected, width in zip(traced, by_hand(decoder, tokens), WIDTHS, strict=True):
        assert got["width"] == width
        for name in ("write", "attention_write", "ffn_write", "cosine"):
            assert got[name] == pytest.approx(expected[name].mean(), rel=1e-4)
            assert got["last"][name] == pytest.approx(expected[name][-1], rel=1e-4)
        assert got["loss"] == pytest.approx(expected["loss"], rel=1e-4)
        assert got["last"]["token"] == expected["last"].argmax()
        assert got["last"]["probability"] == pytest.approx(expected["last"].max(), rel=1e-3)


def test_after_the_last_layer_the_lens_is_the_model() -> None:
    decoder, tokens = decoder_of(), torch.tensor(list(b"to be or not to be"))
    streams: list[torch.Tensor] = []
    decoder.model.layers[-1].register_forward_hook(lambda _block, _inputs, output: streams.append(output))
    with torch.no_grad():
        logits = decoder(tokens[None])
        assert torch.equal(lens(decoder, streams[0]), logits)
        assert trace_tokens(decoder, tokens)[-1]["loss"] == pytest.approx(decoder.loss(tokens[None]).item(), abs=1e-5)


def test_a_single_token_has_no_loss() -> None:
    traced = trace_tokens(decoder_of(), torch.tensor([65]))
    assert [layer["loss"] for layer in traced] == [None] * 3
    assert all(layer["write"] == layer["last"]["write"] for layer in traced)


def test_tokens_without_text_of_their_own_show_their_number() -> None:
    assert [token_text(ByteTokenizer(), token) for token in (65, 32, 200, 256, 263)] == [
        "A",
        " ",
        "#200",
        "#256",
        "#263",
    ]


@pytest.fixture
def cell(tmp_path: Path) -> Path:
    text = tmp_path / "text.txt"
    text.write_text("\n".join(f"line {i} {i * i}" for i in range(800)))
    config = Config(
        name="test",
        model=ModelConfig(layers=3, width=12, head_dim=4, ffn_ratio=2.0),
        width=WidthConfig(profile=Profile.explicit, widths=list(WIDTHS)),
        data=DataConfig(
            {"text": DomainConfig(Source.files, path=str(text))},
            heldout_tokens=256,
            cache_dir=str(tmp_path / "cache"),
        ),
        train=TrainConfig(seq_len=32),
    )
    directory = tmp_path / "test" / "main" / "seed=0"
    decoder = decoder_of()
    data = prepare(config.data, 264, 32).digest
    state = {"schema": 1, "step": 4, "spec": decoder.spec.to_dict(), "data": data}
    checkpoint.save(directory / "checkpoints", 4, {"model": dict(decoder.named_parameters())}, state)
    (directory / "config.yaml").write_text(load.to_yaml(config))
    return directory


def test_a_cell_from_end_to_end(cell: Path, tmp_path: Path) -> None:
    text = "line 7: [b]naïve[/b] 🙂"  # markup and bytes that are not characters
    assert main([str(cell), text, "--json", str(tmp_path / "out.json")]) == 0
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["tokens"] == list(text.encode())
    assert (result["step"], result["text"]) == (4, text)
    expected = by_hand(decoder_of(), result["tokens"])
    assert [layer["loss"] for layer in result["layers"]] == pytest.approx([e["loss"] for e in expected], rel=1e-4)
    console = Console(width=80)
    with console.capture() as capture:
        console.print(report(result))
    assert "…" not in capture.get()


@pytest.mark.parametrize("kind", [TokenizerKind.byte, TokenizerKind.bpe])
def test_a_tokenizer_learnt_from_other_data_is_refused(
    kind: TokenizerKind, cell: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bytes are the same whatever the corpus; the tokens of a BPE are not."""
    config = load.from_file(cell / "config.yaml")
    config.data.tokenizer = TokenizerConfig(kind, vocab_size=264)
    (cell / "config.yaml").write_text(load.to_yaml(config))
    path = Path(config.data.domains["text"].path or "")
    path.write_text(path.read_text() + "\none line more")
    code = main([str(cell), "line 7"])
    assert code == (2 if kind == TokenizerKind.bpe else 0)
    assert ("other data" in capsys.readouterr().err) == (kind == TokenizerKind.bpe)


def test_bad_input_is_one_sentence_and_exit_code_2(
    cell: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases: list[tuple[list[object], list[object]]] = [
        ([tmp_path / "nowhere", "text"], [tmp_path / "nowhere", "exist"]),
        ([tmp_path, "text"], [tmp_path, "manifest.json", "<experiment>/<arm>/seed=<k>"]),
        ([cell, ""], ["text", "empty"]),
        ([cell, "x" * 33], ["33 tokens", "train.seq_len=32"]),
        ([cell, "text", "--json", tmp_path / "no/out.json"], [tmp_path / "no/out.json", tmp_path / "no"]),
    ]
    for arguments, named in cases:
        assert main([str(argument) for argument in arguments]) == 2
        printed = capsys.readouterr()
        assert names(printed.err, *named)
        assert printed.err.count("\n") == 1
        assert not printed.out
