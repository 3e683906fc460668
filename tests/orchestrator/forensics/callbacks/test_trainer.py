"""Real runs of `transformers.Trainer`: readings are those of the saved checkpoints, and training is untouched."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerControl, TrainerState, TrainingArguments

from orchestrator.common.errors import UserError
from orchestrator.forensics import Reading, analyze
from orchestrator.forensics.callbacks.trainer import ForensicsCallback
from orchestrator.forensics.render.row import reading_row
from tests.naming import names, naming
from tests.orchestrator.forensics.callbacks.events import scalars
from tests.orchestrator.tracking.offline_run import inspect, rows_with, runs_of

Lines = Callable[[Path], list[dict[str, Any]]]
Weights = dict[str, torch.Tensor]


def train(model: LlamaForCausalLM, rows: Any, directory: Path, *callbacks: Any, **options: Any) -> Weights:
    """Train for 20 steps; the final weights."""
    arguments: dict[str, Any] = {
        "max_steps": 20, "per_device_train_batch_size": 4, "save_strategy": "no", "report_to": [], "seed": 5,
        "use_cpu": True, "disable_tqdm": True, "logging_steps": 5, "learning_rate": 1e-2,
    }  # fmt: skip
    arguments |= {"output_dir": str(directory)} | options
    trainer = Trainer(model, TrainingArguments(**arguments), train_dataset=rows, callbacks=list(callbacks))
    trainer.train()
    return weights(model)


def weights(model: LlamaForCausalLM) -> Weights:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def reading(path: Path) -> Reading:
    return Reading.from_json(json.loads(path.read_text()))


@pytest.mark.slow
def test_readings_are_those_of_the_saved_checkpoints(
    model: LlamaForCausalLM, rows: Any, tmp_path: Path, lines: Lines
) -> None:
    start = weights(model)
    saving = {"save_strategy": "steps", "save_steps": 4}
    watched = train(model, rows, tmp_path, ForensicsCallback(every=8, when_busy="wait"), **saving)
    model.load_state_dict(start)
    alone = train(model, rows, tmp_path / "alone", **saving)
    assert all(torch.equal(watched[name], alone[name]) for name in alone), "training is bitwise what it would have been"
    assert any(not torch.equal(start[name], alone[name]) for name in alone)

    records = lines(tmp_path / "forensics/forensics.jsonl")
    assert [record["step"] for record in records] == [0, 8, 16, 20]
    for record in records[1:]:
        step = record["step"]
        found, saved = reading(tmp_path / f"forensics/step_{step:08d}.json"), analyze(tmp_path / f"checkpoint-{step}")
        assert found.layers == saved.layers
        assert (found.step, found.source, found.family) == (step, "LlamaForCausalLM", "llama")
        assert {name: record[name] for name in reading_row(saved)} == reading_row(saved)
        assert record["roles"] == [layer.role for layer in saved.layers]
    assert len({record["forensics/cv/layer_01"] for record in records}) == 4, "the weights of four different steps"
    left = sorted(path.name for path in (tmp_path / "forensics").iterdir())
    assert left == ["forensics.jsonl", *(f"step_{step:08d}.json" for step in (0, 8, 16, 20))]


@pytest.mark.slow
def test_steps_that_come_during_a_reading_are_skipped_but_the_last_is_read(
    model: LlamaForCausalLM, rows: Any, tmp_path: Path, lines: Lines
) -> None:
    train(model, rows, tmp_path, ForensicsCallback(1, tmp_path / "mine"))
    records = lines(tmp_path / "mine/forensics.jsonl")
    assert sorted(record["step"] for record in records) == list(range(21)), "one line for every step"
    read = [record["step"] for record in records if "roles" in record]
    skipped = [record for record in records if "skipped" in record]
    assert len(skipped) + len(read) == 21
    assert (read[0], read[-1]) == (0, 20)
    assert names(skipped[0]["skipped"], "step 0"), "twenty steps take less than a reading"
    assert reading(tmp_path / "mine/step_00000020.json").layers == analyze(model).layers


@pytest.mark.slow
def test_numbers_go_to_tensorboard_and_wandb(
    model: LlamaForCausalLM, rows: Any, tmp_path: Path, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    train(model, rows, tmp_path, ForensicsCallback(every=20, when_busy="wait"), report_to=["tensorboard", "wandb"])
    assert wandb.run is not None
    wandb.finish()
    records = {record["step"]: record for record in lines(tmp_path / "forensics/forensics.jsonl")}
    assert list(records) == [0, 20]
    written = scalars(tmp_path / "runs/forensics")
    logged = {row["forensics/step"]: row for row in rows_with(inspect(runs_of(tmp_path)[0]), "forensics/step")}
    assert list(logged) == [0, 20]
    for step, record in records.items():
        row = {name: value for name, value in record.items() if name.startswith("forensics/")}
        assert {name for name, at in written if at == step} == set(row)
        for name, value in row.items():
            assert written[name, step] == pytest.approx(value)
            assert logged[step][name] == pytest.approx(value)


class Broken:
    """A `SummaryWriter` whose disk is full."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        raise OSError("disk full")

    def flush(self) -> None: ...


@pytest.mark.slow
def test_a_reading_that_fails_is_logged_once_and_ends_nothing(
    rows: Any, tmp_path: Path, lines: Lines, caplog: pytest.LogCaptureFixture
) -> None:
    without_layers = LlamaForCausalLM(
        LlamaConfig(vocab_size=32, hidden_size=32, intermediate_size=64, num_hidden_layers=0, num_attention_heads=2)
    )
    train(without_layers, rows, tmp_path, ForensicsCallback(every=10, when_busy="wait"))
    records = lines(tmp_path / "forensics/forensics.jsonl")
    assert [record["step"] for record in records] == [0, 10, 20]
    assert all(names(record["failed"], "0 layers") for record in records)
    told = [message for message in caplog.messages if names(message, "0 layers")]
    assert len(told) == 1
    assert names(told[0], "Step 0")
    assert [path.name for path in (tmp_path / "forensics").iterdir()] == ["forensics.jsonl"]


@pytest.mark.slow
def test_a_logger_that_fails_ends_nothing(
    model: LlamaForCausalLM, rows: Any, tmp_path: Path, lines: Lines, caplog: pytest.LogCaptureFixture
) -> None:
    callback = ForensicsCallback(every=20, when_busy="wait", writer=Broken())
    train(model, rows, tmp_path, callback)
    assert [record["step"] for record in lines(tmp_path / "forensics/forensics.jsonl") if "roles" in record] == [0, 20]
    assert any("disk full" in message for message in caplog.messages)


def test_a_directory_that_cannot_be_written_ends_nothing(
    model: LlamaForCausalLM, rows: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "taken").write_text("a file")
    train(model, rows, tmp_path, ForensicsCallback(every=10, directory=tmp_path / "taken"), max_steps=2)
    assert any("taken" in message for message in caplog.messages)


def test_only_the_first_process_reads(model: LlamaForCausalLM, tmp_path: Path) -> None:
    callback, control = ForensicsCallback(every=1), TrainerControl()
    arguments, state = TrainingArguments(str(tmp_path), use_cpu=True), TrainerState(is_world_process_zero=False)
    for hook in (callback.on_train_begin, callback.on_step_end, callback.on_train_end):
        hook(arguments, state, control, model=model)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"every": 0}, ["every=0"]),
        ({"scoring": "calibrate"}, ["scoring=calibrate", "calibrated"]),
        ({"when_busy": "queue"}, ["when_busy=queue", "skip", "wait"]),
    ],
)
def test_options_are_checked_before_training(options: dict[str, Any], named: list[str]) -> None:
    with pytest.raises(UserError, match=naming(*named)):
        ForensicsCallback(**options)
