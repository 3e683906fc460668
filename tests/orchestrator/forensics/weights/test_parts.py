"""A part of a model is never read as the whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from orchestrator.common.errors import UserError
from orchestrator.forensics.weights.sources import checkpoints
from orchestrator.forensics.weights.tensors import open_tensors
from tests.naming import naming


def put(path: Path, **tensors: torch.Tensor) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    held = {"layers.0.w": torch.ones(2)} if not tensors else {n.replace("__", "."): t for n, t in tensors.items()}
    save_file(held, path) if path.suffix == ".safetensors" else torch.save(held, path)
    return path


COUNTED = "model-{:05}-of-00002.safetensors", "pytorch_model-{:05}-of-00002.bin", "ft-model-{:05}-of-00002.pt"


@pytest.mark.parametrize("name", COUNTED)
@pytest.mark.parametrize("whole", [True, False])
def test_a_lone_shard(tmp_path: Path, name: str, whole: bool) -> None:
    path = put(tmp_path / name.format(1))
    named = (tmp_path, name.format(2)) if whole else (path, "2")
    with pytest.raises(UserError, match=naming(*named)):
        open_tensors(tmp_path if whole else path)


@pytest.mark.parametrize("name", COUNTED)
def test_all_shards_without_an_index_are_one_model(tmp_path: Path, name: str) -> None:
    put(tmp_path / name.format(1), a=torch.ones(2))
    second = put(tmp_path / name.format(2), b=torch.full((2,), 2.0))
    assert open_tensors(tmp_path).names == {"a", "b"}
    assert open_tensors(tmp_path).read("b").tolist() == [2, 2]
    with pytest.raises(UserError, match=naming(second, "2 parts", "directory")):
        open_tensors(second)
    second.unlink()
    put(second, a=torch.ones(2))  # a slice of the same tensor
    with pytest.raises(UserError, match=naming(name.format(1), second, "a", "tensor-parallel")):
        open_tensors(tmp_path)


def test_one_of_one_is_whole(tmp_path: Path) -> None:
    path = put(tmp_path / "model-00001-of-00001.safetensors")
    assert open_tensors(path).names == open_tensors(tmp_path).names == {"layers.0.w"}


RANKED = (
    "consolidated.{:02}.pth", "mp_rank_{:02}_model_states.pt", "mp_rank_{:02}/model_optim_rng.pt",
    "tp_rank_{:02}/model.pt", "model_part-{}.pt", "checkpoint-shard{}.pt", "model-rank-{}-part-0.safetensors",
    "layer_03-model_{:02}-model_states.pt", "model_state.tp{:02}.pt",
)  # fmt: skip


@pytest.mark.parametrize("name", RANKED)
def test_what_one_of_two_ranks_wrote(tmp_path: Path, name: str) -> None:
    first, second = (put(tmp_path / name.format(rank)) for rank in (0, 1))
    for path in (first, second):
        held = path if "/" not in name else path.parent
        with pytest.raises(UserError, match=naming(path, "2 parts", held.name)):
            open_tensors(path)
    with pytest.raises(UserError, match=naming(tmp_path, "2 parts")):
        (checkpoints if "/" in name else open_tensors)(tmp_path)  # directories of ranks are no run
    first.unlink()
    if "/" in name:
        first.parent.rmdir()
    with pytest.raises(UserError, match=naming(second, "part 1", "missing")):
        open_tensors(second)


@pytest.mark.parametrize("name", ["mp_rank_00_{:03}/model_optim_rng.pt", "tp_rank_00_pp_rank_{:03}/model_weights.ckpt"])
def test_the_stages_of_a_pipeline(tmp_path: Path, name: str) -> None:
    first, second = (put(tmp_path / name.format(stage)) for stage in (0, 1))
    for path in (first, second, first.parent):
        with pytest.raises(UserError, match=naming("2 parts", second.parent.name)):
            open_tensors(path)
    first.unlink()
    first.parent.rmdir()
    with pytest.raises(UserError, match=naming(second, "missing")):
        open_tensors(second)
    second.unlink()
    second.parent.rmdir()
    assert open_tensors(put(first)).names


@pytest.mark.parametrize("name", ["consolidated.00.pth", "mp_rank_00_model_states.pt", "mp_rank_00/model_optim_rng.pt"])
def test_a_first_rank_that_is_alone_is_read_unless_it_is_narrow(tmp_path: Path, name: str) -> None:
    kind = "wo" if "consolidated" in name else "dense"
    path = put(tmp_path / name, **{f"layers__0__attention__{kind}__weight": torch.ones(8, 8)})
    assert open_tensors(path).names == {f"layers.0.attention.{kind}.weight"}
    put(path, **{f"layers__0__attention__{kind}__weight": torch.ones(8, 4)})
    with pytest.raises(UserError, match=naming(path, f"layers.0.attention.{kind}.weight", "(8, 4)")):
        open_tensors(path)


def test_ranks_and_the_ranks_of_adapters(tmp_path: Path) -> None:
    merged = [put(tmp_path / f"rank{rank}.safetensors") for rank in (4, 8)]
    assert all(open_tensors(path).names for path in merged)
    assert open_tensors(put(tmp_path / "rank8/model.safetensors")).names
    put(tmp_path / "rank0.safetensors")
    with pytest.raises(UserError, match=naming(merged[0], "3 parts", "rank0.safetensors")):
        open_tensors(merged[0])


@pytest.mark.parametrize("name", ["epoch-3-of-10.pt", "step_3_of_10.safetensors", "best-of-3.pt"])
def test_a_count_of_epochs_is_no_part(tmp_path: Path, name: str) -> None:
    assert open_tensors(put(tmp_path / name)).names == {"layers.0.w"}


@pytest.mark.parametrize("name", ["model-1-of-2.safetensors", "shard_1_of_2.pt", "part-1-of-2.bin"])
def test_short_counts_of_parts(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=naming(tmp_path / name, "2 parts")):
        open_tensors(put(tmp_path / name))


def test_a_rank_whose_name_counts_the_others(tmp_path: Path) -> None:
    path = put(tmp_path / "model_world_size_8_rank_0.pt")
    with pytest.raises(UserError, match=naming(path, "8 ranks")):
        open_tensors(path)


@pytest.mark.parametrize("size", [1, 2])
def test_deepspeed_says_over_how_many_ranks_it_was_split(tmp_path: Path, size: int) -> None:
    path = tmp_path / "mp_rank_00_model_states.pt"
    torch.save({"module": {"layers.0.w": torch.ones(2)}, "mp_world_size": size, "dp_world_size": 4}, path)
    if size == 1:
        assert open_tensors(path).names == {"layers.0.w"}
        return
    with pytest.raises(UserError, match=naming(path, "2 ranks")):
        open_tensors(path)


@pytest.mark.parametrize(
    "name", ["zero_pp_rank_0_mp_rank_00_optim_states.pt", "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"]
)
def test_deepspeed(tmp_path: Path, name: str) -> None:
    path = put(tmp_path / "global_step500" / name)
    put(tmp_path / "global_step500/mp_rank_00_model_states.pt")
    for source in (path, path.parent):
        with pytest.raises(UserError, match=naming(path.parent, "DeepSpeed", "zero_to_fp32.py")):
            open_tensors(source)


def test_a_file_of_a_distributed_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "__0_0.distcp").touch()
    with pytest.raises(UserError, match=naming(tmp_path / "__0_0.distcp", f"directory, {tmp_path}")):
        open_tensors(tmp_path / "__0_0.distcp")


@pytest.mark.parametrize(
    "name", ["model.safetensors", "pytorch_model.bin", "m.gguf", "model-00001-of-00001.safetensors"]
)
def test_a_pointer_of_git_lfs(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(UserError, match=naming(tmp_path / name, "Git LFS", "git lfs pull")):
        open_tensors(tmp_path)


def test_pointers_under_an_index(tmp_path: Path) -> None:
    shard = tmp_path / "model-00001-of-00001.safetensors"
    shard.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard.name}}))
    with pytest.raises(UserError, match=naming(shard, "Git LFS")):
        open_tensors(tmp_path)
