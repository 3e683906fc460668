"""Files of torch.save are read through every usual nesting; one that could run code is refused."""

from __future__ import annotations

import argparse
import json
import pickle
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from orchestrator.common.errors import UserError
from orchestrator.forensics.weights import archives
from orchestrator.forensics.weights.tensors import open_tensors
from tests.naming import naming
from tests.orchestrator.forensics.payload import Payload


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        "model.layers.0.w": torch.randn(6, 4),
        "model.norm.weight": torch.randn(4).bfloat16(),
        "lm_head.weight": torch.randn(9, 4).half(),
    }


def _same(source: Path, weights: dict[str, torch.Tensor]) -> None:
    tensors = open_tensors(source)
    assert tensors.names == set(weights)
    for name, value in weights.items():
        assert tensors.shape(name) == tuple(value.shape)
        assert torch.equal(tensors.read(name), value.float())


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth", ".ckpt"])
@pytest.mark.parametrize("zipped", [True, False])
def test_values_by_name(tmp_path: Path, weights: dict[str, torch.Tensor], suffix: str, zipped: bool) -> None:
    path = tmp_path / f"saved{suffix}"
    torch.save(weights, path, _use_new_zipfile_serialization=zipped)
    _same(path, weights)
    _same(tmp_path, weights)


NESTINGS: list[Callable[[dict[str, torch.Tensor]], object]] = [
    lambda sd: {"model": sd, "step": 3, "note": "text", "lrs": [0.1]},
    lambda sd: {"state_dict": sd, "ema": {"model.norm.weight": torch.ones(4)}},
    lambda sd: {"model": sd, "exp_avg": {name: value + 1 for name, value in sd.items()}},
    lambda sd: {"module": {f"module.{name}": value for name, value in sd.items()}},
    lambda sd: {f"_orig_mod.module.{name}": value for name, value in sd.items()},
    lambda sd: {"state_dict": {f"model.{name}": value for name, value in sd.items()}},
    lambda sd: {"checkpoint": {"model_state_dict": sd}, "rng": torch.ones(5)},
    lambda sd: {"model": sd, "optimizer": {"flat": {f"{n}{i}": v for n, v in sd.items() for i in range(9)}}},
]


SETTINGS: list[object] = [
    argparse.Namespace(lr=0.1, out=Path("/runs"), seeds=[1, 2]), SimpleNamespace(lr=0.1), datetime(2026, 1, 1),
    OmegaConf.create({"model": {"sizes": [1, 2], "name": None}}), np.float64(0.1), {"step": np.int64(3)},
]  # fmt: skip


@pytest.mark.parametrize("settings", SETTINGS)
def test_settings_beside_the_weights_are_left_out(
    tmp_path: Path, weights: dict[str, torch.Tensor], settings: object
) -> None:
    path = tmp_path / "saved.pt"
    torch.save({"model": weights, "args": settings}, path)
    _same(path, weights)


def test_nothing_of_settings_runs(
    tmp_path: Path, weights: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = tmp_path / "ran"
    module = ModuleType("omegaconf.hostile")

    def act(path: str) -> None:
        Path(path).touch()

    class Hostile:
        def __reduce__(self) -> tuple[object, ...]:
            return act, (str(ran),)

    act.__module__, act.__qualname__ = module.__name__, "act"
    module.__dict__["act"] = act
    monkeypatch.setitem(sys.modules, module.__name__, module)
    path = tmp_path / "saved.pt"
    torch.save({"model": weights, "args": Hostile()}, path)
    torch.load(path, weights_only=False)
    assert ran.exists(), "as it would"
    ran.unlink()
    _same(path, weights)
    assert not ran.exists()


def test_a_model_that_was_pickled_whole_is_not_passed_by(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    path = tmp_path / "saved.pt"
    torch.save({"model": torch.nn.Linear(2, 2), "ema": weights}, path)
    with pytest.raises(UserError, match=naming(path, "Linear", "state_dict()")):
        open_tensors(path)


@pytest.mark.parametrize("nesting", range(len(NESTINGS)))
def test_nested_state_dicts(tmp_path: Path, weights: dict[str, torch.Tensor], nesting: int) -> None:
    torch.save(NESTINGS[nesting](weights), tmp_path / "model.pt")
    _same(tmp_path, weights)


def test_views_and_parameters_are_read_as_they_are(tmp_path: Path) -> None:
    whole = torch.randn(4, 6)
    stored = {"t": whole.T, "part": whole[1:3, ::2], "parameter": torch.nn.Parameter(whole)}
    torch.save(stored, tmp_path / "model.pt")
    _same(tmp_path, {name: value.detach() for name, value in stored.items()})
    assert torch.equal(torch.cat(list(open_tensors(tmp_path).rows("t", 4))), whole.T)


def test_map_is_renewed_without_a_trace(
    tmp_path: Path, weights: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "HELD", 0)
    torch.save(weights, tmp_path / "model.pt")
    _same(tmp_path, weights)
    tensors = open_tensors(tmp_path)
    before = tensors.read("model.layers.0.w")
    tensors.release()
    assert torch.equal(before, tensors.read("model.layers.0.w"))


def test_values_may_be_changed_without_changing_the_next_reading(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(3)}, tmp_path / "model.bin", _use_new_zipfile_serialization=False)
    tensors = open_tensors(tmp_path)
    tensors.read("w").zero_()
    assert tensors.read("w").sum() == 3


def test_shards_under_an_index(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    weight_map = {name: f"pytorch_model-{i}.bin" for i, name in enumerate(weights)}
    for name, shard in weight_map.items():
        torch.save({name: weights[name]}, tmp_path / shard)
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    _same(tmp_path, weights)


@pytest.mark.parametrize("stored", [torch.ones(2, dtype=torch.int8), torch.ones(2, 2).to_sparse(), torch.ones(2) > 0])
def test_values_that_are_no_plain_floats(tmp_path: Path, stored: torch.Tensor) -> None:
    torch.save({"w": stored}, tmp_path / "model.pt")
    with pytest.raises(UserError, match=naming("w in", tmp_path / "model.pt", "stored", "fp32, fp16 or bf16")):
        open_tensors(tmp_path).read("w")


TRAPS: dict[str, Callable[[Payload, Path], object]] = {
    "pickle": lambda payload, path: path.write_bytes(pickle.dumps(payload)),
    "old pickle": lambda payload, path: path.write_bytes(pickle.dumps(payload, protocol=2)),
    "zip": lambda payload, path: torch.save({"w": torch.ones(2), "x": payload}, path),
    "legacy": lambda payload, path: torch.save({"w": payload}, path, _use_new_zipfile_serialization=False),
}


@pytest.mark.parametrize("trap", TRAPS)
@pytest.mark.parametrize("inside", [True, False])
def test_pickle_that_would_run_code_is_not_run(tmp_path: Path, trap: str, inside: bool) -> None:
    path = tmp_path / "pytorch_model.bin"
    TRAPS[trap](Payload(tmp_path / "trap"), path)
    with pytest.raises(UserError, match=naming(path, "state_dict()", "safetensors")):
        open_tensors(tmp_path if inside else path)
    assert not (tmp_path / "trap").exists()
    pickle.loads(pickle.dumps(Payload(tmp_path / "trap"))).close()
    assert (tmp_path / "trap").exists()  # the trap does work


def test_whole_module(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "model.pt")
    with pytest.raises(UserError, match=naming("torch.nn.modules.linear.Linear", "state_dict()")):
        open_tensors(tmp_path)


@pytest.mark.parametrize("contents", [{}, {"step": 1}, [torch.ones(2)], torch.ones(2)])
def test_nothing_with_a_name(tmp_path: Path, contents: object) -> None:
    torch.save(contents, tmp_path / "model.pt")
    with pytest.raises(UserError, match=naming("model.pt", "no tensors")):
        open_tensors(tmp_path)


def test_dict_that_holds_itself(tmp_path: Path) -> None:
    circle: dict[str, object] = {"w": torch.ones(2)}
    circle["self"] = circle
    torch.save(circle, tmp_path / "model.pt")
    with pytest.raises(UserError, match=naming("model.pt", "not a whole file")):
        open_tensors(tmp_path)


def test_empty_file(tmp_path: Path) -> None:
    (tmp_path / "model.pt").touch()
    with pytest.raises(UserError, match=naming("model.pt", "0 bytes")):
        open_tensors(tmp_path)


@pytest.mark.parametrize("text", ["hello", "version https://git-lfs", "{}", "."])
def test_text(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.pt").write_text(text)
    with pytest.raises(UserError, match=naming("model.pt", "not a whole file")):
        open_tensors(tmp_path)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.99])
def test_truncated_file(tmp_path: Path, zipped: bool, kept: float) -> None:
    path = tmp_path / "model.pt"
    torch.save({"w": torch.randn(1000)}, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(UserError, match=naming("model.pt", "not a whole file")):
        open_tensors(tmp_path)
