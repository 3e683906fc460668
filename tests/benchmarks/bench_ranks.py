"""Two ranks against one process, a thread each, as a ratio of tokens per second: `make bench`. Asserts nothing."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from hydra import initialize_config_dir

from orchestrator.config.compose import CONF, compose
from orchestrator.experiments.experiment import experiment_of
from orchestrator.experiments.run_directory import open_directory
from orchestrator.storage import metrics_log

STEPS, REPEATS = 60, 3
OVERRIDES = (
    "name=bench", "model=tiny", f"train.steps={STEPS}", "train.log_every=20", "train.eval_every=1000000",
    "train.checkpoint_every=1000000", "forensics.every=1000000", "forensics.trace_steps=0", "tracker=off",
    "train.device=cpu", "train.threads=1",
)  # fmt: skip
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node")


def speed(root: Path, ranks: int, *more: str) -> float:
    """Tokens per second between steps 20 and 40: neither warming up nor evaluating."""
    experiment = experiment_of([*OVERRIDES, *more, f"root={root}"], compose)
    open_directory(experiment)
    cell = experiment.cells[0].directory
    command = [sys.executable, *(() if ranks == 1 else (*TORCHRUN, str(ranks))), "-m", "orchestrator.job", str(cell)]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    by_step = {record["step"]: record["tokens_per_second"] for record in metrics_log.read(cell / "metrics.jsonl")}
    return float(by_step[40])


def main() -> None:
    """Print one line for every size of batch."""
    with tempfile.TemporaryDirectory() as scratch, initialize_config_dir(str(CONF), version_base="1.3"):
        data = f"data.cache_dir={scratch}/data"
        for batch in (4, 16):
            rates: dict[int, list[float]] = {1: [], 2: []}
            for repeat in range(REPEATS):
                for ranks, found in rates.items():
                    root = Path(scratch) / f"{batch}-{repeat}-{ranks}"
                    found.append(speed(root, ranks, f"train.batch_size={batch}", data))
            ratios = [two / one for one, two in zip(rates[1], rates[2], strict=True)]
            one, two = (statistics.median(rates[ranks]) for ranks in (1, 2))
            print(
                f"model=tiny, batch of {batch:2d}: 2 ranks {two:6.0f} tokens/s, 1 process {one:6.0f}: "
                f"{statistics.median(ratios):.2f}x  ({min(ratios):.2f} ... {max(ratios):.2f})",
                flush=True,
            )


if __name__ == "__main__":
    main()
