"""Files that are not what they claim to be are refused in a sentence, before anything is computed."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from orchestrator.errors import UserError
from orchestrator.forensics.tensors import open_tensors


def test_values_are_upcast_exactly(tmp_path: Path) -> None:
    stored = {
        "half": torch.randn(3, 5).half(),
        "brain": torch.randn(3, 5).bfloat16(),
        "double": torch.randn(2).double(),
    }
    save_file(stored, tmp_path / "model.safetensors")
    tensors = open_tensors(tmp_path)
    for name, value in stored.items():
        read = tensors.read(name)
        assert read.dtype == np.float64
        assert tensors.shape(name) == read.shape
        np.testing.assert_array_equal(read, value.double().numpy())


def test_path_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere does not exist"):
        open_tensors(tmp_path / "nowhere")


def test_empty_file(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(UserError, match="not a complete safetensors file"):
        open_tensors(tmp_path)


def test_truncated_file(tmp_path: Path) -> None:
    save_file({"w": torch.randn(64, 64)}, tmp_path / "model.safetensors")
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:-1])
    with pytest.raises(UserError, match="not a complete safetensors file"):
        open_tensors(tmp_path)


def test_file_that_is_something_else(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not tensors at all")
    with pytest.raises(UserError, match=r"notes\.txt is not a complete safetensors file"):
        open_tensors(tmp_path / "notes.txt")


def test_directory_without_weights_says_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "readme.md").touch()
    with pytest.raises(UserError, match=r"looked for model\.safetensors .* found readme\.md"):
        open_tensors(tmp_path)


@pytest.mark.parametrize("inside", [True, False])
def test_pickle_is_refused_and_never_loaded(tmp_path: Path, inside: bool) -> None:
    trap, path = tmp_path / "trap", tmp_path / "pytorch_model.bin"

    class Payload:
        def __reduce__(self) -> tuple[object, tuple[Path]]:
            return Path.touch, (trap,)

    path.write_bytes(pickle.dumps(Payload()))
    with pytest.raises(UserError, match="is a pickle"):
        open_tensors(tmp_path if inside else path)
    assert not trap.exists()


def _shard(directory: Path, weight_map: object) -> None:
    save_file({"a": torch.ones(2)}, directory / "model-00001-of-00002.safetensors")
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_index_that_names_a_missing_shard(tmp_path: Path) -> None:
    _shard(tmp_path, {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"})
    with pytest.raises(UserError, match=r"names the shard model-00002-of-00002\.safetensors"):
        open_tensors(tmp_path)


def test_index_that_misplaces_a_tensor(tmp_path: Path) -> None:
    _shard(tmp_path, {"b": "model-00001-of-00002.safetensors"})
    with pytest.raises(UserError, match="does not hold b"):
        open_tensors(tmp_path)


def test_index_that_leaves_the_directory(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "elsewhere.safetensors")
    (tmp_path / "checkpoint").mkdir()
    _shard(tmp_path / "checkpoint", {"a": "../elsewhere.safetensors"})
    with pytest.raises(UserError, match="not beside it"):
        open_tensors(tmp_path / "checkpoint")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": 3}'])
def test_index_that_is_no_index(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(UserError, match="is not an index"):
        open_tensors(tmp_path)


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite(tmp_path: Path, poison: float) -> None:
    save_file({"fine": torch.ones(2), "broken": torch.tensor([1.0, poison])}, tmp_path / "model.safetensors")
    tensors = open_tensors(tmp_path)
    assert tensors.read("fine").sum() == 2
    with pytest.raises(UserError, match=r"broken in .* holds NaN or infinite"):
        tensors.read("broken")


def test_quantised_values(tmp_path: Path) -> None:
    save_file({"w": torch.ones(4, dtype=torch.int8)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="stored as I8"):
        open_tensors(tmp_path).read("w")
