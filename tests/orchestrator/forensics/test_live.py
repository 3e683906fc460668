"""Models in memory: a state dict or a module gives the reading of the same weights on disk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn.parallel import DataParallel
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, PreTrainedModel

from orchestrator.common.errors import UserError
from orchestrator.forensics import Reading, analyze
from orchestrator.forensics.architecture.live import live
from orchestrator.forensics.reading import rows_of
from tests.naming import naming
from tests.orchestrator.forensics.untrained import model, spec, write

SIZES: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip


def llama(tied: bool = False, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    torch.manual_seed(3)
    made = LlamaForCausalLM(LlamaConfig(tie_word_embeddings=tied, **SIZES)).to(dtype)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(1 + torch.rand_like(parameter))
    return made


def same(a: Reading, b: Reading) -> bool:
    """True where two readings agree in all but the source."""
    return (a.layers, a.family, a.totals, a.pathology) == (b.layers, b.family, b.totals, b.pathology)


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., Reading]:
    """The reading of a transformers model from its files."""

    def of(made: PreTrainedModel, **options: Any) -> Reading:
        made.save_pretrained(tmp_path / "saved")
        return analyze(tmp_path / "saved", resamples=2, **options)

    return of


@pytest.mark.parametrize(("tied", "dtype"), [(False, torch.float32), (True, torch.float32), (False, torch.bfloat16)])
def test_a_module_and_its_state_dict_read_as_its_files(
    tied: bool, dtype: torch.dtype, read: Callable[..., Reading]
) -> None:
    made = llama(tied, dtype)
    from_files = read(made)
    of_module = analyze(made, resamples=2)
    of_state = analyze(made.state_dict(), config=made.config, resamples=2)
    of_plain = analyze(made.state_dict(), config=made.config.to_dict(), resamples=2)
    assert same(of_module, from_files)
    assert same(of_state, from_files)
    assert of_plain == of_state
    assert (of_module.source, of_state.source, of_module.step) == ("LlamaForCausalLM", "state dict", None)


def test_a_decoder_of_ours_reads_as_its_checkpoint(tmp_path: Path) -> None:
    decoder = model(spec(layers=3, profile="ramp"), seed=0)
    saved = analyze(write(decoder, tmp_path / "step_00000000"), resamples=2)
    found = analyze(decoder, resamples=2)
    fixed = ("saturated_fixed", "saturated_fixed_expected")  # have their reference beside the file only
    for mine, theirs in zip(found.layers, saved.layers, strict=True):
        assert mine.role == theirs.role
        for key, value in mine.measures.items():
            assert key in fixed or value == theirs.measures[key], key
    assert found.source == "Decoder"
    by_spec = analyze(decoder.state_dict(), config=decoder.spec, resamples=2)
    assert same(by_spec, found)


class Wrapped(nn.Module):
    """A training module, as people write them around a model."""

    def __init__(self, inner: nn.Module, config: Any = None) -> None:
        super().__init__()
        self.model = inner
        self.metric = nn.Linear(4, 4)
        if config is not None:
            self.config = config


def test_wrappers_are_passed_by() -> None:
    made = llama()
    plain = analyze(made, resamples=2)
    for wrapper in (Wrapped(made), DataParallel(made), torch.compile(made), Wrapped(made, {"lr": 1e-3, "n_layers": 9})):
        found = analyze(wrapper, resamples=2)  # type: ignore[arg-type]
        assert found == plain, type(wrapper).__name__


def test_of_several_models_one_has_to_be_given() -> None:
    both = nn.ModuleDict({"student": llama(), "teacher": llama()})
    with pytest.raises(UserError, match=naming("student", "teacher", "LlamaForCausalLM")):
        analyze(both)  # type: ignore[arg-type]
    assert analyze(both["student"], resamples=2).family == "llama"


def test_a_described_part_is_not_the_model() -> None:
    small = MistralForCausalLM(MistralConfig(**{**SIZES, "num_hidden_layers": 1, "hidden_size": 16}))
    outer = Wrapped(nn.ModuleDict({"blocks": llama().model.layers, "helper": small}))
    with pytest.raises(UserError, match=naming("Wrapped")):  # two stacks of layers, neither of them declared
        analyze(outer)


@dataclass
class Sizes:
    """A configuration as small repositories have it."""

    n_layer: int = 4
    n_head: int = 4
    n_kv_heads: int = 2
    n_embd: int = 48


def test_without_a_family_the_layout_is_inferred_and_heads_are_as_described(read: Callable[..., Reading]) -> None:
    made = llama()
    made.config = Sizes()
    found = analyze(made, resamples=2)
    assert found.family == "inferred"
    assert found.assumed
    assert not found.heads_assumed
    bare = analyze(made.state_dict(), resamples=2)
    assert any("heads is not declared" in sentence for sentence in bare.heads_assumed)
    assert "head_evenness" in bare.missing
    declared = analyze(llama(), resamples=2)
    assert [layer.measures["head_evenness"] for layer in found.layers] == [
        layer.measures["head_evenness"] for layer in declared.layers
    ]


def test_nested_state_dicts_and_a_trainers_names() -> None:
    made = llama()
    plain = analyze(made.state_dict(), config=made.config, resamples=2)
    prefixed = {f"module._orig_mod.{name}": tensor for name, tensor in made.state_dict().items()}
    saved = {"model": prefixed, "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}}, "step": 4}
    assert analyze(saved, config=made.config, resamples=2) == plain


def test_reading_leaves_the_model_as_it_is() -> None:
    made = llama().requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    analyze(made, resamples=2)
    assert all(torch.equal(before[name], tensor) for name, tensor in made.state_dict().items())
    assert made.training


def test_tokens_run_through_a_copy_of_the_module(read: Callable[..., Reading]) -> None:
    made = llama()
    tokens = torch.randint(64, (2, 9), generator=torch.Generator().manual_seed(0))
    implementation = made.config._attn_implementation
    found = analyze(made, tokens=tokens, resamples=2)
    assert same(found, read(made, tokens=tokens))
    assert found.layers[1].measures["copy_density"] is not None
    assert (made.training, made.config._attn_implementation) == (True, implementation)
    with pytest.raises(UserError, match=naming("tokens", "module")):
        analyze(made.state_dict(), tokens=tokens)
    for option in ("tokens", "gradients"):
        with pytest.raises(UserError, match=naming("rows of integers", "one length")):
            analyze(made, **{option: [[1, 2, 3], [1]]})


def test_a_table_has_a_row_per_layer() -> None:
    reading = analyze(llama(), resamples=2)
    table = reading.to_pandas()
    assert list(table) == list(rows_of(reading)[0])
    assert list(table.layer) == [0, 1, 2, 3]
    assert list(table.role) == [layer.role for layer in reading.layers]
    assert list(table.cv) == [layer.measures["cv"] for layer in reading.layers]
    assert list(table.score_hub) == [layer.scores["hub"] for layer in reading.layers]
    assert table.copy_density.isna().all()
    assert pd.api.types.is_float_dtype(table.copy_density)


@pytest.mark.parametrize(
    ("source", "options", "named"),
    [
        (3, {}, ["int"]),
        ({}, {}, ["state dict"]),
        ({"step": 3}, {}, ["state dict"]),
        (nn.Linear(3, 3), {}, ["Linear"]),
        ({"layers.0.q.weight": torch.zeros(3, 3, device="meta")}, {}, ["layers.0.q.weight", "meta"]),
        ({"model._fsdp_wrapped_module._flat_param": torch.zeros(9)}, {}, ["sharded", "get_model_state_dict"]),
        ({"layers.0.q.weight": torch.zeros(0)}, {}, ["layers.0.q.weight", "sharded"]),  # as ZeRO-3 leaves it
        (
            {f"layers.0.{k}_proj.weight": torch.eye(4).to_sparse() for k in ("q", "k", "v", "o", "up", "down")},
            {},
            ["layers.0.q_proj.weight", "sparse_coo"],
        ),
        ({"w": torch.zeros(3, 3)}, {"config": 4}, ["config=int", "model_type"]),
        ({"w": torch.zeros(3, 3)}, {"config": {"lr": 1}}, ["config=dict", "model_type"]),
        ({"w": torch.zeros(3, 3)}, {"config": {"num_attention_heads": "many"}}, ["state dict", "many"]),
        ("model.pt", {"config": {"model_type": "llama"}}, ["config=dict", "model.pt"]),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(source: Any, options: Any, named: list[str]) -> None:
    with pytest.raises(UserError, match=naming(*named)):
        analyze(source, **options)


def test_a_file_of_the_working_directory_is_not_taken_for_the_modules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "LlamaForCausalLM").mkdir()
    (tmp_path / "LlamaForCausalLM/optimizer.safetensors").write_text("no tensors")
    (tmp_path / "LlamaForCausalLM/config.json").write_text("{}")
    (tmp_path / "optimizer.safetensors").write_text("no tensors")
    assert analyze(llama(), resamples=2).family == "llama"


def test_the_settings_of_a_quantisation_are_the_models_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quantize_config.json").write_text('{"bits": 4, "checkpoint_format": "gptq_v2"}')
    packed = {
        "a.qweight": torch.zeros(2, 8, dtype=torch.int32), "a.qzeros": torch.zeros(1, 1, dtype=torch.int32),
        "a.scales": torch.ones(1, 8),
    }  # fmt: skip
    with pytest.raises(UserError, match=naming("a.weight", "GPTQ", "quantization_config")):
        live(packed).tensors().read("a.weight")
    described = live(packed, {"model_type": "llama", "quantization_config": {"bits": 4}})
    assert bool((described.tensors().read("a.weight") == -1).all())  # the first version stores zeros less 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_model_on_an_accelerator_reads_as_its_files(read: Callable[..., Reading]) -> None:
    made = llama().cuda()  # type: ignore[arg-type]
    tokens = torch.randint(64, (2, 9))
    assert same(analyze(made, tokens=tokens, resamples=2), read(made, tokens=tokens))
