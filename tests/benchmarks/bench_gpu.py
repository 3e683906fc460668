"""Training on one GPU, whole: `make bench-gpu`, six minutes of an H200 by estimate. Asserts nothing about time.

MFU of a model, its aligned sibling and its variable widths; the cost of the sidecar, of a checkpoint and of a reading;
the peak of memory beside the sum on paper; small cells stacked on one card beside one after the other.
Published for scale: llm-foundry 760M at T = 2048 34.9 % of one H100's peak, nanochat d24 50.0 % of eight.
"""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from models.spec import forward_flops_per_token
from models.transformer import Decoder, init_weights
from orchestrator.config.compose import CONF
from orchestrator.config.schema import OptimConfig
from orchestrator.experiments.experiment import decoder_spec
from orchestrator.experiments.readings import Readings
from orchestrator.jobs.readers import InThread
from orchestrator.plan.memory import peak
from orchestrator.storage import checkpoint
from orchestrator.training.callbacks import DecideMultipliers
from orchestrator.training.gpus import peak_flops
from orchestrator.training.optimizer import DecoupledAdamW
from orchestrator.training.trainer import Trainer
from tests.benchmarks.live_tensors import peak_bytes
from tests.benchmarks.stacked_cells import StackedCells
from tests.benchmarks.trainers import cell_of, seconds, standing, steps_of, trainer_of, wait

READING_SECONDS = 90.0  # longest wait for a reading beside training


@dataclass(frozen=True)
class Setting:
    """The scale of the benchmark."""

    device: torch.device
    model: str  # of conf/model
    small: str  # the model of the stacked cells
    batch: int
    seq_len: int
    steps: int  # of one timed round
    stacked: int  # cells on the card at once
    root: Path
    more: tuple[str, ...] = ()  # overrides of every cell

    @property
    def overrides(self) -> list[str]:
        compiled = str(self.device.type == "cuda").lower()
        tokens = max(3 * self.batch * (self.seq_len + 1), 16384)  # held-out rows enough for a batch
        return [
            f"model={self.model}", f"train.batch_size={self.batch}", f"train.seq_len={self.seq_len}",
            f"train.compile={compiled}", f"train.device={self.device.type}", "train.steps=100000", "data=builtin",
            "data.train_tokens=262144", f"data.heldout_tokens={tokens}", "optim.weight_decay=0.1",
            *self.more,
        ]  # fmt: skip


def utilisation(setting: Setting, name: str, *more: str) -> tuple[float, str]:
    """Model FLOP/s of a training step, and lines about it."""
    gc.collect()  # a trainer that is gone
    trainer = trainer_of([*setting.overrides, f"name={name}", *more], setting.root)
    began = time.perf_counter()
    steps_of(trainer, 3)  # compiles
    first = time.perf_counter() - began
    each = seconds(lambda: steps_of(trainer, setting.steps)) / setting.steps
    tokens = setting.batch * setting.seq_len
    flops = 3 * forward_flops_per_token(trainer.model.spec, setting.seq_len) * tokens / each
    line = f"{name:10} {tokens / each:9,.0f} tokens/s  {each * 1e3:8.1f} ms a step  {flops / 1e12:8.3f} TFLOP/s"
    if most := peak_flops(setting.device):
        line += f"  MFU {flops / most:.1%}"
    line += f"  (first three steps {first:.0f} s)\n{memory(trainer)}"
    return flops, line


def steps(setting: Setting) -> Iterator[str]:
    """Uniform widths, those of the aligned sibling where the model has one, and variable ones at equal FLOPs."""
    uniform, line = utilisation(setting, "uniform")
    yield line
    if (CONF / "model" / f"{setting.model}_aligned.yaml").exists():
        yield utilisation(setting, "aligned", f"model={setting.model}_aligned")[1]
    variable, line = utilisation(setting, "variable", "width=ramp", "width.match=flops")
    yield line
    yield f"variable widths reach {variable / uniform:.3f} of the FLOP/s of uniform ones"


def memory(trainer: Trainer) -> str:
    """The peak of memory of a step beside the plan's sum."""
    on_gpu = trainer.compute.device.type == "cuda"
    planned = peak(trainer.config, trainer.model.spec, 0, on_gpu=on_gpu)
    found = peak_bytes(trainer.compute.device, standing(trainer), trainer.update)
    return f"{'':10} peak of a step {found / 1e9:.3f} GB, on paper {planned / 1e9:.3f} GB: {found / planned:.2f} of it"


def sidecars(setting: Setting) -> Iterator[str]:
    """The time of steps with a sidecar over those without."""
    modes = {
        "none": [],
        "applied": ["sidecar=decay", "sidecar.mode=fixed"],
        "learning": ["sidecar=decay"],
        "learning by 3 rows": ["sidecar=decay", "sidecar.reward_rows=3"],
    }
    alone = 0.0
    for mode, more in modes.items():
        trainer = trainer_of([*setting.overrides, f"name='sidecar {mode}'", *more], setting.root, [DecideMultipliers()])
        interval = trainer.config.sidecar.interval
        steps_of(trainer, 2 * interval if more else 3)  # both kinds of pass have run once
        time_of_an_interval = seconds(partial(steps_of, trainer, interval))
        alone = alone or time_of_an_interval
        if more:
            yield f"sidecar of decay, {mode:18} {time_of_an_interval / alone - 1:+7.1%} of a step's time"
        del trainer
        gc.collect()


def readings(setting: Setting) -> Iterator[str]:
    """The time that a checkpoint and a reading in a thread take from training."""
    trainer = trainer_of([*setting.overrides, "name=readings"], setting.root)
    every = trainer.config.forensics.every
    steps_of(trainer, 3)
    alone = seconds(lambda: [steps_of(trainer, 1) for _ in range(setting.steps)]) / setting.steps  # waits as below
    began = time.perf_counter()
    trainer.save()
    saving = time.perf_counter() - began
    yield f"checkpoint: {saving:.2f} s, {saving / (every * alone):.1%} of the time at train.checkpoint_every={every}"
    reader = InThread(Readings(trainer.cell_dir, trainer.config))
    reader.add(checkpoint.path_of(trainer.files.checkpoints, trainer.step))
    began, done = time.perf_counter(), 0
    while reader.is_busy() and time.perf_counter() - began < READING_SECONDS:
        steps_of(trainer, 1)
        done += 1
    took = time.perf_counter() - began
    end = "" if not reader.is_busy() else f" (not yet done after {READING_SECONDS:.0f} s)"
    lost = took - done * alone
    yield (
        f"reading beside training: {took:.1f} s{end}, of which training lost {lost:.2f} s: "
        f"{lost / (every * alone):.1%} of the time at forensics.every={every}"
    )
    reader.close()


def stacked(setting: Setting) -> Iterator[str]:
    """Updates of small cells that train at once, over one cell after the other; fp32, uncompiled."""
    config, _ = cell_of([f"model={setting.small}", "name=stacked", *setting.more], setting.root)
    spec, train = decoder_spec(config), config.train

    # a CPU's own attention and norm, in float32, know no vmap
    dtype = torch.float32 if setting.device.type == "cuda" else torch.float64

    def model(seed: int) -> Decoder:
        made = Decoder(spec)
        init_weights(made, seed)
        return made.to(setting.device, dtype)

    shape = (setting.stacked, train.batch_size, train.seq_len + 1)
    rows = torch.randint(spec.vocab_size, shape, device=setting.device)
    one, cells = model(0), StackedCells([model(seed) for seed in range(setting.stacked)], OptimConfig())
    optimizer = DecoupledAdamW(one, OptimConfig())

    def alone() -> None:
        for _ in range(setting.steps):
            optimizer.zero_grad()
            one.loss(rows[0]).backward()
            torch.nn.utils.clip_grad_norm_(one.parameters(), 1.0)
            optimizer.step(1e-3)
        wait(setting.device)

    def together() -> None:
        for _ in range(setting.steps):
            cells.update(rows)
        wait(setting.device)

    for work in (alone, together):
        work()
    each, all_of_them = seconds(alone) / setting.steps, seconds(together) / setting.steps / setting.stacked
    hour = 3600 / train.steps
    yield (
        f"{setting.stacked} cells of model={setting.small} stacked: the updates of {hour / all_of_them:,.0f} cells an "
        f"hour, one after the other {hour / each:,.0f}: {each / all_of_them:.1f} times as many"
    )


PARTS = (steps, sidecars, readings, stacked)


def main(arguments: Sequence[str] | None = None, more: Sequence[str] = ()) -> int:
    """Print each part's lines; 2 where the device is not there, 1 where a part fails, which stops no other.

    `more`: overrides of every cell.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--model", default="paper_478m", help="a file of conf/model")
    parser.add_argument("--small", default="tiny", help="the model of the stacked cells")
    parser.add_argument("--batch", type=int, default=16, help="sequences per step")
    parser.add_argument("--seq-len", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=10, help="of one timed round")
    parser.add_argument("--stacked", type=int, default=32, help="small cells on the card at once")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        try_it = "python -m tests.benchmarks.bench_gpu --device cpu --model tiny"
        print(f"bench_gpu needs a GPU, and torch sees none here: {try_it} runs it all the same.")
        return 2
    device = torch.device(options.device)
    print(torch.cuda.get_device_name() if device.type == "cuda" else "CPU", f"· torch {torch.__version__}", flush=True)
    torch.set_num_threads(1)  # as a cell does
    torch.set_float32_matmul_precision("high")
    began, failed = time.perf_counter(), False
    with tempfile.TemporaryDirectory() as root:
        scale = (options.model, options.small, options.batch, options.seq_len, options.steps, options.stacked)
        setting = Setting(device, *scale, Path(root), tuple(more))
        for part in PARTS:
            gc.collect()
            try:
                for line in part(setting):
                    print(line, flush=True)
            except Exception:
                failed = True
                traceback.print_exc()
    print(f"{time.perf_counter() - began:.0f} s in all")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
