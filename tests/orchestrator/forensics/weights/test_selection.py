"""One model is found among all that was saved; of several, none is taken unless it is named."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from orchestrator.common.errors import UserError
from orchestrator.forensics.architecture.model import CheckpointModel
from orchestrator.forensics.weights.selection import select
from orchestrator.forensics.weights.tensors import open_tensors
from tests.naming import names, naming

SOURCE = Path("saved.pt")
Key = tuple[Hashable, ...]


def keys(parent: Key, count: int) -> list[Key]:
    return [(*parent, f"layers.{i}.w") for i in range(count)]


@pytest.mark.parametrize("other", ["ema_model", "ema", "model_ema", "teacher", "a"])
@pytest.mark.parametrize("more", [0, 1, -1])
def test_a_copy_beside_the_model_is_refused_whatever_its_name_and_size(other: str, more: int) -> None:
    held = keys(("model",), 6) + keys((other,), 6 + more)
    with pytest.raises(UserError, match=naming(SOURCE, "model", other, "--weights")):
        select(SOURCE, held, None)
    for chosen, count in {"model": 6, other: 6 + more}.items():
        found = select(SOURCE, held, chosen)
        assert set(found) == {f"layers.{i}.w" for i in range(count)}
        assert {key[0] for key in found.values()} == {chosen}


def test_less_than_half_a_model_is_none() -> None:
    held = keys(("state_dict",), 6) + keys(("ema",), 2) + keys(("optimizer", "exp_avg"), 9) + keys(("exp_avg",), 6)
    assert {key[0] for key in select(SOURCE, held, None).values()} == {"state_dict"}
    assert {key[0] for key in select(SOURCE, held, "ema").values()} == {"ema"}


def test_a_part_is_named_by_any_whole_segments() -> None:
    held: list[Key] = [
        ("state_dict", f"{tower}.model.layers.{i}.w") for tower in ("student", "teacher") for i in (0, 1)
    ]
    for chosen in ("student", "state_dict.student", "student.model"):
        found = select(SOURCE, held, chosen)
        within = "model.layers" if chosen != "student.model" else "layers"
        assert found == {f"{within}.{i}.w": ("state_dict", f"student.model.layers.{i}.w") for i in (0, 1)}
    for absent in ("stud", "layers.1.w", "w", ".*"):
        with pytest.raises(UserError, match=naming(SOURCE, absent, "state_dict")):
            select(SOURCE, held, absent)
    with pytest.raises(UserError, match=naming(SOURCE, "state_dict.student.model", "state_dict.teacher.model")):
        select(SOURCE, held, "model")


def test_the_outermost_part_of_a_name_is_meant() -> None:
    held = keys(("model", "model"), 3) + keys(("ema", "model"), 1)
    assert set(select(SOURCE, held, "model")) == {f"layers.{i}.w" for i in range(3)}


LLAMA = {
    "self_attn.q_proj": (8, 8), "self_attn.k_proj": (8, 8), "self_attn.v_proj": (8, 8), "self_attn.o_proj": (8, 8),
    "mlp.gate_proj": (12, 8), "mlp.up_proj": (12, 8), "mlp.down_proj": (8, 12),
}  # fmt: skip


def towers(path: Path, config: str, *prefixes: str, layers: int = 2) -> Path:
    """A directory with the same little Llama under every prefix, filled with the prefix's position."""
    path.mkdir()
    tensors = {
        f"{prefix}layers.{layer}.{name}.weight": torch.full(shape, float(number))
        for number, prefix in enumerate(prefixes)
        for layer in range(layers)
        for name, shape in LLAMA.items()
    }
    for number, prefix in enumerate(prefixes):
        for layer in range(layers):
            for norm in ("input_layernorm", "post_attention_layernorm"):
                tensors[f"{prefix}layers.{layer}.{norm}.weight"] = torch.full((8,), float(number))
    save_file(tensors, path / "model.safetensors")
    (path / "config.json").write_text(config)
    return path


DECLARED = '{"model_type": "llama", "num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 8}'


@pytest.mark.parametrize("config", [DECLARED, "{}"])
def test_two_towers_are_refused_and_chosen_by_name(tmp_path: Path, config: str) -> None:
    path = towers(tmp_path / "m", config, "student.model.", "teacher.model.")
    with pytest.raises(UserError, match=naming(path, "student.model.layers", "teacher.model.layers", "--weights")):
        CheckpointModel(path)
    for number, chosen in enumerate(("student", "teacher")):
        model = CheckpointModel(path, weights=chosen)
        assert len(model) == 2
        assert all(bool((layer.weight("q") == number).all()) for layer in model)


@pytest.mark.parametrize("other", ["vision_tower.", "mtp.", "model.visual.", "audio_tower.", "perceiver.", "qformer."])
def test_what_is_no_language_model_by_its_name_is_passed_by(tmp_path: Path, other: str) -> None:
    model = CheckpointModel(towers(tmp_path / "m", DECLARED, "model.", other))
    assert bool((model.layer(0).weight("q") == 0).all())


@pytest.mark.parametrize("config", [DECLARED, "{}"])
def test_one_that_calls_itself_a_language_model_is_not_the_only_one(tmp_path: Path, config: str) -> None:
    path = towers(tmp_path / "m", config, "student.language_model.", "teacher.")
    with pytest.raises(UserError, match=naming(path, "student.language_model.layers", "teacher.layers", "--weights")):
        CheckpointModel(path)


def test_a_choice_in_a_file_of_torch(tmp_path: Path) -> None:
    kept = {"layers.0.w": torch.ones(3), "layers.1.w": torch.ones(3)}
    averaged = {name: value + 1 for name, value in kept.items()}
    torch.save({"model": kept, "ema_model": averaged | {"initted": torch.tensor(True)}}, tmp_path / "m.pt")
    with pytest.raises(UserError) as refused:
        open_tensors(tmp_path)
    assert names(refused.value, tmp_path / "m.pt", "model", "ema_model", "--weights")
    assert open_tensors(tmp_path, "ema_model").read("layers.0.w").tolist() == [2, 2, 2]
    assert open_tensors(tmp_path / "m.pt", "model").read("layers.0.w").tolist() == [1, 1, 1]
