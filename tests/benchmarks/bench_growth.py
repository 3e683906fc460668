"""Growth of a step with layers, width and tokens, and of a reading with layers and width. Asserts nothing.

Each line has the fitted exponent of the CPU time and, for a step, that of the operations on paper at the same sizes.
"""

from __future__ import annotations

import gc
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from models.spec import DecoderSpec, LayerShape, forward_flops_per_token
from models.transformer import Decoder, init_weights
from orchestrator.forensics.analyzer import analyze
from orchestrator.storage import checkpoint
from tests.benchmarks.trainers import trainer_of

REPEATS = 3  # of which the fastest counts, since other processes interfere
TOLERANCE = 0.15  # of an exponent over that on paper: noise of the fit
LAYERS, WIDTHS, ROWS = (2, 4, 8, 16), (64, 128, 256, 512), (2, 4, 8, 16)
READ_LAYERS, READ_WIDTHS = (8, 16, 32, 64), (64, 128, 256, 512)


@dataclass(frozen=True)
class Fit:
    """`y ∝ x^exponent`, by least squares of the logarithms; `residual`: the largest ratio of y to the fit, minus 1."""

    exponent: float
    residual: float
    last: float  # the exponent between the two largest sizes


def fitted(sizes: Sequence[float], values: Sequence[float]) -> Fit:
    """The fit of `values` to a power of `sizes`."""
    x, y = np.log(sizes), np.log(values)
    slope, shift = np.polyfit(x, y, 1)
    worst = np.abs(y - slope * x - shift).max()
    return Fit(float(slope), float(np.expm1(worst)), float((y[-1] - y[-2]) / (x[-1] - x[-2])))


def fastest(work: Callable[[], object]) -> float:
    """CPU seconds of the fastest of `REPEATS` calls, after one that loads what is needed."""
    work()
    times = []
    for _ in range(REPEATS):
        started = time.process_time()
        work()
        times.append(time.process_time() - started)
    return min(times)


def step(root: Path, layers: int = 4, width: int = 64, rows: int = 4) -> tuple[float, float]:
    """Seconds of a training step, and its operations on paper."""
    overrides = [
        "model=tiny", f"model.layers={layers}", f"model.width={width}", "model.head_dim=16", f"train.batch_size={rows}",
        f"name=l{layers}w{width}r{rows}", "train.steps=100000", "train.device=cpu",
    ]  # fmt: skip
    trainer = trainer_of(overrides, root)
    tokens = rows * trainer.config.train.seq_len
    return fastest(trainer.update), 3.0 * tokens * forward_flops_per_token(trainer.model.spec, tokens // rows)


def reading(root: Path, layers: int = 4, width: int = 64) -> float:
    """Seconds of a reading of weights."""
    heads = width // 16
    model = Decoder(DecoderSpec((LayerShape(width, heads, heads, 16, 3 * width),) * layers, 64))
    init_weights(model, 0)
    state = {"spec": model.spec.to_dict(), "optim": {"beta1": 0.9, "beta2": 0.95}, "step": 0, "trace": {}}
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    path = checkpoint.save(root / f"l{layers}w{width}", 0, {"model": weights}, state)
    return fastest(partial(analyze, path, resamples=10))


def line(what: str, sizes: Sequence[int], values: Sequence[float], paper: float) -> str:
    """One fit as a line, with a warning where it exceeds the exponent on paper."""
    fit = fitted(sizes, values)
    verdict = "more than on paper" if fit.exponent > paper + TOLERANCE else "no surprise"
    scale = f"{1e3 * values[0]:.0f} ... {1e3 * values[-1]:.0f} ms at {sizes[0]} ... {sizes[-1]}"
    return (
        f"{what:26} exponent {fit.exponent:5.2f} (last {fit.last:5.2f}, residual {fit.residual:4.0%}), "
        f"on paper {paper:4.2f}: {verdict:18} {scale}"
    )


def report(root: Path) -> Iterable[str]:
    """The lines, as they are measured."""
    for what, sizes in (("layers", LAYERS), ("width", WIDTHS), ("rows", ROWS)):
        times, counts = zip(*(step(root, **{what: size}) for size in sizes), strict=True)
        yield line(f"step against {what}", sizes, times, fitted(sizes, counts).exponent)
        gc.collect()
    yield line("reading against layers", READ_LAYERS, [reading(root, layers=n) for n in READ_LAYERS], 1.0)
    yield line("reading against width", READ_WIDTHS, [reading(root, width=n) for n in READ_WIDTHS], 3.0)


def main() -> int:
    """Print one line per fit."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as root:
        for text in report(Path(root)):
            print(text, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
