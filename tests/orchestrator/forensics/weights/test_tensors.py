"""Files that are not what they claim to be are refused in a sentence, before anything is computed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from orchestrator.common.errors import UserError
from orchestrator.forensics.weights.tensors import open_file, open_tensors
from tests.naming import naming


def test_values_are_cast_to_float32(tmp_path: Path) -> None:
    stored = {
        "half": torch.randn(3, 5).half(),
        "brain": torch.randn(3, 5).bfloat16(),
        "single": torch.randn(3, 5),
        "double": torch.randn(2).double(),
        "scalar": torch.tensor(0.5),
        "empty": torch.empty(0, 3),
    }
    save_file(stored, tmp_path / "model.safetensors")
    tensors = open_tensors(tmp_path)
    assert tensors.names == set(stored)
    assert "other" not in tensors
    for name, value in stored.items():
        read = tensors.read(name)
        assert read.dtype == torch.float32
        assert read.is_contiguous()
        assert tensors.shape(name) == tuple(read.shape) == tuple(value.shape)
        np.testing.assert_array_equal(read.numpy(), value.double().numpy().astype(np.float32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("block", [1, 3, 7, 100])
def test_rows_add_up_to_the_matrix(tmp_path: Path, block: int, dtype: torch.dtype) -> None:
    save_file({"w": torch.randn(7, 4).to(dtype)}, tmp_path / "model.safetensors")
    tensors = open_tensors(tmp_path)
    blocks = list(tensors.rows("w", block))
    assert all(len(rows) <= block and rows.dtype == torch.float32 for rows in blocks)
    assert torch.equal(torch.cat(blocks), tensors.read("w"))


def test_rows_are_checked_too(tmp_path: Path) -> None:
    save_file({"w": torch.tensor([[1.0], [float("nan")]])}, tmp_path / "model.safetensors")
    blocks = open_tensors(tmp_path).rows("w", 1)
    assert next(blocks).item() == 1
    with pytest.raises(UserError, match=naming("w in", tmp_path / "model.safetensors", "NaN")):
        next(blocks)


def test_values_may_be_changed_without_changing_the_file(tmp_path: Path) -> None:
    save_file({"w": torch.ones(3)}, tmp_path / "model.safetensors")
    tensors = open_tensors(tmp_path)
    tensors.read("w").zero_()
    tensors.release()
    assert tensors.read("w").sum() == 3


def test_path_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=naming(tmp_path / "nowhere", "exist")):
        open_tensors(tmp_path / "nowhere")


def test_empty_file(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(UserError, match=naming(tmp_path / "model.safetensors", "complete", "0 bytes")):
        open_tensors(tmp_path)


def test_truncated_file(tmp_path: Path) -> None:
    save_file({"w": torch.randn(64, 64)}, tmp_path / "model.safetensors")
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:-1])
    with pytest.raises(UserError, match=naming(tmp_path / "model.safetensors", "complete")):
        open_tensors(tmp_path)


def test_file_that_is_something_else(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not tensors at all")
    with pytest.raises(UserError, match=naming("notes.txt", ".safetensors")):
        open_tensors(tmp_path / "notes.txt")


def test_directory_without_weights_says_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "readme.md").touch()
    with pytest.raises(UserError, match=naming(tmp_path, "model.safetensors", "readme.md")):
        open_tensors(tmp_path)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "model."])
def test_wrappers_leave_the_names(tmp_path: Path, prefix: str) -> None:
    names = ["model.layers.0.w", "model.embed_tokens.weight", "lm_head.weight"]
    save_file({prefix + name: torch.ones(1) for name in names}, tmp_path / "model.safetensors")
    assert open_tensors(tmp_path).names == set(names)
    assert open_file(tmp_path / "model.safetensors").names == {prefix + name for name in names}


def test_wrappers_within_the_names(tmp_path: Path) -> None:
    save_file({"model.layers.0._orig_mod.w": torch.ones(1), "head": torch.ones(1)}, tmp_path / "model.safetensors")
    assert open_tensors(tmp_path).names == {"model.layers.0.w", "head"}


@pytest.mark.parametrize("names", [{"model.layers.0.w", "model.norm.weight"}, {"a", "_orig_mod.a"}, {"module.a", "b"}])
def test_names_that_stay_as_they_are(tmp_path: Path, names: set[str]) -> None:
    save_file({name: torch.ones(1) for name in names}, tmp_path / "model.safetensors")
    assert open_tensors(tmp_path).names == names


def test_only_file_of_its_kind_is_found(tmp_path: Path) -> None:
    save_file({"w": torch.ones(1)}, tmp_path / "weights.safetensors")
    torch.save({"pickled": torch.ones(1)}, tmp_path / "model.pt")
    for bystander in ("optimizer.pt", "scheduler.pt", "rng_state_0.pth", "training_args.bin", "optimizer.safetensors"):
        (tmp_path / bystander).touch()
    (tmp_path / "adapter_model.safetensors").touch()
    assert open_tensors(tmp_path).names == {"w"}
    (tmp_path / "weights.safetensors").unlink()
    assert open_tensors(tmp_path).names == {"pickled"}


def test_usual_name_goes_before_others(tmp_path: Path) -> None:
    save_file({"usual": torch.ones(1)}, tmp_path / "model.safetensors")
    save_file({"other": torch.ones(1)}, tmp_path / "consolidated.safetensors")
    torch.save({"pickled": torch.ones(1)}, tmp_path / "pytorch_model.bin")
    assert open_tensors(tmp_path).names == {"usual"}


def test_several_candidates_are_named(tmp_path: Path) -> None:
    for name in ("a.pt", "b.pth"):
        torch.save({"w": torch.ones(1)}, tmp_path / name)
    with pytest.raises(UserError, match=naming(tmp_path, "a.pt, b.pth")):
        open_tensors(tmp_path)


def test_adapters_alone(tmp_path: Path) -> None:
    save_file({"lora_A.weight": torch.ones(1)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(UserError, match=naming(tmp_path, "adapter", "trained on")):
        open_tensors(tmp_path)


def test_file_without_tensors(tmp_path: Path) -> None:
    save_file({}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=naming(tmp_path, "no tensors")):
        open_tensors(tmp_path)


def _shard(directory: Path, weight_map: object) -> None:
    save_file({"a": torch.ones(2)}, directory / "model-00001-of-00002.safetensors")
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_index_that_names_a_missing_shard(tmp_path: Path) -> None:
    _shard(tmp_path, {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"})
    with pytest.raises(
        UserError, match=naming(tmp_path / "model.safetensors.index.json", "model-00002-of-00002.safetensors")
    ):
        open_tensors(tmp_path)


def test_index_that_misplaces_a_tensor(tmp_path: Path) -> None:
    _shard(tmp_path, {"b": "model-00001-of-00002.safetensors"})
    with pytest.raises(UserError, match=naming(tmp_path / "model-00001-of-00002.safetensors", "b", "index")):
        open_tensors(tmp_path)


@pytest.mark.parametrize("shard", ["../elsewhere.safetensors", "{}/elsewhere.safetensors", "..", ""])
def test_index_that_leaves_the_directory(tmp_path: Path, shard: str) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "elsewhere.safetensors")
    (tmp_path / "checkpoint").mkdir()
    _shard(tmp_path / "checkpoint", {"a": shard.format(tmp_path)})
    with pytest.raises(UserError, match=naming("model.safetensors.index.json", Path(shard).name, "shards")):
        open_tensors(tmp_path / "checkpoint")


@pytest.mark.parametrize("length", [0, 4, 100])
def test_broken_shard(tmp_path: Path, length: int) -> None:
    _shard(tmp_path, {"a": "model-00001-of-00002.safetensors"})
    path = tmp_path / "model-00001-of-00002.safetensors"
    path.write_bytes(path.read_bytes()[:-1][:length])
    with pytest.raises(UserError, match=naming(path, "complete")):
        open_tensors(tmp_path)


def test_shards_are_read_as_one(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_file({name: torch.full((2,), ord(name)), "unlisted": torch.ones(1)}, tmp_path / f"{name}.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "a.safetensors", "b": "b.safetensors"}}))
    for source in (tmp_path, index):
        tensors = open_tensors(source)
        assert tensors.names == {"a", "b"}
    save_file({name: torch.full((2,), float(ord(name))) for name in "b"}, tmp_path / "b.safetensors")
    assert open_tensors(tmp_path).read("b").tolist() == [98, 98]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": 3}'])
def test_index_that_is_no_index(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(UserError, match=naming(tmp_path / "model.safetensors.index.json", "index of shards")):
        open_tensors(tmp_path)


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite(tmp_path: Path, poison: float) -> None:
    save_file({"fine": torch.ones(2), "broken": torch.tensor([1.0, poison])}, tmp_path / "model.safetensors")
    tensors = open_tensors(tmp_path)
    assert tensors.read("fine").sum() == 2
    with pytest.raises(UserError, match=naming("broken in", tmp_path / "model.safetensors", "NaN")):
        tensors.read("broken")


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.bool, torch.int64, torch.float8_e4m3fn])
def test_quantised_values(tmp_path: Path, dtype: torch.dtype) -> None:
    save_file({"w": torch.ones(4).to(dtype), "fine": torch.ones(1)}, tmp_path / "model.safetensors")
    tensors = open_tensors(tmp_path)  # what nobody reads disturbs nobody
    assert tensors.read("fine") == 1
    with pytest.raises(UserError, match=naming("w in", str(dtype).removeprefix("torch."), "fp32, fp16 or bf16")):
        tensors.read("w")


def test_type_that_torch_lacks(tmp_path: Path) -> None:
    header = json.dumps({"w": {"dtype": "F6_E2M3", "shape": [4], "data_offsets": [0, 3]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(3))
    with pytest.raises(
        UserError, match=naming("w in", tmp_path / "model.safetensors", "F6_E2M3", "fp32, fp16 or bf16")
    ):
        open_tensors(tmp_path).read("w")


READ_ALL = """
import re, sys
from pathlib import Path
from orchestrator.forensics.weights.tensors import open_tensors

def peak():  # unlike getrusage's, it does not begin with the parent's
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

before = peak()
for source in sys.argv[1:]:
    tensors = open_tensors(Path(source))
    for name in tensors.names:
        tensors.read(name)
        for _ in tensors.rows(name, 64):
            pass
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    stored = {f"layers.{i}.w": torch.full((1024, 1024), 0.5).to((torch.half, torch.float)[i % 2]) for i in range(80)}
    save_file(stored, tmp_path / "model.safetensors")  # 80 tensors of 2 or 4 MB
    torch.save(stored, tmp_path / "model.pt")
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    for name, value in stored.items():
        writer.add_tensor(name, value.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    sources = [str(tmp_path / f"model.{suffix}") for suffix in ("safetensors", "pt", "gguf")]
    done = subprocess.run([sys.executable, "-c", READ_ALL, *sources], capture_output=True, text=True, check=True)
    for source in sources:
        Path(source).unlink()
    assert int(done.stdout) < 100 * 2**20  # each file is 240 MB
