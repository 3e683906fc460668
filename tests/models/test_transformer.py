"""The decoder against transformers' Llama and Gemma 2, and arithmetic."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM

from models.spec import DecoderSpec, LayerShape
from models.transformer import Decoder, RMSNorm, init_weights, seed_of

VOCAB = 50
RAGGED = (LayerShape(16, 2, 2, 8, 40), LayerShape(32, 4, 2, 8, 96), LayerShape(24, 3, 1, 4, 50))


def spec(layers: tuple[LayerShape, ...] = RAGGED, **options: object) -> DecoderSpec:
    return DecoderSpec(layers, VOCAB, **options)  # type: ignore[arg-type]


def built(spec: DecoderSpec, seed: int = 0) -> Decoder:
    model = Decoder(spec)
    init_weights(model, seed)
    return model


def tokens(rows: int = 2, length: int = 12, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, VOCAB, (rows, length), generator=torch.Generator().manual_seed(seed))


def scatter_gammas(model: Decoder) -> None:
    """γ = 1 everywhere would hide a norm in the wrong place."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, 1.0, 0.3, generator=generator)


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("tied", [True, False])
def test_logits_and_loss_equal_llamas(kv_heads: int, tied: bool) -> None:
    shape = LayerShape(32, 4, kv_heads, 8, 88)
    model = built(spec((shape,) * 3, norm="pre", tie_embeddings=tied, rope_theta=500.0, norm_eps=1e-5))
    scatter_gammas(model)
    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB, hidden_size=32, intermediate_size=88, num_hidden_layers=3,
            num_attention_heads=4, num_key_value_heads=kv_heads, head_dim=8, rms_norm_eps=1e-5,
            tie_word_embeddings=tied, rope_parameters={"rope_type": "default", "rope_theta": 500.0},
        )
    )  # fmt: skip
    missing, unexpected = llama.load_state_dict(model.state_dict(), strict=False)
    assert (missing, unexpected) == (["lm_head.weight"] if tied else [], [])
    rows = tokens(length=40)
    with torch.no_grad():
        theirs = llama(rows, labels=rows)
        torch.testing.assert_close(model(rows), theirs.logits, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(model.loss(rows), theirs.loss, atol=1e-5, rtol=1e-5)


def test_sandwich_logits_equal_those_of_a_gemma_2_with_silu() -> None:
    model = built(spec((LayerShape(32, 4, 2, 8, 88),) * 3))
    scatter_gammas(model)
    gemma = Gemma2ForCausalLM(
        Gemma2Config(
            vocab_size=VOCAB, hidden_size=32, intermediate_size=88, num_hidden_layers=3, num_attention_heads=4,
            num_key_value_heads=2, head_dim=8, query_pre_attn_scalar=8, hidden_activation="silu",
            attn_logit_softcapping=None, final_logit_softcapping=None, layer_types=["full_attention"] * 3,
            tie_word_embeddings=True,
        )
    )  # fmt: skip
    # Gemma stores γ − 1
    state = {name: p - 1 if p.ndim == 1 else p for name, p in model.state_dict().items()}
    missing, unexpected = gemma.load_state_dict(state, strict=False)
    assert (missing, unexpected) == (["lm_head.weight"], [])
    rows = tokens(length=40)
    with torch.no_grad():
        torch.testing.assert_close(model(rows), gemma(rows).logits, atol=1e-5, rtol=1e-5)


def test_loss_per_token_is_the_negative_log_probability() -> None:
    model, rows = built(spec()), tokens()
    with torch.no_grad():
        each, mean = model.loss(rows, reduction="none"), model.loss(rows)
        log_probability = model(rows[:, :-1]).double().log_softmax(-1)
    expected = -log_probability.gather(-1, rows[:, 1:, None]).squeeze(-1)
    torch.testing.assert_close(each.double(), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(mean, each.mean())


@pytest.mark.parametrize("norm", ["pre", "sandwich"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_layer_reads_and_writes_its_prefix_only(norm: str, tied: bool) -> None:
    model = built(spec(norm=norm, tie_embeddings=tied))
    streams: list[tuple[int, torch.Tensor, torch.Tensor]] = []
    for layer in model.model.layers:
        layer.register_forward_hook(lambda m, args, out: streams.append((m.width, args[0], out)))
    model(tokens())
    for width, before, after in streams:
        assert before.shape[-1] == after.shape[-1] == 32
        assert torch.equal(before[..., width:], after[..., width:])
        assert (before[..., :width] != after[..., :width]).any(dim=(0, 1)).all()
    assert not streams[0][1][..., 16:].any()  # the embedding wrote 16 coordinates
    layer, rope = model.model.layers[0], model.model.rope(12, 8, torch.device("cpu"))
    noise = torch.cat((streams[0][1][..., :16], torch.randn(2, 12, 16)), dim=-1)
    assert torch.equal(layer(noise, rope)[..., :16], streams[0][2][..., :16])


def test_widest_and_narrowest_coordinates_all_train() -> None:
    model = built(spec())
    model.loss(tokens()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    table = model.model.embed_tokens.weight.grad
    assert table is not None
    assert table.shape == (VOCAB, 24)  # max(first, last) columns
    assert table.any(dim=0).all()


def test_the_future_does_not_change_the_past() -> None:
    model = built(spec())
    rows = tokens()
    altered = rows.clone()
    altered[:, 7:] = (altered[:, 7:] + 1) % VOCAB
    with torch.no_grad():
        a, b = model(rows), model(altered)
    torch.testing.assert_close(a[:, :7], b[:, :7], atol=1e-6, rtol=0)
    assert not torch.allclose(a[:, 7:], b[:, 7:])


@pytest.mark.parametrize("norm", ["pre", "sandwich"])
@pytest.mark.parametrize("tied", [True, False])
def test_an_untrained_model_is_nearly_uniform(norm: str, tied: bool) -> None:
    shape = LayerShape(64, 4, 4, 16, 192)
    model = built(DecoderSpec((shape,) * 11, 264, norm=norm, tie_embeddings=tied))
    rows = torch.randint(0, 264, (4, 129), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert model.loss(rows).item() == pytest.approx(math.log(264), abs=0.2)


def test_initial_scales() -> None:
    model = built(DecoderSpec((LayerShape(64, 4, 2, 16, 192),) * 2, 1000, tie_embeddings=False))
    expected = {
        "q_proj": 1 / 8, "k_proj": 1 / 8, "gate_proj": 1 / 8, "o_proj": 1 / 16, "down_proj": 192**-0.5 / 2,
        "embed_tokens": 1 / 16, "lm_head": 1 / 16,
    }  # fmt: skip
    for name, parameter in model.named_parameters():
        kind = name.split(".")[-2]
        if kind in expected:
            assert parameter.std().item() == pytest.approx(expected[kind], rel=0.05), name
        if kind.endswith("norm"):
            assert torch.equal(parameter, torch.ones_like(parameter)), name


def test_every_parameter_has_its_own_stream() -> None:
    torch.manual_seed(1)
    base = dict(built(spec()).named_parameters())
    torch.manual_seed(2)  # the global generator plays no part
    reshaped = (RAGGED[0], RAGGED[1], LayerShape(24, 3, 1, 4, 99))
    same = dict(built(spec(reshaped)).named_parameters())
    for name, parameter in base.items():
        if name.startswith("model.layers.2.mlp"):
            assert parameter.shape != same[name].shape
        else:
            assert torch.equal(parameter, same[name]), name
    other = dict(built(spec(), seed=1).named_parameters())
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(base[name], other[name])
    assert not torch.equal(base[name], base[name.replace("q_proj", "k_proj")])


def test_seed_of_is_stable_and_separates_names() -> None:
    assert seed_of(0, "init", "a") == 1364464460378452218
    assert len({seed_of(s, "init", n) for s in range(20) for n in "abc"}) == 60
    assert 0 <= seed_of(-1, "x") < 2**63


def test_norm_is_computed_in_float32() -> None:
    norm = RMSNorm(64, 1e-6)
    x = torch.randn(8, 64, generator=torch.Generator().manual_seed(0)).bfloat16() * 300
    exact = x.double() / (x.double().square().mean(-1, keepdim=True) + 1e-6).sqrt()
    assert norm(x).dtype == torch.bfloat16
    torch.testing.assert_close(norm(x), exact.bfloat16(), atol=0, rtol=2**-8)


def test_autocast_stays_close_and_leaves_gradients_in_float32() -> None:
    model, rows = built(spec()), tokens()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model.loss(rows)
    loss.backward()
    assert loss.item() == pytest.approx(model.loss(rows).item(), abs=0.02)
    assert loss.dtype == torch.float32
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())


def test_training_after_evaluation_in_inference_mode_at_any_length() -> None:
    model = built(spec())
    with torch.inference_mode():
        long = model(tokens(length=30))
    short = model(tokens(length=30)[:, :9])
    short.sum().backward()
    torch.testing.assert_close(short, long[:, :9].clone(), atol=1e-5, rtol=1e-5)


def test_compiles_into_one_graph() -> None:
    model, rows = built(spec()), tokens()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(rows), model(rows))
