"""Real runs of Lightning's trainer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader
from transformers import LlamaForCausalLM

from orchestrator.forensics import Reading, analyze

lightning = pytest.importorskip("lightning.pytorch")
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger  # noqa: E402

from orchestrator.forensics.callbacks.lightning import ForensicsCallback  # noqa: E402
from tests.naming import names  # noqa: E402
from tests.orchestrator.forensics.callbacks.events import scalars  # noqa: E402

Lines = Callable[[Path], list[dict[str, Any]]]


class Training(lightning.LightningModule):  # type: ignore[misc, name-defined]
    """Next-token training; a module around the model, as Lightning has it."""

    def __init__(self, model: LlamaForCausalLM, fails_at: int = -1, teacher: LlamaForCausalLM | None = None) -> None:
        super().__init__()
        self.model, self.fails_at, self.teacher = model, fails_at, teacher

    def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
        if index == self.fails_at:
            raise RuntimeError("the batch is broken")
        return self.model(input_ids=batch, labels=batch).loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def train(training: Training, rows: Any, directory: Path, *callbacks: Any, **options: Any) -> dict[str, torch.Tensor]:
    """Train on 20 batches of 4 rows; the final weights."""
    loader = DataLoader([torch.tensor(row["input_ids"]) for row in rows], batch_size=4)
    trainer = lightning.Trainer(
        accelerator="cpu", max_epochs=1, default_root_dir=directory, enable_checkpointing=False, callbacks=[*callbacks],
        enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=5, **{"logger": False} | options,
    )  # fmt: skip
    trainer.fit(training, loader)
    return {name: tensor.clone() for name, tensor in training.model.state_dict().items()}


@pytest.mark.slow
def test_readings_at_steps_of_the_optimizer(model: LlamaForCausalLM, rows: Any, tmp_path: Path, lines: Lines) -> None:
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    first = analyze(model)
    loggers = [TensorBoardLogger(tmp_path, name="board", version=0), CSVLogger(tmp_path, name="table", version=0)]
    callback = ForensicsCallback(every=4, when_busy="wait")
    options = {"accumulate_grad_batches": 2}  # 20 batches, 10 steps
    watched = train(Training(model), rows, tmp_path, callback, logger=loggers, **options)
    last = analyze(model)
    model.load_state_dict(start)
    alone = train(Training(model), rows, tmp_path, **options)
    assert all(torch.equal(watched[name], alone[name]) for name in alone), "training is bitwise what it would have been"

    directory = tmp_path / "board/version_0/forensics"
    records = lines(directory / "forensics.jsonl")
    assert [record["step"] for record in records] == [0, 4, 8, 10]
    for step, expected in ((0, first), (10, last)):
        found = Reading.from_json(json.loads((directory / f"step_{step:08d}.json").read_text()))
        assert found.layers == expected.layers
        assert (found.step, found.source) == (step, "LlamaForCausalLM")
    written = scalars(tmp_path / "board/version_0")
    for record in records:
        name = "forensics/cv/layer_01"
        assert written[name, record["step"]] == pytest.approx(record[name])
    assert "forensics/roles/hub" in (tmp_path / "table/version_0/metrics.csv").read_text().splitlines()[0]


@pytest.mark.slow
def test_a_training_that_fails_ends_the_reading_and_leaves_no_weights(
    model: LlamaForCausalLM, rows: Any, tmp_path: Path
) -> None:
    callback = ForensicsCallback(every=1)
    with pytest.raises(RuntimeError, match="the batch is broken"):
        train(Training(model, fails_at=3), rows, tmp_path, callback)
    assert [path.name for path in (tmp_path / "forensics").iterdir()] == ["forensics.jsonl"]


@pytest.mark.slow
def test_of_several_models_the_named_one_is_read(
    model: LlamaForCausalLM, rows: Any, tmp_path: Path, lines: Lines, caplog: pytest.LogCaptureFixture
) -> None:
    teacher = LlamaForCausalLM(model.config)
    first = analyze(model)
    train(Training(model, teacher=teacher), rows, tmp_path / "unnamed", ForensicsCallback(every=20))
    failed = lines(tmp_path / "unnamed/forensics/forensics.jsonl")
    assert [record["step"] for record in failed] == [0, 20]
    assert all(names(record["failed"], "model", "teacher") for record in failed)
    assert sum(names(message, "model", "teacher") for message in caplog.messages) == 1
    last = analyze(model)
    train(Training(model, teacher=teacher), rows, tmp_path, ForensicsCallback(every=20, submodule="model"))
    found = Reading.from_json(json.loads((tmp_path / "forensics/step_00000000.json").read_text()))
    assert found.layers == last.layers
    assert found.layers != first.layers
