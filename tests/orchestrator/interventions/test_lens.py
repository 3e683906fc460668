"""The lens and the writes of a text agree with a forward pass written out in float64, and with the model itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers

from models.spec import DecoderSpec, LayerShape
from models.transformer import Decoder, init_weights
from orchestrator.interventions.lens import lenses, logits, stays_from
from orchestrator.interventions.subject import Subject, of_module
from orchestrator.interventions.trace import continued, traced
from orchestrator.interventions.writes import trace_text
from tests.orchestrator.interventions.models import FAMILIES, LAYERS, SIZES, WRITERS, subject_of

WIDTHS = (8, 16, 12)
EPS = 1e-6
TOKENS = torch.randint(0, 41, (9,), generator=torch.Generator().manual_seed(5))
CAUSAL = tuple(family for family in FAMILIES if family != "bert")
ADDING = tuple(family for family in CAUSAL if family != "bloom")  # whose branches can be told apart
NONE: list[Any] = [{}] * LAYERS


class Numbers:
    """Tokens as text."""

    def text(self, token: int) -> str:
        return f"<{token}>"


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
        weights = [softmax(rope(q[:, 4 * i : 4 * i + 4]) @ rope(k).T / 2 + mask) for i in range(width // 4)]
        attention = np.concatenate([of @ v for of in weights], 1) @ m["self_attn.o_proj.weight"].T
        if sandwich:
            attention = rms(attention, m["post_attention_layernorm.weight"])
        middle = x[:, :width] + attention
        h = rms(middle, m["pre_feedforward_layernorm.weight" if sandwich else "post_attention_layernorm.weight"])
        gate = h @ m["mlp.gate_proj.weight"].T
        inner = gate / (1 + np.exp(-gate)) * (h @ m["mlp.up_proj.weight"].T)
        ffn = inner @ m["mlp.down_proj.weight"].T
        if sandwich:
            ffn = rms(ffn, m["post_feedforward_layernorm.weight"])
        after = x.copy()
        after[:, :width] = middle + ffn
        size = np.linalg.norm(x, axis=1)
        head = w["model.embed_tokens.weight" if decoder.spec.tie_embeddings else "lm_head.weight"][:, : WIDTHS[-1]]
        rows.append(
            {
                "write": np.linalg.norm(after - x, axis=1) / size,
                "attention_write": np.linalg.norm(attention, axis=1) / size,
                "ffn_write": np.linalg.norm(ffn, axis=1) / size,
                "cosine": (x * after).sum(1) / size / np.linalg.norm(after, axis=1),
                "lens": softmax(rms(after[:, : WIDTHS[-1]], w["model.norm.weight"]) @ head.T),
                "inner": inner,
                "attends": [of[-1] for of in weights],
            }
        )
        x = after
    return rows


def trace_of(subject: Subject, tokens: torch.Tensor, few: int = 3) -> dict[str, Any]:
    return traced(subject, tokens, Numbers(), [{}] * len(subject.layers), few)  # type: ignore[arg-type]


@pytest.mark.parametrize(("norm", "tied"), [("pre", True), ("sandwich", True), ("sandwich", False)])
def test_every_number_equals_the_forward_pass_by_hand(norm: str, tied: bool) -> None:
    decoder, tokens = decoder_of(norm, tied), list(b"to be or not to be")
    result = trace_of(of_module("ours", decoder, 40), torch.tensor(tokens))
    expected = by_hand(decoder, tokens)
    final = expected[-1]["lens"]
    answers = final.argmax(1)
    places = np.arange(len(tokens))
    assert result["missing"] == {}
    assert [of["width"] for of in result["layers"]] == list(WIDTHS)
    for got, of in zip(result["layers"], expected, strict=True):
        for name in ("write", "attention_write", "ffn_write", "cosine"):
            assert got[name] == pytest.approx(of[name], rel=1e-4)
        lens = of["lens"]
        assert got["loss"] == pytest.approx(-np.log(lens[places[:-1], tokens[1:]]).mean(), rel=1e-4)
        assert got["divergence"] == pytest.approx((final * np.log(final / lens)).sum(1), abs=1e-5)
        assert got["answer"]["probability"] == pytest.approx(lens[places, answers], rel=1e-3)
        assert got["answer"]["rank"] == [
            int((row > row[answer]).sum()) for row, answer in zip(lens, answers, strict=True)
        ]
        for place, row in zip(got["lens"], lens, strict=True):
            assert [token["token"] for token in place] == np.argsort(-row)[:5].tolist()
            assert [token["probability"] for token in place] == pytest.approx(np.sort(row)[:-6:-1], rel=1e-3)
            assert place[0]["text"] == f"<{place[0]['token']}>"
        for head, weights in zip(got["attribution"]["heads"], of["attends"], strict=True):
            assert head["attends"] == weights.argmax()
            assert head["attention"] == pytest.approx(weights.max(), rel=1e-4)
        for neuron in got["neurons"]:
            activations = of["inner"][:, neuron["position"]]
            assert neuron["activations"] == pytest.approx(activations, rel=1e-3, abs=1e-6)
            assert neuron["opened_by"] == np.abs(activations).argmax()
            assert neuron["activation"] == neuron["activations"][neuron["opened_by"]]
    assert result["answer"]["token"] == answers[-1]
    assert result["answer"]["probability"] == pytest.approx(final[-1].max(), rel=1e-3)


@pytest.mark.parametrize("family", CAUSAL)
def test_after_the_last_layer_the_lens_is_the_model(family: str) -> None:
    subject = subject_of(family)
    one = trace_text(subject, TOKENS)
    whole = subject.run(TOKENS[None], torch.ones_like(TOKENS[None], dtype=torch.bool))[0]
    assert torch.equal(logits(subject, TOKENS, one.streams[-1]), whole)
    last = list(lenses(subject, one))[-1]
    assert last.rank.tolist() == [0] * len(TOKENS)
    assert last.divergence.abs().max() < 1e-12
    torch.testing.assert_close(last.probabilities[:, 0], whole.softmax(-1).amax(-1))
    loss = torch.nn.functional.cross_entropy(whole[:-1], TOKENS[1:], reduction="none")
    torch.testing.assert_close(last.loss, loss)


OTHERS = {
    "bloom": lambda: transformers.BloomForCausalLM(
        transformers.BloomConfig(vocab_size=41, hidden_size=16, n_layer=LAYERS, n_head=2)
    ),
    "mpt": lambda: transformers.MptForCausalLM(
        transformers.MptConfig(vocab_size=41, d_model=16, n_layers=LAYERS, n_heads=2, max_seq_len=40)
    ),
    "cohere": lambda: transformers.CohereForCausalLM(transformers.CohereConfig(**SIZES, logit_scale=0.3)),
    "granite": lambda: transformers.GraniteForCausalLM(
        transformers.GraniteConfig(**SIZES, logits_scaling=3.0, residual_multiplier=0.4, embedding_multiplier=2.0)
    ),
}


@pytest.mark.parametrize("family", OTHERS)
def test_other_families_scale_their_logits_or_return_more_than_the_stream(family: str) -> None:
    torch.manual_seed(0)
    subject = of_module(family, OTHERS[family]().double(), 40)
    whole = subject.run(TOKENS[None], torch.ones_like(TOKENS[None], dtype=torch.bool))[0]
    one = trace_text(subject, TOKENS)
    assert torch.equal(logits(subject, TOKENS, one.streams[-1]), whole)
    found = trace_of(subject, TOKENS)
    lacks = set() if family == "cohere" else {"attention_write, ffn_write", "attribution"}  # parts that do not add
    assert set(found["missing"]) == lacks


@pytest.mark.parametrize("family", CAUSAL)
def test_before_it_the_lens_is_a_model_whose_further_layers_write_nothing(family: str) -> None:
    subject, silent = subject_of(family), subject_of(family)
    with torch.no_grad():
        for layer in silent.layers[2:]:
            for name in WRITERS[family]:
                writer: Any = layer.get_submodule(name)
                for parameter in writer.parameters():
                    parameter.zero_()
            for name, parameter in layer.named_parameters():
                if "post_" in name and "gemma2" in family:
                    parameter.fill_(-1.0)
    expected = silent.run(TOKENS[None], torch.ones_like(TOKENS[None], dtype=torch.bool))[0]
    found = logits(subject, TOKENS, trace_text(subject, TOKENS).streams[2])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("family", ADDING)
def test_writes_add_up_to_what_the_layer_does_and_are_those_of_its_modules(family: str) -> None:
    subject = subject_of(family)
    one = trace_text(subject, TOKENS)
    for layer, branches in enumerate(one.branches):
        before, after = one.streams[layer : layer + 2]
        assert branches is not None
        width = branches[0].write.shape[-1]
        torch.testing.assert_close(branches[0].write + branches[1].write, (after - before)[:, :width])
        silent = subject_of(family)
        writer: Any = silent.layers[layer].get_submodule(WRITERS[family][1])
        with torch.no_grad():
            for parameter in writer.parameters():
                parameter.zero_()
        alone = trace_text(silent, TOKENS).branches[layer]
        assert alone is not None
        torch.testing.assert_close(alone[0].write, branches[0].write)


def test_a_single_token_has_no_loss() -> None:
    result = trace_of(of_module("ours", decoder_of(), 40), torch.tensor([65]))
    assert [layer["loss"] for layer in result["layers"]] == [None] * 3
    assert all(len(layer["write"]) == 1 for layer in result["layers"])


def test_the_model_goes_on_with_its_own_tokens() -> None:
    subject = subject_of("llama")
    expected = TOKENS
    for _ in range(3):
        answer = subject.run(expected[None], torch.ones_like(expected[None], dtype=torch.bool))[0, -1].argmax()
        expected = torch.cat((expected, answer[None]))
    assert torch.equal(continued(subject, TOKENS, 3), expected)
    assert torch.equal(continued(subject, TOKENS, 0), TOKENS)


@pytest.mark.parametrize(
    ("ranks", "first"), [([3, 0, 1, 0, 0], 3), ([0, 0, 0], 0), ([5, 2, 0], 2), ([1, 1], 2), ([0, 1, 0], 2)]
)
def test_the_answer_stays_from_where_it_is_never_overtaken(ranks: list[int], first: int) -> None:
    assert stays_from(ranks) == first
