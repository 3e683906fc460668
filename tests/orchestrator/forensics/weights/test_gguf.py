"""GGUF files written by the `gguf` package are read as it reads them; broken ones are refused."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type

from orchestrator.common.errors import UserError
from orchestrator.forensics.weights.gguf import GGUF
from orchestrator.forensics.weights.tensors import open_tensors
from tests.naming import naming

READ = [
    Type.F32, Type.F16, Type.BF16, Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1, Type.Q8_0, Type.Q2_K, Type.Q3_K,
    Type.Q4_K, Type.Q5_K, Type.Q6_K, Type.IQ4_XS, Type.MXFP4,
]  # fmt: skip


def stored(of: Type, rows: int = 6, columns: int = 512) -> np.ndarray:
    """The bytes [rows, n] of a matrix of this type; K-quants, which the package cannot make, are arbitrary."""
    generator = np.random.default_rng(0)
    try:
        packed = gguf.quants.quantize(generator.standard_normal((rows, columns), dtype=np.float32), of)
    except NotImplementedError:
        block, size = gguf.GGML_QUANT_SIZES[of]
        packed = generator.integers(0, 63, (rows, columns // block * size), dtype=np.uint8)  # finite scales
    return packed


def write(path: Path, tensors: dict[str, tuple[np.ndarray, Type | None]], **metadata: object) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in metadata.items():
        writer.add_key_value(key.replace("__", "."), value, gguf.GGUFValueType.get_type(value))
    writer.add_array("tokenizer.ggml.tokens", [f"token {i}" for i in range(5000)])  # longer than what is kept
    writer.add_array("tokenizer.ggml.scores", [float(i) for i in range(5000)])
    for name, (values, of) in tensors.items():
        writer.add_tensor(name, values, raw_dtype=of)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("of", READ, ids=lambda of: of.name)
def test_values_as_the_package_reads_them(tmp_path: Path, of: Type) -> None:
    raw = of not in (Type.F32, Type.F16)
    path = write(tmp_path / "m.gguf", {"a": (np.ones(3, np.float32), None), "w": (stored(of), of if raw else None)})
    expected = gguf.dequantize(next(t for t in gguf.GGUFReader(path).tensors if t.name == "w").data, of)
    assert np.isfinite(expected).all()
    tensors = open_tensors(tmp_path)
    assert tensors.shape("w") == (6, 512)
    assert np.array_equal(tensors.read("w").numpy(), expected)
    assert np.array_equal(torch.cat(list(tensors.rows("w", 4))).numpy(), expected)
    assert tensors.read("a").tolist() == [1, 1, 1]


def test_metadata_without_the_vocabulary(tmp_path: Path) -> None:
    values = {
        "llama__block_count": 7,
        "llama__rms": 0.5,
        "general__name": "ein Löwe",
        "llama__heads": [3, 4],
        "b": True,
    }
    write(tmp_path / "m.gguf", {"w": (np.ones((2, 3), np.float32), None)}, **values)
    found = open_tensors(tmp_path / "m.gguf").metadata
    assert {key.replace("__", "."): value for key, value in values.items()}.items() <= found.items()
    assert found["general.architecture"] == "llama"
    assert found["tokenizer.ggml.tokens"] is None
    assert found["tokenizer.ggml.scores"] is None


def test_alignment_and_axes(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_custom_alignment(256)
    values = {"three": np.arange(24, dtype=np.float32).reshape(2, 3, 4), "one": np.arange(5, dtype=np.float32)}
    for name, value in values.items():
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    tensors = open_tensors(path)
    for name, value in values.items():
        assert tensors.shape(name) == value.shape
        assert np.array_equal(tensors.read(name).numpy(), value)
    assert np.array_equal(torch.cat(list(tensors.rows("three", 1))).numpy(), values["three"])


def test_a_matrix_of_nothing(tmp_path: Path) -> None:
    write(tmp_path / "m.gguf", {"w": (np.ones((0, 4), np.float32), None)})
    assert open_tensors(tmp_path).read("w").shape == (0, 4)


def test_a_type_without_a_reader_is_named(tmp_path: Path) -> None:
    write(tmp_path / "m.gguf", {"w": (np.ones((2, 32), np.int8), Type.I8), "fine": (np.ones(3, np.float32), None)})
    tensors = open_tensors(tmp_path)
    assert tensors.read("fine").sum() == 3
    with pytest.raises(UserError, match=naming("w in", tmp_path / "m.gguf", "I8", "Q8_0")):
        tensors.read("w")


@pytest.mark.parametrize("kept", [3, 8, 20, 60, 0.5, 0.9, -1])
def test_a_truncated_file(tmp_path: Path, kept: float) -> None:
    path = write(tmp_path / "m.gguf", {"w": (np.ones((64, 64), np.float32), None)})
    whole = path.read_bytes()
    path.write_bytes(whole[: kept if isinstance(kept, int) else int(kept * len(whole))])
    with pytest.raises(UserError, match=naming(path, "GGUF file", "copy")):
        open_tensors(path)


@pytest.mark.parametrize(
    ("at", "value"),
    [(8, 2**63), (16, 2**63), (24, 2**62), (8, 10**6), (16, 10**6)],  # counts of tensors and entries, a key's length
)
def test_a_header_that_lies(tmp_path: Path, at: int, value: int) -> None:
    path = write(tmp_path / "m.gguf", {"w": (np.ones((4, 4), np.float32), None)})
    content = bytearray(path.read_bytes())
    content[at : at + 8] = struct.pack("<Q", value)
    path.write_bytes(content)
    with pytest.raises(UserError, match=naming(path, "GGUF file", "copy")):
        GGUF(path)


def test_other_versions_and_byte_orders(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", {"w": (np.ones((4, 4), np.float32), None)})
    content = path.read_bytes()
    path.write_bytes(content[:4] + struct.pack("<I", 1) + content[8:])
    with pytest.raises(UserError, match=naming(path, "version 1", "llama.cpp")):
        GGUF(path)
    path.write_bytes(content[:4] + struct.pack(">I", 3) + content[8:])
    with pytest.raises(UserError, match=naming(path, "big-endian", "convert_endian")):
        GGUF(path)


@pytest.mark.parametrize("bare", [False, True])
def test_a_file_that_is_split(tmp_path: Path, bare: bool) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama", split_max_tensors=2, small_first_shard=bare)
    writer.add_block_count(7)
    for value in range(3):
        writer.add_tensor(f"w{value}", np.full((4, 4), value, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    parts = sorted(tmp_path.glob("m-*-of-*.gguf"))
    assert len(parts) == (3 if bare else 2)
    tensors = open_tensors(tmp_path)
    assert [float(tensors.read(f"w{value}").mean()) for value in range(3)] == [0, 1, 2]
    assert tensors.metadata["llama.block_count"] == 7
    with pytest.raises(UserError, match=naming(parts[0], f"{len(parts)} parts")):
        open_tensors(parts[0])
    parts[1].unlink()
    with pytest.raises(UserError, match=naming(tmp_path, parts[1].name)):
        open_tensors(tmp_path)


def test_several_files_are_named(tmp_path: Path) -> None:
    for name in ("m.Q4_0.gguf", "m.Q8_0.gguf"):
        write(tmp_path / name, {"w": (np.ones((4, 4), np.float32), None)})
    with pytest.raises(UserError, match=naming(tmp_path, "m.Q4_0.gguf, m.Q8_0.gguf")):
        open_tensors(tmp_path)
    (tmp_path / "m.Q8_0.gguf").rename(tmp_path / "mmproj-m.gguf")  # a projector of images is no language model
    assert open_tensors(tmp_path).names == {"w"}
