"""DCP directories read without a process group agree with what was saved; their pickle names nothing but chunks."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import filesystem, metadata

from orchestrator.common.errors import UserError
from orchestrator.forensics.weights.tensors import open_tensors
from tests.naming import naming
from tests.orchestrator.forensics.payload import Payload


def _save(state: dict[str, Any], path: Path) -> None:
    with warnings.catch_warnings(action="ignore"):  # that there is one process
        dcp.save(state, checkpoint_id=path, no_dist=True)


def _same(source: Path, weights: dict[str, torch.Tensor]) -> None:
    tensors = open_tensors(source)
    assert tensors.names == set(weights)
    for name, value in weights.items():
        assert tensors.shape(name) == tuple(value.shape)
        assert torch.equal(tensors.read(name), value.float())


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        "model.layers.0.w": torch.randn(6, 4),
        "model.norm.weight": torch.randn(4).bfloat16(),
        "model.scale": torch.tensor(2.0),
    }


def test_flat_state_dict(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    _save(dict(weights), tmp_path)
    _same(tmp_path, weights)


@pytest.mark.parametrize("wrapper", ["model", "state_dict", "app"])
def test_nested_beside_an_optimizer(tmp_path: Path, weights: dict[str, torch.Tensor], wrapper: str) -> None:
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    flat = {f"state.{name}.exp_avg{of}": value for name, value in weights.items() for of in ("", "_sq")}
    _save({"step": 3, wrapper: dict(weights), "optimizer": optimizer.state_dict(), "optim": flat}, tmp_path)
    _same(tmp_path, weights)


def test_rows(tmp_path: Path) -> None:
    whole = torch.randn(10, 3)
    _save({"w": whole}, tmp_path)
    tensors = open_tensors(tmp_path)
    blocks = list(tensors.rows("w", 4))
    assert [len(rows) for rows in blocks] == [4, 4, 2]
    assert torch.equal(torch.cat(blocks), whole)
    for rows in tensors.rows("w", 4):
        rows.zero_()
    tensors.release()
    assert torch.equal(tensors.read("w"), whole)


def _sharded(path: Path, whole: torch.Tensor, corners: list[tuple[slice, slice]]) -> metadata.Metadata:
    """`whole` [m, n] in one file a chunk, as several ranks would save it."""
    chunks, storage = [], {}
    for rank, (rows, columns) in enumerate(corners):
        name, part = f"__{rank}_0.distcp", whole[rows, columns].contiguous()
        with (path / name).open("wb") as file:
            file.write(b"before" * rank)  # offsets are honoured
            offset = file.tell()
            torch.save(part, file)
            length = file.tell() - offset
            file.write(b"after")
        start = torch.Size([rows.start, columns.start])
        chunks.append(metadata.ChunkStorageMetadata(offsets=start, sizes=part.shape))
        storage[metadata.MetadataIndex("w", start, rank)] = filesystem._StorageInfo(name, offset, length)
    properties = metadata.TensorProperties(dtype=whole.dtype)
    described = metadata.TensorStorageMetadata(properties, whole.shape, chunks)
    return metadata.Metadata({"w": described}, storage_data=storage)


def _write(described: object, path: Path) -> None:
    (path / ".metadata").write_bytes(pickle.dumps(described))


QUARTERS = [(slice(a, b), slice(c, d)) for a, b in ((0, 4), (4, 10)) for c, d in ((0, 2), (2, 3))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("block", [1, 3, 5, 10, 11])
def test_chunks_are_put_together(tmp_path: Path, block: int, dtype: torch.dtype) -> None:
    whole = torch.randn(10, 3).to(dtype)
    _write(_sharded(tmp_path, whole, QUARTERS), tmp_path)
    _same(tmp_path, {"w": whole})
    assert torch.equal(torch.cat(list(open_tensors(tmp_path).rows("w", block))), whole.float())


def test_missing_chunk(tmp_path: Path) -> None:
    _write(_sharded(tmp_path, torch.ones(10, 3), QUARTERS[:-1]), tmp_path)
    with pytest.raises(UserError, match=naming(tmp_path, "parts of w")):
        open_tensors(tmp_path)


def test_missing_file(tmp_path: Path) -> None:
    _write(_sharded(tmp_path, torch.ones(10, 3), QUARTERS), tmp_path)
    (tmp_path / "__2_0.distcp").unlink()
    with pytest.raises(UserError, match=naming(tmp_path, "__2_0.distcp", "w")):
        open_tensors(tmp_path)


def test_file_outside_the_directory(tmp_path: Path) -> None:
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "elsewhere.distcp").touch()
    described = _sharded(tmp_path / "checkpoint", torch.ones(10, 3), QUARTERS)
    next(iter(described.storage_data.values())).relative_path = "../elsewhere.distcp"
    _write(described, tmp_path / "checkpoint")
    with pytest.raises(UserError, match=naming(tmp_path / "checkpoint", "../elsewhere.distcp", "w")):
        open_tensors(tmp_path / "checkpoint")


@pytest.mark.parametrize("kept", [0, 0.5, 0.9])
def test_truncated_chunk(tmp_path: Path, kept: float) -> None:
    _save({"w": torch.randn(100, 100)}, tmp_path)
    (path,) = tmp_path.glob("*.distcp")
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    with pytest.raises(UserError, match=naming(path, ".metadata")):
        open_tensors(tmp_path).read("w")


def test_chunk_of_another_shape(tmp_path: Path) -> None:
    described = _sharded(tmp_path, torch.ones(10, 3), QUARTERS)
    torch.save(torch.ones(2, 2), tmp_path / "__0_0.distcp")
    described.storage_data[metadata.MetadataIndex("w", [0, 0])].length = (tmp_path / "__0_0.distcp").stat().st_size
    _write(described, tmp_path)
    with pytest.raises(UserError, match=naming("__0_0.distcp", "(2, 2)", "(4, 2)")):
        open_tensors(tmp_path).read("w")


def test_metadata_that_would_run_code_is_not_run(tmp_path: Path) -> None:
    described = _sharded(tmp_path, torch.ones(10, 3), QUARTERS)
    described.planner_data = Payload(tmp_path / "trap")
    _write(described, tmp_path)
    with pytest.raises(UserError, match=r"\.metadata .*\b_?io\.open\b"):
        open_tensors(tmp_path)
    assert not (tmp_path / "trap").exists()


def test_chunk_that_would_run_code_is_not_run(tmp_path: Path) -> None:
    described = _sharded(tmp_path, torch.ones(10, 3), QUARTERS)
    (tmp_path / "__0_0.distcp").write_bytes(pickle.dumps(Payload(tmp_path / "trap"), protocol=2))
    described.storage_data[metadata.MetadataIndex("w", [0, 0])].length = 10**6
    _write(described, tmp_path)
    with pytest.raises(UserError, match=naming("__0_0.distcp", ".metadata")):
        open_tensors(tmp_path).read("w")
    assert not (tmp_path / "trap").exists()


@pytest.mark.parametrize("content", [b"", b"text", pickle.dumps(3), pickle.dumps({"state_dict_metadata": {}})])
def test_broken_metadata(tmp_path: Path, content: bytes) -> None:
    (tmp_path / ".metadata").write_bytes(content)
    with pytest.raises(UserError, match=naming(tmp_path / ".metadata")):
        open_tensors(tmp_path)


def test_nothing_but_an_optimizer(tmp_path: Path) -> None:
    _save({"optimizer": {"state": {"w": {"exp_avg": torch.ones(2)}}}}, tmp_path)
    with pytest.raises(UserError, match=naming(tmp_path, "optimizer", "not a model")):
        open_tensors(tmp_path)
