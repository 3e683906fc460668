"""The parts of a logit add up to it, and each is what the logit loses when that part is left out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from torch import nn

from orchestrator.interventions.attribution import Attribution, attribute
from orchestrator.interventions.bands import bands
from orchestrator.interventions.frozen import freeze
from orchestrator.interventions.neurons import neurons
from orchestrator.interventions.readout import Readout, find_readout
from orchestrator.interventions.subject import Subject, of_module
from orchestrator.interventions.writes import Traced, trace_text
from tests.orchestrator.interventions.models import LAYERS, SIZES, subject_of
from tests.orchestrator.interventions.test_lens import ADDING, TOKENS

families = pytest.mark.parametrize("family", ADDING)


def parts(subject: Subject, token: int = 3) -> tuple[Traced, Readout, Attribution]:
    one = trace_text(subject, TOKENS)
    readout = find_readout(subject, TOKENS, one.streams[-1])
    assert readout is not None
    found = attribute(subject, one, readout, token)
    assert found is not None
    return one, readout, found


def raw_logits(subject: Subject, one: Traced) -> torch.Tensor:
    """Logits of the last token before a soft-cap."""
    cap = getattr(getattr(subject.model, "config", None), "final_logit_softcapping", None)
    return one.logits[-1] if cap is None else cap * torch.atanh(one.logits[-1] / cap)


@families
def test_the_parts_add_up_to_the_models_own_logit(family: str) -> None:
    subject = subject_of(family)
    for token in (3, 40):
        one, _, found = parts(subject, token)
        logits = raw_logits(subject, one)
        expected = float(logits[token] - logits.mean())
        branches = [of for layer in found.layers for of in (layer.attention, layer.ffn)]
        total = found.embedding + found.constant + sum(of.logit for of in branches)
        assert total == pytest.approx(expected, abs=1e-6)
        assert found.logit == pytest.approx(expected, abs=1e-6)
        assert max(abs(of.logit) for of in branches) > 0.01
        for of in branches:
            assert of.inner is not None
            assert float(of.inner.sum()) + of.constant == pytest.approx(of.logit, abs=1e-6)
        assert [len(layer.attention.inner) for layer in found.layers] == _heads(subject)  # type: ignore[arg-type]


def _heads(subject: Subject) -> list[int]:
    spec = getattr(subject.model, "spec", None)
    return [2] * LAYERS if spec is None else [shape.heads for shape in spec.layers]


@pytest.mark.parametrize("family", ["ours, pre", "llama", "gpt2", "gpt_neox"])
def test_a_heads_part_is_what_its_rows_of_o_write(family: str) -> None:
    """The last layer's writes reach the final norm as they are: without a head, the stream lacks its write."""
    subject = subject_of(family)
    one, readout, found = parts(subject)
    o = subject.branches[LAYERS - 1].attention
    assert o is not None
    branches = one.branches[LAYERS - 1]
    assert branches is not None
    assert branches[0].inner is not None
    heads = found.layers[-1].attention.inner
    assert heads is not None
    for head in range(len(heads)):
        size = branches[0].inner.shape[-1] // len(heads)
        without = branches[0].inner[-1:].clone()
        without[:, head * size : (head + 1) * size] = 0
        with torch.inference_mode():
            lost = (o(branches[0].inner[-1:]) - o(without))[0].double()
        width = min(len(lost), readout.table.shape[1])
        direction = readout.direction(3) - readout.mean_direction
        assert heads[head] == pytest.approx(float(lost[:width] @ direction[:width]), abs=1e-6)


@families
def test_the_readout_is_linear_in_writes_and_agrees_with_the_model(family: str) -> None:
    subject = subject_of(family)
    one, readout, _ = parts(subject)
    logits = raw_logits(subject, one)
    made = readout.promoted(one.streams[-1][-1:].double())[0]
    constants = readout.table.double() @ readout.norm.shift + (0 if readout.bias is None else readout.bias)
    torch.testing.assert_close(made + constants, logits.double(), rtol=0, atol=1e-6)
    for token in (0, 17):
        along = one.streams[-1][-1].double()[: readout.table.shape[1]] @ readout.direction(token)
        assert float(along) == pytest.approx(float(made[token]), abs=1e-6)


NORMS = {
    "layer norm": lambda width: nn.LayerNorm(width),
    "rms norm": lambda width: nn.RMSNorm(width, eps=1e-6),
    "gemma's, which adds 1": lambda width: transformers.models.gemma2.modeling_gemma2.Gemma2RMSNorm(width),
    "without a scale": lambda width: nn.LayerNorm(width, elementwise_affine=False),
}


@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize("width", [5, 16])
def test_a_frozen_norm_is_the_norm_where_it_was_frozen_and_linear_elsewhere(kind: str, width: int) -> None:
    torch.manual_seed(width)
    norm = NORMS[kind](width).double()
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.add_(torch.randn(width))
    x, other = torch.randn(2, width, dtype=torch.float64) * 3
    frozen = freeze(norm, x)
    assert frozen is not None
    assert frozen.centred == ("layer" in kind or "without" in kind)
    torch.testing.assert_close(frozen(x) + frozen.shift, norm(x).detach(), rtol=0, atol=1e-6)  # Gemma's is in fp32
    torch.testing.assert_close(frozen(x + 2 * other), frozen(x) + 2 * frozen(other))
    assert float(frozen.back(other) @ x) == pytest.approx(float(frozen(x) @ other), abs=1e-9)


@pytest.mark.parametrize("other", [nn.Linear(8, 8), nn.Tanh(), nn.Softmax(dim=-1)])
def test_what_is_no_norm_is_not_frozen(other: nn.Module) -> None:
    torch.manual_seed(0)
    assert freeze(other, torch.randn(8)) is None


def test_a_projection_before_the_head_leaves_the_lens_and_no_attribution() -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 41, "hidden_size": 16, "ffn_dim": 24, "num_hidden_layers": LAYERS, "num_attention_heads": 2}
    config = transformers.OPTConfig(**sizes, word_embed_proj_dim=8, max_position_embeddings=40, pad_token_id=1)
    subject = of_module("opt", transformers.OPTForCausalLM(config), 40)
    one = trace_text(subject, TOKENS)
    assert find_readout(subject, TOKENS, one.streams[-1]) is None


@families
def test_neurons_are_the_positions_asked_for_and_promote_what_their_column_raises(family: str) -> None:
    subject = subject_of(family)
    one, readout, found = parts(subject)
    branches = one.branches[2]
    assert branches is not None
    ffn = branches[1]
    assert ffn.inner is not None
    assert ffn.output is not None
    of = neurons(ffn, found.layers[2].ffn, readout, {"saturated": np.array([7, 2, 11])}, 2)
    assert [neuron.position for neuron in of[:2]] == [7, 2]
    assert "saturated" in of[0].why
    assert "saturated" in of[1].why
    share = found.layers[2].ffn.inner
    assert share is not None
    assert {neuron.position for neuron in of if "answer" in neuron.why} == set(share.topk(2).indices.tolist())
    writes = [ffn.inner.abs().amax(0)[p] * _column(ffn.output.module, p).norm() for p in range(ffn.inner.shape[1])]
    if family not in ("ours, sandwich", "gemma2"):  # a norm follows
        assert {neuron.position for neuron in of if "active" in neuron.why} == set(np.argsort(writes)[-2:].tolist())
    for neuron in of:
        torch.testing.assert_close(neuron.activations, ffn.inner[:, neuron.position])
        sign = neuron.activations[neuron.opened_by].sign()
        column = ffn.output.norm(_column(ffn.output.module, neuron.position).double()) * sign
        raised = readout.promoted(column[None])[0]
        assert neuron.promoted is not None
        assert neuron.promoted.tolist() == raised.argsort(descending=True)[:6].tolist()
        assert neuron.logit == pytest.approx(float(share[neuron.position]))


def _column(down: nn.Module, position: int) -> torch.Tensor:
    """The write of an FFN position [d]."""
    weight = down.weight.detach()
    assert isinstance(weight, torch.Tensor)
    return weight[:, position] if isinstance(down, nn.Linear) else weight[position]


def test_layers_that_scale_their_branches_are_left_out() -> None:
    torch.manual_seed(0)
    config = transformers.GraniteConfig(**SIZES, residual_multiplier=0.3)
    subject = of_module("granite", transformers.GraniteForCausalLM(config).double(), 40)
    one = trace_text(subject, TOKENS)
    readout = find_readout(subject, TOKENS, one.streams[-1])
    assert one.branches == [None] * LAYERS
    assert readout is not None
    assert attribute(subject, one, readout, 3) is None


@pytest.mark.parametrize(
    ("divergences", "settled", "middle", "late"),
    [
        ([9, 8, 6, 3, 1, 0], [4, 5, 2], 2, 3),
        ([9, 1, 8, 1, 1, 0], [5, 5], 2, 4),  # it falls for good after the third layer
        ([99, 8, 5, 5, 5, 0], [1, 1, 1], 4, 0),
        ([0, 0, 0], [0, 0], 0, 0),
    ],
)
def test_bands_begin_where_the_lens_comes_near_and_where_it_settles(
    divergences: list[float], settled: list[int], middle: int, late: int
) -> None:
    found = bands(divergences, settled)
    assert (found.middle, found.late) == (middle, late)
    named = [found.of(layer) for layer in range(found.layers)]
    assert named == sorted(named, key=("early", "middle", "late").index)
    assert named.count("late") == found.layers - late
