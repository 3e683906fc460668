"""The probe against the hidden states and attentions that transformers reports, written out in loops."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor, nn

from models.spec import DecoderSpec, LayerShape
from models.transformer import Decoder, init_weights
from orchestrator.common.errors import UserError
from orchestrator.forensics.measures.probe import attention_pattern, pattern_sums, probe
from orchestrator.forensics.measures.runner import runnable
from tests.naming import naming

VOCABULARY = 24
LAYERS = 3
TOKENS = torch.randint(VOCABULARY, (3, 14), generator=torch.Generator().manual_seed(0))  # with many repeats
SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": LAYERS,
    "num_attention_heads": 4, "max_position_embeddings": 32, "pad_token_id": None, "initializer_range": 0.3,
}  # fmt: skip
GROUPED = {**SIZES, "num_key_value_heads": 2, "head_dim": 8}


@dataclass(frozen=True)
class Family:
    """A tiny model, where its layers are, and which of their modules write to the stream."""

    model: str
    config: dict[str, Any]
    stack: str
    branches: tuple[str, str] | None  # attention's and FFN's last module
    parallel: bool = False
    windows: tuple[int, ...] = (99,) * LAYERS  # positions back that layer l sees, itself included
    encoder: bool = False


LAYER = ("self_attn", "mlp")
POST = ("post_attention_layernorm", "post_feedforward_layernorm")
NEOX = ("attention", "mlp")
SMALL_GPT = {"vocab_size": VOCABULARY, "n_embd": 24, "n_layer": LAYERS, "n_head": 4, "n_positions": 32}
SLIDING = {"sliding_window": 4, "query_pre_attn_scalar": 8}  # in every other layer
SMALL_OPT = SIZES | {"ffn_dim": 40, "word_embed_proj_dim": 24}
SEQUENTIAL = SIZES | {"use_parallel_residual": False}

FAMILIES = {
    "llama": Family("LlamaForCausalLM", GROUPED, "model.layers", LAYER),
    "mistral": Family("MistralForCausalLM", GROUPED | {"sliding_window": 5}, "model.layers", LAYER, windows=(5,) * 3),
    "qwen3": Family("Qwen3ForCausalLM", GROUPED, "model.layers", LAYER),
    "gemma2": Family("Gemma2ForCausalLM", GROUPED | SLIDING, "model.layers", POST, windows=(4, 99, 4)),
    "olmo2": Family("Olmo2ForCausalLM", SIZES, "model.layers", POST),
    "gpt2": Family("GPT2LMHeadModel", SMALL_GPT, "transformer.h", ("attn", "mlp")),
    "opt": Family("OPTForCausalLM", SMALL_OPT, "model.decoder.layers", ("self_attn", "fc2")),
    "pythia": Family("GPTNeoXForCausalLM", SIZES, "gpt_neox.layers", NEOX, parallel=True),
    "neox": Family("GPTNeoXForCausalLM", SEQUENTIAL, "gpt_neox.layers", NEOX),
    "bert": Family("BertForMaskedLM", SIZES, "bert.encoder.layer", None, encoder=True),
}


def built(family: Family) -> nn.Module:
    """The family's model with noise on every parameter, so that no norm or bias is neutral."""
    kind = getattr(transformers, family.model)
    torch.manual_seed(0)
    model = kind(kind.config_class(**family.config, attn_implementation="eager")).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


def decoder(shapes: list[LayerShape], norm: str) -> Decoder:
    model = Decoder(DecoderSpec(tuple(shapes), VOCABULARY, norm=norm))
    init_weights(model, 0)
    return model.eval()


def recorded(model: nn.Module, family: Family, tokens: Tensor) -> tuple[list[Any], list[Any], list[list[np.ndarray]]]:
    """Streams x_0 … x_L, attentions, and per layer what each branch wrote; float64."""
    stack = model.get_submodule(family.stack)
    last: list[Tensor] = []
    wrote: list[list[np.ndarray]] = [[] for _ in range(LAYERS)]
    hooks = [stack[-1].register_forward_hook(lambda _, __, out: last.append(out[0] if isinstance(out, tuple) else out))]
    for layer, block in enumerate(stack):
        for name in family.branches or ():
            into: list[np.ndarray] = wrote[layer]

            def note(_: Any, __: Any, out: Any, into: list[np.ndarray] = into) -> None:
                into.append((out[0] if isinstance(out, tuple) else out).double().view(*tokens.shape, -1).numpy())

            hooks.append(block.get_submodule(name).register_forward_hook(note))
    with torch.no_grad():
        output = model(tokens, output_hidden_states=True, output_attentions=True)
    for hook in hooks:
        hook.remove()
    streams = [x.double().numpy() for x in (*output.hidden_states[:LAYERS], last[0])]
    return streams, [a.double().numpy() for a in output.attentions], wrote


def ratio(write: np.ndarray, stream: np.ndarray) -> float:
    return float((np.linalg.norm(write, axis=-1) / np.linalg.norm(stream, axis=-1)).mean())


def looped(
    attention: np.ndarray, tokens: np.ndarray, window: int, encoder: bool, special: tuple[int, ...] = ()
) -> tuple[float, float]:
    """copy_density and sink_mass by the words of SCIENCE §1, position by position; attention [B, H, T, T]."""
    copied, chance, sunk = [], [], []
    for row, ids in enumerate(tokens):
        for i in range(len(ids)):
            visible = [j for j in range(len(ids)) if encoder or i - window < j <= i]
            targets = [j for j in visible if j < i and (ids[j] == ids[i] or (j > 0 and ids[j - 1] == ids[i]))]
            for head in attention[row]:
                if targets:
                    copied.append(sum(head[i, j] for j in targets))
                    chance.append(len(targets) / len(visible))
                if i > 0:
                    sunk.append(sum(head[i, j] for j in range(len(ids)) if j == 0 or ids[j] in special))
    return float(np.mean(copied) / np.mean(chance)), float(np.mean(sunk))


@pytest.mark.parametrize("name", FAMILIES)
def test_against_what_transformers_reports(name: str) -> None:
    family = FAMILIES[name]
    model = built(family)
    streams, attentions, wrote = recorded(model, family, TOKENS)
    layers = probe(model, TOKENS, special=(7,))
    assert len(layers) == LAYERS
    for layer, measures in enumerate(layers):
        before, after = streams[layer], streams[layer + 1]
        cosine = (before * after).sum(-1) / np.linalg.norm(before, axis=-1) / np.linalg.norm(after, axis=-1)
        density, sink = looped(attentions[layer], TOKENS.numpy(), family.windows[layer], family.encoder, (7,))
        expected = {
            "stream_norm": float(np.linalg.norm(before, axis=-1).mean()),
            "total_write": ratio(after - before, before),
            "adjacent_alignment": float(cosine.mean()),
            "copy_density": density,
            "sink_mass": sink,
        }
        if family.branches:
            attention, ffn = wrote[layer]
            expected["attention_write"] = ratio(attention, before)
            expected["ffn_write"] = ratio(ffn, before if family.parallel else before + attention)
        else:
            assert measures.pop("attention_write") is measures.pop("ffn_write") is None
        assert measures == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("norm", ["pre", "sandwich"])
def test_the_recomputed_attention_mixes_values_into_the_modules_own_output(norm: str) -> None:
    shapes = [LayerShape(24, 4, 2, 6, 40), LayerShape(16, 3, 3, 4, 40), LayerShape(32, 6, 1, 8, 8)]
    model = decoder(shapes, norm)
    rope = model.model.rope(14, 6, torch.device("cpu"))
    attention = model.model.layers[0].self_attn
    x = torch.randn(2, 14, 24, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        pattern = attention_pattern(attention, x, rope)  # [2, 4, 14, 14]
        values = attention.v_proj(x).view(2, 14, 2, 6).repeat_interleave(2, dim=2)
        mixed = torch.einsum("bhij,bjhd->bihd", pattern, values).flatten(2)
        torch.testing.assert_close(attention.o_proj(mixed), attention(x, rope), rtol=1e-5, atol=1e-5)
    for measures in probe(model, TOKENS):
        assert all(isinstance(value, float) for value in measures.values())
        assert -1 <= (measures["adjacent_alignment"] or 0) <= 1


def test_branches_of_a_layer_narrower_than_the_stream_are_relative_to_all_of_it() -> None:
    model = decoder([LayerShape(16, 4, 4, 4, 24), LayerShape(32, 4, 4, 8, 24), LayerShape(8, 2, 2, 4, 24)], "sandwich")
    kept: list[tuple[Tensor, Tensor, Tensor]] = []
    block = model.model.layers[2]

    def keep(_: nn.Module, inputs: tuple[Any, ...], __: Tensor) -> None:
        x, rope = inputs
        attention = block.attention_branch(x[..., :8], rope)
        kept.append((x, attention, block.ffn_branch(x[..., :8] + attention)))

    with torch.no_grad():
        handle = block.register_forward_hook(keep)
        model(TOKENS)
        handle.remove()
    x, attention, ffn = (part.double().numpy() for part in kept[0])
    middle = x.copy()
    middle[..., :8] += attention
    measures = probe(model, TOKENS)[2]
    assert measures["attention_write"] == pytest.approx(ratio(attention, x), rel=1e-5)
    assert measures["ffn_write"] == pytest.approx(ratio(ffn, middle), rel=1e-5)


def test_our_decoder_and_the_stock_llama_with_its_weights_agree(tmp_path: Path) -> None:
    from models.hf import to_huggingface

    ours = decoder([LayerShape(24, 4, 2, 6, 40)] * 2, "pre")
    to_huggingface(ours).save_pretrained(tmp_path)
    for mine, theirs in zip(probe(ours, TOKENS), probe(runnable(tmp_path), TOKENS), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4)


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_uniform_attention_copies_at_chance(name: str) -> None:
    model = built(FAMILIES[name])
    with torch.no_grad():
        for part, parameter in model.named_parameters():
            if "q_proj" in part or "query" in part:
                parameter.zero_()
    length = TOKENS.shape[1]
    seen = [length] * length if FAMILIES[name].encoder else range(1, length + 1)
    for measures in probe(model, TOKENS):
        assert measures["copy_density"] == pytest.approx(1)
        assert measures["sink_mass"] == pytest.approx(np.mean([1 / n for n in seen][1:]))


def test_an_induction_head_and_a_duplicate_head_in_a_hand_made_pattern() -> None:
    tokens = torch.tensor([[5, 6, 7, 5, 6]])
    pattern = torch.zeros(1, 2, 5, 5)
    pattern[..., 0] = 0.5
    pattern[..., range(5), range(5)] += 0.5
    pattern[0, 0, 3] = torch.tensor([0, 0.9, 0, 0.1, 0])  # 5 looks at what followed 5
    pattern[0, 1, 4] = torch.tensor([0, 0.8, 0, 0, 0.2])  # 6 looks at 6
    sums = pattern_sums(pattern, tokens)
    # Query 3 has targets {0, 1} of 4, query 4 {1, 2} of 5; heads in turn: .9, .5 and 0, .8.
    assert sums["copy_density"] == pytest.approx(((0.9 + 0.5 + 0 + 0.8) / 2, 2 / 4 + 2 / 5))
    assert sums["sink_mass"][0] / sums["sink_mass"][1] == pytest.approx((6 * 0.5 + 0) / 8)


def test_without_a_repeat_or_a_second_position_the_measures_are_absent() -> None:
    model = built(FAMILIES["llama"])
    assert [layer["copy_density"] for layer in probe(model, torch.arange(9)[None])] == [None] * LAYERS
    single = probe(model, torch.tensor([[3], [3]]))[0]
    assert single["copy_density"] is None
    assert single["sink_mass"] is None
    assert single["total_write"] is not None


@pytest.mark.parametrize(
    "make", [lambda: built(FAMILIES["gemma2"]), lambda: decoder([LayerShape(16, 4, 2, 4, 24)], "pre")]
)
def test_rows_run_in_groups_are_the_mean_of_rows_run_alone(
    make: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    alone = [probe(model, row[None]) for row in TOKENS]
    hooks = sum(len(part._forward_hooks) for part in model.modules())  # transformers leaves some of its own
    monkeypatch.setattr("orchestrator.forensics.measures.probe.GROUP", 2 * TOKENS.shape[1])
    together = probe(model, TOKENS)
    for layer, measures in enumerate(together):
        for name in set(measures) - {"copy_density"}:  # its denominators differ between rows
            assert measures[name] == pytest.approx(np.mean([row[layer][name] for row in alone]), rel=1e-6)
    monkeypatch.undo()
    assert probe(model, TOKENS) == [pytest.approx(measures, rel=1e-6) for measures in together]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert sum(len(part._forward_hooks) for part in model.modules()) == hooks


@pytest.mark.parametrize(
    ("tokens", "named"),
    [
        ([[0, VOCABULARY]], ["vocabulary", VOCABULARY]),
        ([[-1, 3]], ["vocabulary", VOCABULARY]),
        ([0, 1], ["(2,)", "integers"]),
        ([[0.5]], ["(1, 1)", "float32", "integers"]),
        ([[]], ["(1, 0)", "integers"]),
    ],
)
@pytest.mark.parametrize("ours", [True, False])
def test_tokens_that_cannot_be_run(tokens: Any, named: list[object], ours: bool) -> None:
    model = decoder([LayerShape(16, 4, 2, 4, 24)], "pre") if ours else built(FAMILIES["llama"])
    with pytest.raises(UserError, match=naming(*named)):
        probe(model, torch.tensor(tokens))


def test_rows_longer_than_the_models_positions_are_refused() -> None:
    with pytest.raises(UserError, match=naming("GPT2LMHeadModel", "33 tokens", "rows")):
        probe(built(FAMILIES["gpt2"]), torch.zeros(1, 33, dtype=torch.long))


def test_a_model_that_shares_one_layer_is_refused() -> None:
    config = transformers.AlbertConfig(**{**SIZES, "num_hidden_layers": 12, "pad_token_id": 0}, embedding_size=8)
    with pytest.raises(UserError, match=naming("AlbertModel", "12 layers")):
        probe(transformers.AlbertModel(config), TOKENS)


def test_an_embedding_of_zeros_gives_absent_writes_not_infinite_ones() -> None:
    model = built(FAMILIES["llama"])
    with torch.no_grad():
        model.get_submodule("model.embed_tokens").weight.zero_()
    first = probe(model, TOKENS)[0]
    assert first["total_write"] is None
    assert first["adjacent_alignment"] is None


def test_a_token_whose_embedding_is_zero_counts_for_nothing() -> None:
    model = built(FAMILIES["llama"])
    with torch.no_grad():
        model.get_submodule("model.embed_tokens").weight[3].zero_()
    with_it, without = (probe(model, torch.tensor([row]))[0] for row in ([5, 7, 9, 3], [5, 7, 9]))  # causal
    for name in ("total_write", "attention_write", "adjacent_alignment"):
        assert with_it[name] == pytest.approx(without[name], rel=1e-4)  # fp32, whose rounding depends on the length
    assert with_it["ffn_write"] is not None
