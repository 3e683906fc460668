"""Quantised matrices are de-quantised as their formats say; the packing here goes number by number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.integrations.finegrained_fp8 import Fp8Dequantize

from orchestrator.common.errors import UserError
from orchestrator.forensics.architecture.model import CheckpointModel
from orchestrator.forensics.weights.tensors import open_tensors
from tests.naming import naming

RNG = np.random.default_rng(0)


def write(path: Path, tensors: dict[str, Tensor], config: dict[str, Any] | None = None) -> Path:
    save_file({**tensors, "norm.weight": torch.ones(3)}, path / "model.safetensors")
    if config is not None:
        (path / "config.json").write_text(json.dumps({"quantization_config": config}))
    return path


def check(path: Path, expected: Tensor) -> None:
    tensors = open_tensors(path)
    assert tensors.names == {"a.weight", "norm.weight"}
    assert tensors.shape("a.weight") == tuple(expected.shape)
    torch.testing.assert_close(tensors.read("a.weight"), expected)
    torch.testing.assert_close(torch.cat(list(tensors.rows("a.weight", 5))), expected)
    assert tensors.read("norm.weight").tolist() == [1, 1, 1]


def fp8(rows: int, columns: int) -> Tensor:
    return torch.from_numpy(RNG.standard_normal((rows, columns), dtype=np.float32)).to(torch.float8_e4m3fn)


@pytest.mark.parametrize("name", ["weight_scale", "weight_scale_inv"])
@pytest.mark.parametrize("shape", [(), (1,), (8,), (8, 1)])
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8])
def test_one_scale_and_one_for_each_row(tmp_path: Path, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    weight = (fp8(8, 12).float() * 9).to(dtype)
    scale = torch.rand(shape) + 0.5
    write(tmp_path, {"a.weight": weight, f"a.{name}": scale, "a.input_scale": torch.ones(())})
    check(tmp_path, weight.float() * (scale.reshape(-1, 1) if scale.numel() > 1 else scale))


@pytest.mark.parametrize(
    "config",
    [
        {"quant_method": "fp8", "weight_block_size": [4, 6]},
        {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": {"block_structure": [4, 6]}}}},
    ],
)
def test_one_scale_for_each_block(tmp_path: Path, config: dict[str, Any]) -> None:
    weight, scale = fp8(10, 13), torch.rand(3, 3) + 0.5  # the last blocks are cut
    write(tmp_path, {"a.weight": weight, "a.weight_scale_inv": scale}, config)
    check(tmp_path, torch.stack([weight[i].float() * scale[i // 4, torch.arange(13) // 6] for i in range(10)]))


@pytest.mark.parametrize("exponents", [False, True])
def test_blocks_as_transformers_reads_them(tmp_path: Path, exponents: bool) -> None:
    weight = fp8(256, 384)
    scale = torch.randint(120, 130, (2, 3), dtype=torch.uint8) if exponents else torch.rand(2, 3) + 0.5
    write(tmp_path, {"a.weight": weight, "a.weight_scale_inv": scale}, {"weight_block_size": [128, 128]})
    found = Fp8Dequantize(None).convert({"weight": [weight], "weight_scale_inv": [scale]})["weight"]
    assert isinstance(found, Tensor)
    read = open_tensors(tmp_path).read("a.weight")
    torch.testing.assert_close(read.to(found.dtype), found)  # bf16 where the scales are bytes


def test_blocks_of_unknown_size(tmp_path: Path) -> None:
    write(tmp_path, {"a.weight": fp8(10, 12), "a.weight_scale_inv": torch.ones(3, 2)})
    with pytest.raises(UserError, match=naming("a.weight", tmp_path, "(3, 2)")):
        open_tensors(tmp_path).read("a.weight")


def test_int8_of_bitsandbytes(tmp_path: Path) -> None:
    whole = torch.from_numpy(RNG.standard_normal((6, 16), dtype=np.float32))
    largest = whole.abs().amax(1)
    weight = (whole * 127 / largest[:, None]).round().to(torch.int8)
    parts = {"a.weight": weight, "a.SCB": largest, "a.weight_format": torch.tensor(0, dtype=torch.uint8)}
    write(tmp_path, parts)
    check(tmp_path, weight.float() * largest[:, None] / 127)
    assert float((open_tensors(tmp_path).read("a.weight") - whole).abs().max()) < float(largest.max()) / 127
    write(tmp_path, parts | {"a.weight_format": torch.tensor(1, dtype=torch.uint8)})
    with pytest.raises(UserError, match=naming("a.weight", "LLM.int8")):
        open_tensors(tmp_path).read("a.weight")


def packed(numbers: np.ndarray, bits: int, order: tuple[int, ...] | None = None) -> Tensor:
    """Each row of numbers in 32-bit words, the first in the lowest bits; `order`: which number each place holds."""
    size = 32 // bits
    rows, columns = numbers.shape
    words = np.zeros((rows, columns // size), dtype=np.uint32)
    for row in range(rows):
        for column in range(columns):
            word, place = divmod(column, size)
            number = numbers[row, word * size + (order[place] if order else place)]
            words[row, word] |= np.uint32(int(number) << (bits * place))
    return torch.from_numpy(words.view(np.int32))


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("version", ["gptq", "gptq_v2", None])
@pytest.mark.parametrize("order", ["in groups", "by activation", "not said"])
def test_gptq(tmp_path: Path, bits: int, version: str | None, order: str) -> None:
    inputs, out, groups = 32, 16, 4
    levels = RNG.integers(0, 2**bits, (inputs, out))
    zeros = RNG.integers(1, 2**bits, (groups, out))
    scales = torch.rand(groups, out) + 0.5
    group = np.arange(inputs) // 8 if order != "by activation" else RNG.permutation(np.arange(inputs) // 8)
    less = 0 if version == "gptq_v2" else 1
    parts = {
        "a.qweight": packed(levels.T, bits).T.contiguous(), "a.qzeros": packed(zeros - less, bits), "a.scales": scales,
    }  # fmt: skip
    if order != "not said":
        parts["a.g_idx"] = torch.from_numpy(group.astype(np.int32))
    write(tmp_path, parts, {"bits": bits} | ({"checkpoint_format": version} if version else {}))
    check(tmp_path, torch.from_numpy(np.array([
        [(levels[i, o] - zeros[group[i], o]) * float(scales[group[i], o]) for i in range(inputs)] for o in range(out)
    ], dtype=np.float32)))  # fmt: skip


def test_gptq_without_its_settings(tmp_path: Path) -> None:
    zeros = packed(np.ones((1, 8), dtype=int), 4)
    words = packed(np.ones((8, 8), dtype=int), 4).T.contiguous()
    write(tmp_path, {"a.qweight": words, "a.qzeros": zeros, "a.scales": torch.ones(1, 8)})
    with pytest.raises(UserError, match=naming("a.weight", tmp_path, "quantization_config")):
        open_tensors(tmp_path).read("a.weight")
    (tmp_path / "quantize_config.json").write_text('{"bits": 4, "group_size": -1}')  # where AutoGPTQ writes them
    assert torch.equal(open_tensors(tmp_path).read("a.weight"), torch.full((8, 8), -1.0))


def test_groups_of_gptq_that_do_not_fill_the_inputs(tmp_path: Path) -> None:
    levels, scales = RNG.integers(0, 16, (40, 8)), torch.tensor([[1.0], [2.0], [4.0]]).expand(3, 8).contiguous()
    parts = {
        "a.qweight": packed(levels.T, 4).T.contiguous(), "a.qzeros": packed(np.zeros((3, 8), dtype=int), 4),
        "a.scales": scales,
    }  # fmt: skip
    settings = {"bits": 4, "checkpoint_format": "gptq_v2"}
    write(tmp_path, parts, settings | {"group_size": 16})
    sizes = np.array([1.0] * 16 + [2.0] * 16 + [4.0] * 8)
    check(tmp_path, torch.from_numpy((levels * sizes[:, None]).T.astype(np.float32)))
    for wrong, named in (({"group_size": 8}, "3 groups of 8"), ({"group_size": 16, "desc_act": True}, "g_idx")):
        write(tmp_path, parts, settings | wrong)
        with pytest.raises(UserError, match=naming("a.weight", "GPTQ", named)):
            open_tensors(tmp_path).read("a.weight")


def test_awq(tmp_path: Path) -> None:
    inputs, out, groups = 12, 24, 3
    levels, zeros = RNG.integers(0, 16, (inputs, out)), RNG.integers(0, 16, (groups, out))
    scales = torch.rand(groups, out).half()
    order = (0, 2, 4, 6, 1, 3, 5, 7)
    parts = {"a.qweight": packed(levels, 4, order), "a.qzeros": packed(zeros, 4, order), "a.scales": scales}
    write(tmp_path, parts, {"quant_method": "awq", "version": "gemm", "bits": 4})
    check(tmp_path, torch.from_numpy(np.array([
        [(levels[i, o] - zeros[i // 4, o]) * float(scales[i // 4, o]) for i in range(inputs)] for o in range(out)
    ], dtype=np.float32)))  # fmt: skip
    write(tmp_path, parts, {"quant_method": "awq", "version": "gemv", "bits": 4})
    with pytest.raises(UserError, match=naming("a.weight", "AWQ", "gemv")):
        open_tensors(tmp_path).read("a.weight")


SIZES = {
    "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
}  # fmt: skip
OTHERS = {
    "nvfp4": {
        "weight": torch.ones(2, 2, dtype=torch.uint8), "weight_scale": torch.ones(2), "weight_scale_2": torch.ones(()),
    },
    "nf4": {
        "weight": torch.ones(8, 1, dtype=torch.uint8), "weight.absmax": torch.ones(4),
        "weight.quant_map": torch.ones(9),
    },
    "compressed": {"weight_packed": torch.ones(2, 2, dtype=torch.int32), "weight_scale": torch.ones(2)},
    "three bits": {
        "qweight": torch.ones(3, 32, dtype=torch.int32), "qzeros": torch.ones(1, 3, dtype=torch.int32),
        "scales": torch.ones(1, 32),
    },
    "odd": {"qweight": torch.ones(3), "qzeros": torch.ones(1), "scales": torch.ones(1)},
}  # fmt: skip


@pytest.mark.parametrize("other", OTHERS)
def test_other_packings_are_refused_by_name(tmp_path: Path, other: str) -> None:
    LlamaForCausalLM(LlamaConfig(**SIZES)).save_pretrained(tmp_path)
    held = load_file(tmp_path / "model.safetensors")
    module = "model.layers.0.mlp.up_proj"
    del held[f"{module}.weight"]
    held |= {f"{module}.{name}": value for name, value in OTHERS[other].items()}
    save_file(held, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=naming(tmp_path, "quantised", module)):
        CheckpointModel(tmp_path)


def test_a_whole_model(tmp_path: Path) -> None:
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**SIZES)).save_pretrained(tmp_path)
    held = load_file(tmp_path / "model.safetensors")
    expected = {}
    for name in [name for name in held if name.endswith("_proj.weight")]:
        weight, scale = held[name].to(torch.float8_e4m3fn), torch.rand(held[name].shape[0], 1)
        expected[name] = weight.float() * scale
        held |= {name: weight, f"{name}_scale": scale}
    save_file(held, tmp_path / "model.safetensors")
    for layer in CheckpointModel(tmp_path):
        for kind in layer.kinds:
            torch.testing.assert_close(layer.weight(kind), expected[layer.name(kind)])
