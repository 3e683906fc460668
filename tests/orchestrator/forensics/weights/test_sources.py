"""A path names one checkpoint, a cell, or a run's checkpoints in order."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from orchestrator.common.errors import UserError
from orchestrator.forensics.weights.sources import checkpoints, holds_weights, recorded_step, single, unit, whole
from orchestrator.forensics.weights.tensors import open_tensors
from orchestrator.storage.checkpoint import save
from tests.naming import names, naming

Put = Callable[..., Path]


@pytest.fixture
def put(tmp_path: Path) -> Put:
    """A file below the run's directory, by its name."""

    def put(name: str) -> Path:
        path = tmp_path / "run" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        return path.parent

    return put


def test_checkpoints_are_in_the_order_of_their_numbers(put: Put, tmp_path: Path) -> None:
    for step in (1000, 9, 20):
        put(f"checkpoint-{step}/model.safetensors")
    put("checkpoint-30/trainer_state.json")  # no weights
    put("checkpoint-7.corrupt-1/model.safetensors")
    put("checkpoint-6.damaged-1/model.safetensors")  # as older cells have them
    put("checkpoint-8.replaced-0/model.safetensors")
    put(".checkpoint-8/model.safetensors")  # half written
    put("logs/events.bin.txt")
    put("checkpoint-99")  # a file
    found = checkpoints(tmp_path / "run")
    assert [(step, path.name) for step, path in found] == [(n, f"checkpoint-{n}") for n in (9, 20, 1000)]


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "pytorch_model.bin", "consolidated.00.pth", "a.pt", ".metadata", "m-00001.safetensors"],
)
def test_weights_by_their_files(put: Put, name: str) -> None:
    assert holds_weights(put(f"step-1/{name}"))


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state_0.pth", "training_args.bin", "notes.txt"])
def test_bystanders_are_no_weights(put: Put, name: str) -> None:
    assert not holds_weights(put(f"step-1/{name}"))


def test_a_directory_with_weights_of_its_own_is_one_checkpoint(put: Put, tmp_path: Path) -> None:
    put("checkpoint-1/model.safetensors")
    root = put("model.safetensors")
    assert checkpoints(root) == []
    assert checkpoints(root / "model.safetensors") == []
    assert single(root) == root


@pytest.mark.parametrize(
    ("entries", "numbers"),
    [
        (["step_10.pt", "step_9.pt", "config.json", "best.pt", "optimizer.pt"], [9, 10]),
        (["model.step-2.safetensors", "model.step-1.safetensors"], [1, 2]),
        (["epoch=0-step=100.ckpt", "epoch=1-step=200.ckpt", "last.ckpt"], [100, 200]),
        (["step_1.pt"], []),
        (["step_1.pt", "step_2.pt", "model.safetensors"], []),
        (["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"], []),
        (["consolidated.00.pth", "consolidated.01.pth"], []),
        (["model-1.pt", "model-2.pt"], []),
    ],
)
def test_files_are_a_run_where_their_names_say_what_they_count(
    put: Put, tmp_path: Path, entries: list[str], numbers: list[int]
) -> None:
    for name in entries:
        put(name)
    assert [number for number, _ in checkpoints(tmp_path / "run")] == numbers


def test_files_of_two_runs_are_refused(put: Put, tmp_path: Path) -> None:
    for name in ("a_step_1.pt", "b_step_2.pt"):
        put(name)
    with pytest.raises(UserError, match=naming(tmp_path / "run", "a_step_1.pt, b_step_2.pt")):
        checkpoints(tmp_path / "run")


@pytest.mark.parametrize(
    ("name", "counts"),
    [("epoch3", "epoch"), ("run_Epoch-3.pt", "epoch"), ("epoch=1-step=9.ckpt", "step"), ("checkpoint-9", "step")],
)
def test_what_a_name_counts(name: str, counts: str) -> None:
    assert unit(Path(name)) == counts


@pytest.mark.parametrize("stems", [("gpt2", "llama7"), ("step_5", "step_05")])
def test_models_that_are_not_one_run_are_refused(put: Put, tmp_path: Path, stems: tuple[str, str]) -> None:
    for stem in stems:
        put(f"{stem}/model.safetensors")
    with pytest.raises(UserError, match=naming(tmp_path / "run", *stems)):
        checkpoints(tmp_path / "run")


def test_one_is_taken_from_one_and_not_from_several(put: Put, tmp_path: Path) -> None:
    one = put("step-3/model.safetensors")
    assert single(tmp_path / "run") == one
    put("step-12/model.safetensors")
    with pytest.raises(
        UserError, match=naming(tmp_path / "run", "2 checkpoints", "--against", tmp_path / "run/step-12")
    ):
        single(tmp_path / "run")


def test_corrupt_ones_of_ours_are_left_out_and_a_cell_gives_its_newest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "cell/checkpoints"
    for step in (0, 5, 10):
        save(root, step, {"model": {"w": torch.ones(3)}}, {"schema": 1, "step": step})
    assert whole(tmp_path / "cell").name == "step_00000010"
    weights = root / "step_00000010/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\xff")
    assert [step for step, _ in checkpoints(root)] == [0, 5]
    assert names(capsys.readouterr().err, "step_00000010", "model.safetensors")
    assert whole(tmp_path / "cell").name == "step_00000005"
    assert whole(root / "step_00000005/model.safetensors") == root / "step_00000005/model.safetensors"
    with pytest.raises(UserError, match=r"model\.safetensors"):
        whole(weights)


def test_an_experiment_names_its_cells(tmp_path: Path) -> None:
    (tmp_path / "experiment.yaml").touch()
    cell = tmp_path / "uniform/seed=0"
    (cell / "checkpoints").mkdir(parents=True)
    assert checkpoints(tmp_path) == []
    with pytest.raises(UserError, match=naming(tmp_path, "experiment", cell)):
        whole(tmp_path)


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("checkpoint-300", 300), ("step_500", 500), ("iter_0042", 42), ("epoch-3", None), ("Qwen2-7", None),
        ("model-2", None), ("v1", None), ("step_500.corrupt-1", None), ("step_500.damaged-1", None),
    ],
)  # fmt: skip
def test_the_step_in_a_name(tmp_path: Path, name: str, step: int | None) -> None:
    (tmp_path / name).mkdir()
    assert recorded_step(tmp_path / name, {}) == step
    assert recorded_step(tmp_path / name / "model.safetensors", {}) == step
    assert recorded_step(tmp_path / f"{name}.pt", {}) == step
    assert recorded_step(tmp_path / name / "ema.pt", {}) is None  # one of several files there


def test_the_step_that_files_record(tmp_path: Path) -> None:
    state = tmp_path / "trainer_state.json"
    state.write_text('{"global_step": 77}')
    assert recorded_step(tmp_path, {}) == 77
    for broken in ("", "[]", '{"global_step": "many"}', "{}"):
        state.write_text(broken)
        assert recorded_step(tmp_path, {}) is None
    for key in ("iter_num", "global_step"):
        torch.save({"model": {"w": torch.ones(2, 2)}, key: 12}, tmp_path / "ckpt.pt")
        assert recorded_step(tmp_path / "ckpt.pt", open_tensors(tmp_path / "ckpt.pt").metadata) == 12
    assert recorded_step(tmp_path / "epoch=1-step=77.ckpt", {}) == 77
