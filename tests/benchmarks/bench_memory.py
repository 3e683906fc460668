"""The peak of memory of a training step beside the sum on paper: `make bench`. Asserts nothing.

Counted are the tensors that live while the step runs; what a kernel uses inside itself is not seen.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from models.spec import num_params
from models.transformer import Decoder
from orchestrator.config.schema import Precision
from orchestrator.experiments.experiment import decoder_spec
from orchestrator.plan.memory import FP32, activations, loss, peak
from orchestrator.training.optimizer import DecoupledAdamW
from tests.benchmarks.live_tensors import peak_bytes
from tests.benchmarks.trainers import cell_of, standing, steps_of, trainer_of

CASES = {
    "tiny": [],
    "tiny, four micro-batches": ["train.micro_batch_size=1"],
    "tiny, longer rows": ["train.seq_len=512"],
    "tiny, bf16": ["train.precision=bf16"],
    "nano, ramp": ["model=nano", "width=ramp"],
    "small": ["model=small"],
    "small, chunked head": ["model=small", "model.vocab_size=40000", "model.tie_embeddings=false"],
    "small, chunked head, bf16": ["model=small", "model.vocab_size=40000", "train.precision=bf16"],
}

BATCH = ["train.batch_size=16", "train.seq_len=2048"]
LARGE = {
    "paper_478m": ["model=paper_478m", *BATCH],
    "paper_478m, ramp": ["model=paper_478m", "width=ramp", *BATCH],
    "paper_24l": ["model=paper_24l", *BATCH],
}


def compared(name: str, overrides: list[str], root: Path) -> tuple[float, float, str]:
    """The peak found and the one on paper, in bytes, and a line about them."""
    trainer = trainer_of([*overrides, "train.steps=1000", "train.device=cpu", f"name='{name}'"], root)
    config, spec, train = trainer.config, trainer.model.spec, trainer.config.train
    steps_of(trainer, 1)  # moments are there from the second step on
    trainer.optimizer.zero_grad()
    found = peak_bytes(trainer.compute.device, standing(trainer), trainer.update)
    paper = peak(config, spec, 0, on_gpu=False)
    half, tokens = train.precision == Precision.bf16, (train.micro_batch_size or train.batch_size) * train.seq_len
    parts = {
        "weights": FP32 * num_params(spec),
        "gradients": FP32 * num_params(spec),
        "moments": 2 * FP32 * num_params(spec),
        "activations": activations(spec, tokens, train.seq_len, half=half, on_gpu=False),
        "loss": loss(spec, tokens, half=half),
    }
    sizes = ", ".join(f"{part} {size / 1e6:.1f}" for part, size in parts.items())
    return found, paper, f"{name:28} {found / 1e6:7.1f} MB, on paper {paper / 1e6:7.1f}: {found / paper:.2f}  ({sizes})"


def compared_without_values(overrides: list[str], root: Path) -> tuple[float, float]:
    """The same two for a model of any size, whose tensors have shapes but no values: bf16, as on a GPU."""
    config, _ = cell_of([*overrides, "train.precision=bf16"], root)
    spec, train = decoder_spec(config), config.train
    with FakeTensorMode():
        model = Decoder(spec)
        optimizer = DecoupledAdamW(model, config.optim)
        rows = torch.randint(spec.vocab_size, (train.batch_size, train.seq_len + 1))

        def step() -> None:
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = model.loss(rows)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.optim.clip)
            optimizer.step(config.optim.lr)

        step()
        optimizer.zero_grad()
        found = peak_bytes(torch.device("cpu"), [*model.parameters(), *optimizer.tensors().values()], step)
    return found, peak(config, spec, 0, on_gpu=False)


def main(cases: dict[str, list[str]] = CASES, large: dict[str, list[str]] = LARGE) -> int:
    """Print one line per case."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as root:
        for name, overrides in cases.items():
            print(compared(name, overrides, Path(root))[2], flush=True)
        for name, overrides in large.items():
            found, paper = compared_without_values([*overrides, f"name='{name}'"], Path(root))
            print(f"{name:28} {found / 1e9:7.1f} GB, on paper {paper / 1e9:7.1f}: {found / paper:.2f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
