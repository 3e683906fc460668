"""Models without some of their layers, against the same deletion in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from models.hf import to_huggingface
from orchestrator.common.errors import UserError
from orchestrator.interventions.edits import EDITS
from orchestrator.interventions.passes import Pass
from orchestrator.interventions.pruning import deleted, in_precision, layers_of, mergekit, pruned, shorten
from orchestrator.interventions.subject import Subject, load, of_module
from tests.naming import naming
from tests.orchestrator.interventions.models import FAMILIES, LAYERS, SIZES, model_of, ours, subject_of
from tests.orchestrator.interventions.test_edits import MASK, TOKENS, calibration, rebuilt

CAUSAL = [family for family in FAMILIES if family != "bert"]


def run(subject: Subject) -> torch.Tensor:
    return subject.run(TOKENS, MASK).detach()


@pytest.mark.parametrize("family", CAUSAL)
@pytest.mark.parametrize("layers", [[1], [0, 3], []])
def test_what_is_saved_computes_what_the_model_in_memory_does(family: str, layers: list[int], tmp_path: Path) -> None:
    subject = subject_of(family, model_of(family).float())
    whole = run(subject)
    with deleted(subject, layers):
        expected = run(subject)
    assert torch.equal(run(subject), whole)
    if len(layers) == 1:
        with EDITS["delete"].apply(subject, layers[0], calibration(subject)):
            assert torch.equal(run(subject), expected)
    pruned(subject, layers).save_pretrained(tmp_path)
    saved = load(tmp_path)
    assert len(saved.layers) == LAYERS - len(layers)
    torch.testing.assert_close(run(saved), expected, rtol=0, atol=1e-5)
    if layers == [1]:  # a model built from a configuration of its own, in the other file's way
        torch.testing.assert_close(run(saved).double(), run(rebuilt(family, [0, 2, 3])), rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", CAUSAL)
def test_layers_can_be_left_out_of_what_lacks_others(family: str) -> None:
    subject = subject_of(family)
    whole = run(subject)
    with deleted(subject, [1]):
        alone = run(subject)
        one = Pass(subject, TOKENS, MASK)
        both = one.edited(2, deleted(subject, [2]))
        assert torch.equal(run(subject), alone)
    assert torch.equal(run(subject), whole)
    torch.testing.assert_close(both.result, run(rebuilt(family, [0, 3])), rtol=0, atol=1e-9)


@pytest.mark.parametrize("norm", ["pre", "sandwich"])
def test_our_saved_directories_can_be_cut_again(norm: str, tmp_path: Path) -> None:
    to_huggingface(ours(norm)).save_pretrained(tmp_path / "whole")
    subject = load(tmp_path / "whole")
    with deleted(subject, [0, 2]):
        expected = run(subject)
    pruned(subject, [0, 2]).save_pretrained(tmp_path / "cut")
    torch.testing.assert_close(run(load(tmp_path / "cut")), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("layers", [[0], [1, 3]])
def test_layers_that_return_tuples_and_alternate(layers: list[int], tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.GPTNeoConfig(
        vocab_size=41, hidden_size=16, num_layers=4, num_heads=2, window_size=3, max_position_embeddings=40,
        attention_types=[[["global", "local"], 2]],
    )  # fmt: skip
    subject = of_module("neo", transformers.GPTNeoForCausalLM(config), 40)
    with torch.no_grad():
        for parameter in subject.model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    with deleted(subject, layers):
        expected = run(subject)
    pruned(subject, layers).save_pretrained(tmp_path)
    torch.testing.assert_close(run(load(tmp_path)), expected, rtol=0, atol=1e-5)


def test_lists_of_an_entry_per_layer_are_cut_and_others_are_not() -> None:
    config: Any = transformers.Gemma2Config(**SIZES, eos_token_id=[1, 2, 3, 4])
    kinds = list(config.layer_types)
    shorten(config, [1, 2], LAYERS)
    assert (config.num_hidden_layers, config.layer_types) == (2, [kinds[0], kinds[3]])
    assert config.eos_token_id == [1, 2, 3, 4]
    gpt2: Any = transformers.GPT2Config(n_layer=4)
    shorten(gpt2, [0], LAYERS)
    assert gpt2.to_dict()["n_layer"] == 3


def test_what_a_configuration_cannot_say_is_named() -> None:
    kinds = ["linear_attention"] * 3 + ["full_attention"]
    config = transformers.OlmoHybridConfig(**SIZES, num_key_value_heads=2, layer_types=kinds, pad_token_id=0)
    with pytest.raises(UserError, match=naming("hybrid", "olmo_hybrid", "attention layer")):
        pruned(of_module("hybrid", transformers.OlmoHybridForCausalLM(config), 40), [3])


@pytest.mark.parametrize(
    ("text", "layers"),
    [("", []), ("3", [3]), ("7,12-14", [7, 12, 13, 14]), ("2-2, 1,1", [1, 2]), ("0-18", [*range(19)])],
)
def test_layers_by_number_and_range(text: str, layers: list[int]) -> None:
    assert layers_of(text, 20) == layers


@pytest.mark.parametrize(
    ("text", "named"),
    [("20", ["20", "0 to 19"]), ("18-20", ["18-20"]), ("5-3", ["5-3", "backwards", "3-5"]),
     ("0-19", ["0-19", "20 layers"]), ("x", ["x"]),
     ("-1", ["-1"]), ("1.5", ["1.5"]), ("1-", ["1-"]), ("²", ["²"])],
)  # fmt: skip
def test_layers_that_do_not_exist_and_other_words_are_refused(text: str, named: list[str]) -> None:
    with pytest.raises(UserError, match=naming("--drop", *named)):
        layers_of(text, 20)


def test_the_stored_precision_is_kept_only_where_it_loses_nothing() -> None:
    model: Any = model_of("llama").float()
    assert in_precision(model, torch.bfloat16).dtype == torch.float32
    assert in_precision(model, None).dtype == torch.float32
    assert in_precision(model.bfloat16().float(), torch.bfloat16).dtype == torch.bfloat16


def test_mergekit_is_given_the_ranges_that_stay() -> None:
    recipe = mergekit("org/name", [0, 3, 4], 8, "bfloat16")
    ranges = [source["layer_range"] for piece in recipe["slices"] for source in piece["sources"]]
    assert [layer for start, end in ranges for layer in range(start, end)] == [1, 2, 5, 6, 7]
    assert recipe["slices"][0] == {"sources": [{"model": "org/name", "layer_range": [1, 3]}]}
    assert (recipe["merge_method"], recipe["dtype"]) == ("passthrough", "bfloat16")
