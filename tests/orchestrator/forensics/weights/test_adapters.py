"""LoRA adapters, as PEFT saves them: their change, and its sum with the model they were trained on."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from orchestrator.common.errors import UserError
from orchestrator.forensics.__main__ import main
from orchestrator.forensics.analyzer import analyze
from orchestrator.forensics.architecture.model import CheckpointModel
from orchestrator.forensics.output import read
from orchestrator.forensics.weights.adapters import is_adapter, open_adapter
from tests.naming import names, naming
from tests.orchestrator.forensics.pages import entry, printed

RANK = 2
PLAIN: dict[str, Any] = {"peft_type": "LORA", "r": RANK, "lora_alpha": 8, "target_modules": ["q_proj"]}
SIZES = {
    "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip
SHAPES = {
    "self_attn.q_proj": (16, 16), "self_attn.k_proj": (8, 16), "self_attn.v_proj": (8, 16),
    "self_attn.o_proj": (16, 16), "mlp.gate_proj": (24, 16), "mlp.up_proj": (24, 16),
    "mlp.down_proj": (16, 24),
}  # fmt: skip
Q = "model.layers.1.self_attn.q_proj"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**SIZES)).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def write(
    path: Path, config: dict[str, Any], shapes: dict[str, tuple[int, int]], **others: Tensor
) -> dict[str, Tensor]:
    """An adapter of these modules, [out, in], in a new directory; returns its tensors by name."""
    generator = torch.Generator().manual_seed(1)
    saved = {}
    for module, (down, across) in shapes.items():
        saved[f"base_model.model.{module}.lora_A.weight"] = torch.randn(RANK, across, generator=generator)
        saved[f"base_model.model.{module}.lora_B.weight"] = torch.randn(down, RANK, generator=generator)
    saved |= {f"base_model.model.{name}": value for name, value in others.items()}
    path.mkdir(exist_ok=True)
    save_file(saved, path / "adapter_model.safetensors")
    (path / "adapter_config.json").write_text(json.dumps(config))
    return saved


def product(saved: dict[str, Tensor], module: str) -> Tensor:
    a, b = (saved[f"base_model.model.{module}.lora_{side}.weight"] for side in "AB")
    return b @ a


SCALES: list[tuple[dict[str, Any], float]] = [
    ({}, 8 / RANK),
    ({"use_rslora": True}, 8 / math.sqrt(RANK)),
    ({"r": 7, "rank_pattern": {"q_proj": RANK}}, 8 / RANK),  # the factors themselves have the rank
    ({"alpha_pattern": {"k_proj": 1, "q_proj": 3}}, 3 / RANK),
    ({"alpha_pattern": {"layers.0.self_attn.q_proj": 3}}, 8 / RANK),
    ({"alpha_pattern": {r".*\.1\..*q_proj": 3}}, 3 / RANK),
]


@pytest.mark.parametrize(("settings", "scale"), SCALES)
def test_the_change_and_the_sum(tmp_path: Path, base: Path, settings: dict[str, Any], scale: float) -> None:
    saved = write(tmp_path / "lora", PLAIN | settings, {Q: (16, 16)})
    change = scale * product(saved, Q)
    before = load_file(base / "model.safetensors")
    alone = open_adapter(tmp_path / "lora", None, None, False)
    assert alone.names == {f"{Q}.weight"}
    torch.testing.assert_close(alone.read(f"{Q}.weight"), change)
    torch.testing.assert_close(torch.cat(list(alone.rows(f"{Q}.weight", 5))), change)
    merged = open_adapter(tmp_path / "lora", None, base, False)
    assert merged.names == set(before)
    for name, value in before.items():
        expected = value + change if name == f"{Q}.weight" else value
        torch.testing.assert_close(merged.read(name), expected)
        torch.testing.assert_close(torch.cat(list(merged.rows(name, 5))), expected)
    delta = open_adapter(tmp_path / "lora", None, base, True)
    for name, value in before.items():
        kept = value if value.ndim == 1 else torch.zeros_like(value)
        torch.testing.assert_close(delta.read(name), change if name == f"{Q}.weight" else kept)


def test_matrices_stored_the_other_way_round(tmp_path: Path) -> None:
    GPT2LMHeadModel(GPT2Config(vocab_size=32, n_layer=2, n_embd=16, n_head=4)).save_pretrained(tmp_path / "base")
    module = "transformer.h.0.attn.c_attn"
    saved = write(tmp_path / "lora", PLAIN | {"fan_in_fan_out": True}, {module: (48, 16)})
    merged = open_adapter(tmp_path / "lora", None, tmp_path / "base", False)
    before = load_file(tmp_path / "base/model.safetensors")
    (name,) = (of for of in before if of.endswith("h.0.attn.c_attn.weight"))
    torch.testing.assert_close(merged.read(name), before[name] + 4 * product(saved, module).T)


def test_an_embedding_and_a_head_that_was_trained_whole(tmp_path: Path, base: Path) -> None:
    a, b, head = torch.randn(RANK, 32), torch.randn(16, RANK), torch.randn(32, 16)
    extra = {"model.embed_tokens.lora_embedding_A": a, "model.embed_tokens.lora_embedding_B": b, "lm_head.weight": head}
    write(tmp_path / "lora", PLAIN, {Q: (16, 16)}, **extra)
    before = load_file(base / "model.safetensors")
    merged = open_adapter(tmp_path / "lora", None, base, False)
    torch.testing.assert_close(
        merged.read("model.embed_tokens.weight"), before["model.embed_tokens.weight"] + 4 * (b @ a).T
    )
    assert torch.equal(merged.read("lm_head.weight"), head)
    delta = open_adapter(tmp_path / "lora", None, base, True)
    torch.testing.assert_close(delta.read("lm_head.weight"), head - before["lm_head.weight"])


def test_a_base_whose_names_begin_otherwise(tmp_path: Path, base: Path) -> None:
    held = load_file(base / "model.safetensors")
    bare = {name.removeprefix("model."): value for name, value in held.items() if name != "lm_head.weight"}
    save_file(bare, base / "model.safetensors")
    saved = write(tmp_path / "lora", PLAIN, {Q: (16, 16)})
    merged = open_adapter(tmp_path / "lora", None, base, False)
    name = f"{Q}.weight".removeprefix("model.")
    torch.testing.assert_close(merged.read(name), bare[name] + 4 * product(saved, Q))


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"peft_type": "IA3"}, "IA3"),
        ({"peft_type": "LOHA"}, "LOHA"),
        ({"init_lora_weights": "pissa_niter_16"}, "pissa_niter_16"),
        ({"init_lora_weights": "olora"}, "olora"),
        ({"init_lora_weights": "lora_ga"}, "lora_ga"),
        ({"target_parameters": ["experts.up"]}, "bare parameters"),
        ({"lora_bias": True}, "biases"),
        ({"trainable_token_indices": {"embed_tokens": [1]}}, "trained tokens"),
        ({"alora_invocation_tokens": [1]}, "activated"),
        ({"layer_replication": [[0, 2], [1, 3]]}, "replicated"),
    ],
)
def test_other_adapters_are_named(tmp_path: Path, base: Path, settings: dict[str, Any], named: str) -> None:
    write(tmp_path / "lora", PLAIN | settings, {Q: (16, 16)})
    with pytest.raises(UserError, match=naming(tmp_path / "lora", named, "merge_and_unload")):
        open_adapter(tmp_path / "lora", None, base, False)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"peft_type": "LORA"}', '{"peft_type": "LORA", "lora_alpha": "x"}'])
def test_a_description_that_is_none(tmp_path: Path, text: str) -> None:
    write(tmp_path / "lora", PLAIN, {Q: (16, 16)})
    (tmp_path / "lora/adapter_config.json").write_text(text)
    with pytest.raises(UserError, match=naming(tmp_path / "lora/adapter_config.json")):
        open_adapter(tmp_path / "lora", None, None, False)


def test_a_pattern_that_is_none(tmp_path: Path) -> None:
    write(tmp_path / "lora", PLAIN | {"alpha_pattern": {"q_(": 3}}, {Q: (16, 16)})
    with pytest.raises(UserError, match=naming("alpha_pattern", "q_(")):
        open_adapter(tmp_path / "lora", None, None, False)


def test_a_base_that_does_not_fit(tmp_path: Path, base: Path) -> None:
    write(tmp_path / "a", PLAIN, {"model.layers.7.self_attn.q_proj": (16, 16)})
    with pytest.raises(UserError, match=naming(tmp_path / "a", "model.layers.7.self_attn.q_proj.weight")):
        open_adapter(tmp_path / "a", None, base, False)
    write(tmp_path / "b", PLAIN, {Q: (12, 16)})
    with pytest.raises(UserError, match=naming(tmp_path / "b", f"{Q}.weight", "(12, 16)", "(16, 16)")):
        open_adapter(tmp_path / "b", None, base, False)


def test_factors_that_are_not_whole(tmp_path: Path) -> None:
    saved = write(tmp_path / "lora", PLAIN, {Q: (16, 16)})
    first = f"base_model.model.{Q}.lora_A.weight"
    save_file({first: saved[first]}, tmp_path / "lora/adapter_model.safetensors")
    with pytest.raises(UserError, match=naming(Q, "lora_A", "lora_B")):
        open_adapter(tmp_path / "lora", None, None, False)
    write(tmp_path / "lora", PLAIN, {Q: (16, 16)}, **{f"{Q}.lora_magnitude_vector": torch.ones(16)})
    with pytest.raises(UserError, match=naming(f"{Q}.lora_magnitude_vector")):
        open_adapter(tmp_path / "lora", None, None, False)


def test_several_adapters_in_one_file(tmp_path: Path, base: Path) -> None:
    first = write(tmp_path / "lora", PLAIN, {Q: (16, 16)})
    both = {
        name.replace(".weight", f".{of}.weight"): v * n for n, of in enumerate("xy", 1) for name, v in first.items()
    }
    torch.save(both, tmp_path / "lora/adapter_model.bin")
    (tmp_path / "lora/adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match=naming("adapter_model.bin", "x and y", "--weights")):
        open_adapter(tmp_path / "lora", None, base, False)
    change = open_adapter(tmp_path / "lora", "y", None, False).read(f"{Q}.weight")
    torch.testing.assert_close(change, 4 * 4 * product(first, Q))
    with pytest.raises(UserError, match=naming("z", "'x', 'y'")):
        open_adapter(tmp_path / "lora", "z", None, False)


def test_a_raw_state_dict_keeps_the_base_models_own_beside(tmp_path: Path, base: Path) -> None:
    v = "model.layers.1.self_attn.v_proj"
    saved = {f"base_model.model.{Q}.lora_{side}.{of}.weight": torch.ones(2, 16) for side in "AB" for of in "xy"}
    saved = {name: value.T if "lora_B" in name else value for name, value in saved.items()}
    saved |= {
        f"base_model.model.{v}.modules_to_save.x.weight": torch.full((8, 16), 1.0),
        f"base_model.model.{v}.modules_to_save.y.weight": torch.full((8, 16), 2.0),
        f"base_model.model.{v}.original_module.weight": torch.full((8, 16), 3.0),
        f"base_model.model.{Q}.base_layer.weight": torch.zeros(16, 16),
    }
    write(tmp_path / "lora", PLAIN, {})
    save_file({name: value.contiguous() for name, value in saved.items()}, tmp_path / "lora/adapter_model.safetensors")
    for value, of in enumerate("xy", 1):
        assert bool((open_adapter(tmp_path / "lora", of, base, False).read(f"{v}.weight") == value).all())


def test_what_has_no_place_in_the_base_model_is_refused(tmp_path: Path, base: Path) -> None:
    write(tmp_path / "lora", PLAIN, {Q: (16, 16)}, **{"model.layers.1.mlp.extra.weight": torch.ones(3)})
    with pytest.raises(UserError, match=naming(tmp_path / "lora", "model.layers.1.mlp.extra.weight")):
        open_adapter(tmp_path / "lora", None, base, False)
    write(tmp_path / "lora", PLAIN, {Q: (16, 16)}, **{"score.weight": torch.ones(3, 16)})  # a new head is no layer's
    assert "score.weight" not in open_adapter(tmp_path / "lora", None, base, False)


@pytest.mark.parametrize("shapes", [((4,), (4,)), ((2, 4, 1, 1), (4, 2, 1, 1)), ((2, 16), (16, 3))])
def test_factors_of_no_matrix(tmp_path: Path, shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    others = {f"{Q}.lora_{side}.weight": torch.ones(shape) for side, shape in zip("AB", shapes, strict=True)}
    write(tmp_path / "lora", PLAIN, {}, **others)
    with pytest.raises(UserError, match=naming(f"{Q}.weight", "merge_and_unload")):
        open_adapter(tmp_path / "lora", None, None, False)


def test_a_whole_reading(tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shapes = {f"model.layers.{layer}.{name}": shape for layer in range(3) for name, shape in SHAPES.items()}
    saved = write(tmp_path / "lora", PLAIN, shapes)
    assert is_adapter(tmp_path / "lora")
    assert not is_adapter(base)
    model = LlamaForCausalLM.from_pretrained(base)
    with torch.no_grad():
        for module in shapes:
            model.get_submodule(module).weight += 4 * product(saved, module)
    expected = analyze(model, resamples=2)
    merged = analyze(tmp_path / "lora", base=base, resamples=2)
    assert (merged.family, merged.assumed) == ("llama", [])
    for a, b in zip(merged.layers, expected.layers, strict=True):
        assert a.measures["effective_rank.q"] == pytest.approx(b.measures["effective_rank.q"], rel=1e-4)
    alone = analyze(tmp_path / "lora", resamples=2)
    inside = analyze(tmp_path / "lora", base=base, delta=True, resamples=2)
    for reading in (alone, inside):
        assert all((layer.measures["effective_rank.down"] or 9) <= RANK + 1e-3 for layer in reading.layers)
    assert main([str(tmp_path / "lora"), "--base", str(base), "--against", str(base)]) == 0
    assert main([str(base), "--base", str(base)]) == 2
    assert names(capsys.readouterr().err, "--base", base, "adapters")
    assert main([str(tmp_path / "lora"), "--delta"]) == 2
    assert names(capsys.readouterr().err, "--delta", "--base")
    assert main([str(tmp_path / "lora"), "--base", str(base), "--probe", "a b c"]) == 2
    assert names(capsys.readouterr().err, tmp_path / "lora", "merge_and_unload")


def test_a_change_of_some_matrices(tmp_path: Path, base: Path) -> None:
    write(
        tmp_path / "lora",
        PLAIN,
        {f"model.layers.{i}.self_attn.{p}_proj": SHAPES[f"self_attn.{p}_proj"] for i in range(3) for p in "qv"},
    )
    with pytest.raises(UserError, match=naming(tmp_path / "lora", "--base")):
        CheckpointModel(tmp_path / "lora")
    reading = analyze(tmp_path / "lora", base=base, delta=True, resamples=2)
    for layer in reading.layers:
        assert layer.measures["effective_rank.q"] == pytest.approx(RANK, abs=1)
        assert layer.measures["effective_rank.k"] is None
        assert layer.measures["cv"] is None or layer.measures["cv"] == 0


def test_a_change_of_one_layer(tmp_path: Path, base: Path) -> None:
    """Zeros where nothing is added are no finding and no role; the changes are listed against the base's weights."""
    saved = write(tmp_path / "lora", PLAIN, {Q: (16, 16)})
    output = read(
        str(tmp_path / "lora"), base=str(base), delta=True, device="cpu", clock=lambda: 0.0, progress=lambda line: None
    )
    (reading,) = output.readings
    assert reading.pathology == []
    assert not set(reading.substitutes) & set(reading.missing)
    for layer in (reading.layers[0], reading.layers[2]):
        assert {role.role for role in layer.scorings.values()} == {"none"}
    (change,) = output.document["change"]["tensors"]
    weight = load_file(base / "model.safetensors")[f"{Q}.weight"]
    assert change["tensor"] == f"{Q}.weight"
    expected = 8 / RANK * product(saved, Q)
    assert change["relative"] == pytest.approx(float(expected.norm() / weight.norm()), rel=1e-4)
    lines = printed(output.report)
    assert names(entry(lines, "change"), f"{Q}.weight", f"{change['relative']:.3g}", "RMS drift")
    assert names(entry(lines, "missing"), "merge_and_unload")


def test_a_run_of_adapters(tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for step in (1, 2):
        (tmp_path / "run").mkdir(exist_ok=True)
        write(tmp_path / f"run/checkpoint-{step}", PLAIN | {"lora_alpha": 0.01}, {Q: (16, 16)})
    assert main([str(tmp_path / "run"), "--base", str(base)]) == 0
    assert names(capsys.readouterr().out, "2 checkpoints")


def test_a_model_and_an_adapter_in_one_directory(tmp_path: Path, base: Path) -> None:
    write(base, PLAIN, {Q: (16, 16)})
    with pytest.raises(UserError, match=naming(base, "model.safetensors", "adapter_model.safetensors")):
        CheckpointModel(base)
    assert "lm_head.weight" in CheckpointModel(base / "model.safetensors").tensors
    assert open_adapter(base / "adapter_model.safetensors", None, None, False).names == {f"{Q}.weight"}
    with pytest.raises(UserError, match=naming(base / "model.safetensors", "adapter_config.json")):
        analyze(base / "model.safetensors", tokens=[[1, 2, 3]])


def test_factors_among_weights(tmp_path: Path) -> None:
    save_file(
        {
            f"base_model.model.{Q}.base_layer.weight": torch.ones(4, 4),
            f"base_model.model.{Q}.lora_A.default.weight": torch.ones(2, 4),
        },
        tmp_path / "model.safetensors",
    )
    with pytest.raises(UserError, match=naming(tmp_path / "model.safetensors", "lora_A", "merge_and_unload")):
        CheckpointModel(tmp_path)
