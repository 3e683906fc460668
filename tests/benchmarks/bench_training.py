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
from models.transformer import Decoder, init_weights
from models.width import build_spec
from orchestrator.config.schema import OptimConfig
from orchestrator.experiments.experiment import decoder_spec
from orchestrator.training.optimizer import DecoupledAdamW
from tests.benchmarks.trainers import trainer_of

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


def plain_loop(spec: DecoderSpec, rows: Sequence[Tensor], lr: float) -> Callable[[], float]:
    """What one writes around transformers' Llama: its loss, backward, clipping, torch's AdamW."""
    model = llama(spec)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.1)
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
    """The whole step of the product, data and clipping included, beside the loops that others write."""
    trainer = trainer_of([*PLAIN, *shape], root)
    spec, lr = decoder_spec(trainer.config), trainer.config.optim.lr
    heads = f"{spec.layers[0].heads} heads of {spec.layers[0].head_dim}"
    count = (ROUNDS + 2) * STEPS
    rows = [trainer.corpus.batch(0, step, trainer.config.train.batch_size) for step in range(count)]
    ours = per_step(trainer.update)
    print(f"a step of tiny, {heads}, over: a loop around Llama, AdamW ", ratio(ours, plain_loop(spec, rows, lr)))
    print(f"a step of tiny, {heads}, over: transformers' Trainer      ", ratio(ours, hf_trainer(spec, rows, lr, root)))


def widths_and_update() -> None:
    """Ramp over uniform, and the optimizer beside torch's."""
    common: dict[str, Any] = {"layers": 11, "width": 64, "head_dim": 8, "vocab_size": 264, "seq_len": 128}
    rows = torch.randint(264, (4, 129))
    uniform, ramp = (
        Decoder(build_spec(**common, **profile))
        for profile in ({}, {"profile": "ramp", "start": 1024 / 1168, "end": 1372 / 1168, "match": "flops"})
    )

    def passes(model: Decoder) -> Callable[[], float]:
        init_weights(model, 0)

        def run() -> None:
            model.zero_grad()
            model.loss(rows).backward()

        return per_step(run)

    print("forward and backward, ramp over uniform at equal FLOPs            ", ratio(passes(ramp), passes(uniform)))
    adamw = torch.optim.AdamW(uniform.parameters(), lr=2e-3, weight_decay=0.1, fused=True)
    ours = DecoupledAdamW(uniform, OptimConfig(weight_decay=0.1))
    print("update, over: torch's fused AdamW                                 ",
          ratio(per_step(lambda: ours.step(2e-3)), per_step(adamw.step)))  # fmt: skip


def main() -> None:
    """Print one line per comparison."""
    torch.set_num_threads(1)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as root:
        for dim in (8, 16, 32):
            against_rivals(Path(root, str(dim)), [f"model.head_dim={dim}"])
    widths_and_update()


if __name__ == "__main__":
    main()
