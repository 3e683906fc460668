"""Every edit, against models that are put together so, and against weights that are changed so."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor, nn

from orchestrator.common.errors import UserError
from orchestrator.interventions.calibration import Calibration, calibrate
from orchestrator.interventions.edits import EDITS, block
from orchestrator.interventions.passes import Pass, refuse_entangled, stream_of
from orchestrator.interventions.subject import Subject, of_module
from tests.naming import naming
from tests.orchestrator.interventions.models import (
    FAMILIES,
    LAYERS,
    SIZES,
    WRITERS,
    model_of,
    ours,
    rebuilt,
    subject_of,
)

TOKENS = torch.randint(0, 41, (3, 11), generator=torch.Generator().manual_seed(5))
MASK = torch.ones_like(TOKENS, dtype=torch.bool)
LAYER = 1  # neither the first nor the last: those decide the widths of embedding and head
POSITIONS = {"saturated": np.array([2, 7]), "random": np.array([0, 3]), "as_loud": np.array([5, 1])}
SETS: list[Mapping[str, np.ndarray]] = [POSITIONS] * LAYERS
EXACT: dict[str, Any] = {"rtol": 0, "atol": 1e-9}  # of float64

families = pytest.mark.parametrize("family", FAMILIES)


def calibration(subject: Subject) -> Calibration:
    return calibrate([Pass(subject, TOKENS, MASK)], SETS)


def edited(subject: Subject, edit: str, layer: int = LAYER) -> Tensor:
    chosen = EDITS.get(edit) or block(int(edit.removeprefix("delete_")))
    one = Pass(subject, TOKENS, MASK)
    output = one.edited(layer, chosen.apply(subject, layer, calibration(subject))).result
    assert not torch.allclose(output, one.output.result, atol=1e-3)  # it does something
    return output


def run(subject: Subject) -> Tensor:
    return subject.run(TOKENS, MASK).detach()


@families
@pytest.mark.parametrize(
    ("edit", "order"),
    [("delete", [0, 2, 3]), ("repeat", [0, 1, 1, 2, 3]), ("swap", [0, 2, 1, 3]), ("delete_2", [0, 3])],
)
def test_layers_left_out_repeated_and_swapped_are_models_built_so(family: str, edit: str, order: list[int]) -> None:
    torch.testing.assert_close(edited(subject_of(family), edit), run(rebuilt(family, order)), **EXACT)


@families
@pytest.mark.parametrize("branch", [0, 1])
def test_a_silenced_branch_is_one_whose_last_matrix_is_zero(family: str, branch: int) -> None:
    model = model_of(family)
    changed = subject_of(family)
    with torch.no_grad():
        writer: Any = changed.layers[LAYER].get_submodule(WRITERS[family][branch])
        writer.weight.zero_()
        if writer.bias is not None:
            writer.bias.zero_()
    edit = ("delete_attention", "delete_ffn")[branch]
    torch.testing.assert_close(edited(subject_of(family, model), edit), run(changed), **EXACT)


@families
@pytest.mark.parametrize("which", POSITIONS)
def test_zeroed_positions_are_columns_of_down_that_are_zero(family: str, which: str) -> None:
    changed = subject_of(family)
    with torch.no_grad():
        weight: Any = changed.layers[LAYER].get_submodule(WRITERS[family][1]).weight
        (weight.T if family == "gpt2" else weight)[:, POSITIONS[which]] = 0
    torch.testing.assert_close(edited(subject_of(family), f"zero_{which}"), run(changed), **EXACT)


def streams(subject: Subject) -> list[Tensor]:
    """The stream before every layer and after the last, by hooks of the test's own: [B, T, D] each."""
    seen: list[Tensor] = []
    hooks = [layer.register_forward_pre_hook(lambda _, inputs, named: seen.append(inputs[0]), with_kwargs=True)
             for layer in subject.layers]  # fmt: skip
    hooks.append(subject.layers[-1].register_forward_hook(lambda _, inputs, output: seen.append(stream_of(output))))
    run(subject)
    for hook in hooks:
        hook.remove()
    return seen


def with_output(subject: Subject, output: Tensor) -> Tensor:
    """The result of the model when the layer returns this stream, by a hook of the test's own."""
    hook = subject.layers[LAYER].register_forward_hook(
        lambda _, __, own: (output, *own[1:]) if isinstance(own, tuple) else output
    )
    result = run(subject)
    hook.remove()
    return result


@families
def test_the_mean_write_is_added_at_every_position(family: str) -> None:
    subject = subject_of(family)
    before, after = streams(subject)[LAYER : LAYER + 2]
    expected = with_output(subject, before + (after - before).mean((0, 1)).float())
    torch.testing.assert_close(edited(subject, "write_mean"), expected, rtol=0, atol=1e-6)


@families
def test_a_compensated_deletion_keeps_the_length_of_the_stream(family: str) -> None:
    subject = subject_of(family)
    width = subject.width(LAYER) or 16
    before, after = streams(subject)[LAYER : LAYER + 2]
    factor = (after[..., :width].norm(dim=-1) / before[..., :width].norm(dim=-1)).mean()
    scaled = torch.cat((before[..., :width] * factor, before[..., width:]), -1)
    torch.testing.assert_close(edited(subject, "delete_compensated"), with_output(subject, scaled), rtol=0, atol=1e-9)


@families
def test_the_model_is_whole_again_afterwards_also_after_an_error(family: str) -> None:
    subject = subject_of(family)
    before, facts = run(subject), calibration(subject)
    for edit in EDITS.values():
        with pytest.raises(RuntimeError), edit.apply(subject, LAYER, facts):
            raise RuntimeError
    assert torch.equal(run(subject), before)


@families
def test_what_a_layer_lacks_is_not_edited(family: str) -> None:
    subject = subject_of(family)
    facts = calibrate([Pass(subject, TOKENS, MASK)], [{}] * LAYERS)
    lacking = {name for name, edit in EDITS.items() if not edit.has(subject, LAYERS - 1, facts)}
    assert lacking == {"swap", "zero_saturated", "zero_random", "zero_as_loud"}
    assert not block(3).has(subject, LAYERS - 2, facts)


@families
def test_padding_on_the_right_changes_no_position_before_it(family: str) -> None:
    subject = subject_of(family)
    padded, mask = TOKENS.clone(), MASK.clone()
    padded[0, 6:] = 0
    mask[0, 6:] = False
    alone = Pass(subject, TOKENS[:1, :6], MASK[:1, :6])
    beside = Pass(subject, padded, mask)
    for edit in (EDITS["delete"], EDITS["swap"]):
        outputs = [
            one.edited(LAYER, edit.apply(subject, LAYER, calibration(subject))).result for one in (alone, beside)
        ]
        torch.testing.assert_close(outputs[0][0], outputs[1][0, :6], rtol=0, atol=1e-9)


def test_the_experts_of_a_mixture_are_silenced_together() -> None:
    config = transformers.MixtralConfig(**SIZES, num_local_experts=3, num_key_value_heads=1)
    torch.manual_seed(0)
    mixture, changed = (transformers.MixtralForCausalLM(config).eval() for _ in range(2))
    changed.load_state_dict(mixture.state_dict())
    with torch.no_grad():
        changed.model.layers[LAYER].mlp.experts.down_proj.zero_()
    subject = of_module("mixtral", mixture, 40)
    assert subject.branches[LAYER].down is None  # no positions that all tokens share
    one = Pass(subject, TOKENS, MASK)
    output = one.edited(LAYER, EDITS["delete_ffn"].apply(subject, LAYER, calibration(subject))).result
    torch.testing.assert_close(output, changed(TOKENS).logits.detach(), rtol=0, atol=1e-6)
    assert not torch.equal(output, one.output.result)


def test_an_encoder_and_a_decoder_are_told_apart() -> None:
    assert not subject_of("bert").is_causal
    assert all(subject_of(family).is_causal for family in FAMILIES if family != "bert")


def test_layers_that_share_their_weights_are_refused() -> None:
    model = ours("pre", [16] * LAYERS)
    model.model.layers = nn.ModuleList([model.model.layers[1]] * LAYERS)
    with pytest.raises(UserError, match=naming("shared", LAYERS, "1 different")):
        of_module("shared", model, 40)


class Entangled(nn.Module):
    """Adds to the stream what the layer before it has kept in this pass."""

    def __init__(self, before: Entangled | None) -> None:
        super().__init__()
        self.before, self.kept, self.weight = (before,), torch.zeros(()), nn.Parameter(torch.ones(1))

    def forward(self, stream: Tensor, rope: Any) -> Tensor:
        self.kept = stream.roll(1, -1) * self.weight
        return stream + (0 if self.before[0] is None else self.before[0].kept)


def test_layers_that_hand_over_more_than_the_stream_are_refused() -> None:
    model = ours("pre", [16] * LAYERS)
    layers: list[Entangled] = []
    for _ in range(LAYERS):
        layers.append(Entangled(layers[-1] if layers else None))
    model.model.layers = nn.ModuleList(layers)

    def forget(*_: Any) -> None:
        for layer in layers:
            layer.kept = torch.zeros(())

    model.register_forward_pre_hook(forget)
    with pytest.raises(UserError, match=naming("entangled", "stream")):
        refuse_entangled(of_module("entangled", model, 40), TOKENS)
    for family in FAMILIES:
        refuse_entangled(subject_of(family), TOKENS)


class Forgetful(nn.Module):
    """Adds what the layer before it has left in `shared`, or fails as it does where that is absent."""

    def __init__(self, place: int, shared: dict[int, Tensor], failure: Exception | None) -> None:
        super().__init__()
        self.place, self.shared, self.failure, self.weight = place, shared, failure, nn.Parameter(torch.ones(1))

    def forward(self, stream: Tensor, rope: Any) -> Tensor:
        if self.failure is not None and self.place > 0 and self.place - 1 not in self.shared:
            raise self.failure
        added = self.shared.pop(self.place - 1) if self.place else 0.0
        self.shared[self.place] = self.weight * stream.roll(1, -1)
        return stream + added


@pytest.mark.parametrize(
    ("failure", "kind", "named"),
    [
        (None, UserError, ["forgetful", f"layer {LAYERS // 2}", "KeyError", LAYERS // 2 - 1]),
        (RuntimeError("of something else"), RuntimeError, ["of something else"]),
    ],
)
def test_an_error_without_the_layers_before_is_named_and_any_other_is_let_through(
    failure: Exception | None, kind: type[Exception], named: list[Any]
) -> None:
    model, shared = ours("pre", [16] * LAYERS), dict[int, Tensor]()
    model.model.layers = nn.ModuleList([Forgetful(layer, shared, failure) for layer in range(LAYERS)])
    model.register_forward_pre_hook(lambda *_: shared.clear())
    with pytest.raises(kind, match=naming(*named)):
        refuse_entangled(of_module("forgetful", model, 40), TOKENS)


def test_a_model_of_nan_is_not_called_entangled() -> None:
    subject = subject_of("llama")
    with torch.no_grad():
        next(subject.layers[0].parameters()).fill_(math.nan)
    refuse_entangled(subject, TOKENS)


def test_tokens_outside_the_vocabulary_and_rows_that_are_too_long() -> None:
    subject = subject_of("gpt2")
    with pytest.raises(UserError, match=naming("41")):
        Pass(subject, TOKENS + 41, MASK)
    long = torch.zeros(1, 41, dtype=torch.int64)
    with pytest.raises(UserError, match=naming("gpt2", "41 tokens")):
        Pass(subject, long, torch.ones_like(long, dtype=torch.bool))


@pytest.mark.parametrize("error", [RuntimeError("no kernel"), IndexError("no such head")])
def test_an_error_of_the_model_is_not_put_down_to_the_length_of_its_rows(error: Exception) -> None:
    subject = subject_of("llama")

    def fail(*_: Any) -> None:
        raise error

    with subject.layers[1].register_forward_pre_hook(fail), pytest.raises(type(error), match=str(error)):
        Pass(subject, TOKENS, MASK)
