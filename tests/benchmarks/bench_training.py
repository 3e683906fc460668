"""Training speed against other implementations, as ratios of CPU time measured in one run. Asserts nothing."""

from __future__ import annotations

import logging
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import LlamaForCausalLM

from models.hf import llama_config
from models.spec import DecoderSpec
from orchestrator.config.schema import OptimConfig
from orchestrator.experiments.experiment import decoder_spec
from orchestrator.training.callbacks import WriteMetrics
from orchestrator.training.optimizer import DecoupledAdamW
from orchestrator.training.trainer import Trainer
from tests.benchmarks.trainers import steps_of, trainer_of

ROUNDS, STEPS = 7, 20  # of each side in turn, and steps in each
PLAIN = ["model=tiny", "model.norm=pre", "train.steps=100000"]  # the shape that Llama has, too


def ratio(ours: Callable[[], float], rival: Callable[[], float]) -> str:
    """The median of the rival's seconds over ours, the two alternating, with its range and both medians."""
    ours(), rival()  # the first steps make tables and the optimizer's state
    pairs = [(ours(), rival()) for _ in range(ROUNDS)]
    ratios = sorted(b / a for a, b in pairs)
    a, b = (statistics.median(side) * 1e3 for side in zip(*pairs, strict=True))
    return f"{statistics.median(ratios):5.2f}x  ({ratios[0]:.2f} ... {ratios[-1]:.2f}; {a:.1f} and {b:.1f} ms)"


def per_step(step: Callable[[], object], steps: int = STEPS) -> Callable[[], float]:
    """Seconds of one `step`, as the mean over some."""

    def run() -> float:
        started = time.process_time()
        for _ in range(steps):
            step()
        return (time.process_time() - started) / steps

    return run


def stepping(trainer: Trainer) -> Callable[[], float]:
    """Seconds of a step of the product, with its data, clipping and metrics log."""
    return per_step(lambda: steps_of(trainer, 1))


def plain_loop(spec: DecoderSpec, rows: Sequence[Tensor], lr: float, **options: Any) -> Callable[[], float]:
    """A loop around transformers' Llama on prepared batches: its loss, backward, clipping, torch's AdamW."""
    model = llama(spec)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.1, **options)
    batches = iter(rows)

    def step() -> None:
        batch = next(batches)[:, :-1]
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return per_step(step)


class Timer(transformers.TrainerCallback):
    """Notes the time after the first steps of a run of transformers' Trainer."""

    warmup = 5

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.warmup:
            self.started = time.process_time()


def hf_trainer(spec: DecoderSpec, rows: Sequence[Tensor], lr: float, directory: Path) -> Callable[[], float]:
    """The step of transformers' Trainer on the same rows, with its defaults."""
    examples = [{"input_ids": row[:-1], "labels": row[:-1]} for batch in rows for row in batch]

    def run() -> float:
        timer = Timer()
        arguments = transformers.TrainingArguments(
            output_dir=str(directory), max_steps=Timer.warmup + STEPS, per_device_train_batch_size=len(rows[0]),
            learning_rate=lr, weight_decay=0.1, use_cpu=True, report_to=[], save_strategy="no", disable_tqdm=True,
            logging_steps=10,
        )  # fmt: skip
        trainer = transformers.Trainer(llama(spec), arguments, train_dataset=examples, callbacks=[timer])  # type: ignore[arg-type]
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
        return (time.process_time() - timer.started) / STEPS

    return run


def llama(spec: DecoderSpec) -> LlamaForCausalLM:
    return LlamaForCausalLM(llama_config(spec))


def against_rivals(root: Path, shape: Sequence[str]) -> None:
    """A step of the product beside the loops that others write."""
    trainer = trainer_of([*PLAIN, *shape], root, [WriteMetrics()])
    for callback in trainer.callbacks:
        callback.start(trainer)
    spec, lr = decoder_spec(trainer.config), trainer.config.optim.lr
    heads = f"{spec.layers[0].heads} heads of {spec.layers[0].head_dim}"
    count = (ROUNDS + 2) * STEPS
    rows = [trainer.corpus.batch(0, step, trainer.config.train.batch_size) for step in range(count)]
    for name, rival in {
        "a loop around Llama, AdamW": plain_loop(spec, rows, lr),
        "the same, fused AdamW": plain_loop(spec, rows, lr, fused=True),
        "transformers' Trainer": hf_trainer(spec, rows, lr, root),
    }.items():
        print(f"a step of tiny, {heads:13}, over: {name:30}", ratio(stepping(trainer), rival))


def against_itself(root: Path) -> None:
    """Other settings of the product's own step over its defaults, and its update beside torch's."""
    default = stepping(trainer_of(["train.steps=100000"], root / "default"))
    for name, overrides in {
        "a ramp at equal FLOPs": ["width=ramp", "width.match=flops"],
        "bf16": ["train.precision=bf16"],
    }.items():
        trainer = trainer_of(["train.steps=100000", *overrides], root / name.split()[0])
        print(f"a step of tiny, over: {name:45}", ratio(default, stepping(trainer)))
    model, rivals = trainer_of([], root / "update").model, trainer_of([], root / "rivals").model
    for parameter in (*model.parameters(), *rivals.parameters()):
        parameter.grad = torch.randn_like(parameter)
    adamw = torch.optim.AdamW(rivals.parameters(), lr=2e-3, weight_decay=0.1, fused=True)
    ours = DecoupledAdamW(model, OptimConfig(weight_decay=0.1))
    update = ratio(per_step(lambda: ours.step(2e-3)), per_step(adamw.step))
    print(f"an update, over: {'fused AdamW of torch':50}", update)


def main() -> None:
    """Print one line per comparison."""
    torch.set_num_threads(1)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as root:
        for dim in (8, 16, 32):
            against_rivals(Path(root, str(dim)), [f"model.head_dim={dim}"])
        against_itself(Path(root))


if __name__ == "__main__":
    main()
