"""The time that is no training: of commands, of a dry run, before a cell's first step; and whole cells per core-hour.

`make bench`. Asserts nothing.
"""

from __future__ import annotations

import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from orchestrator.common import cli

REPEATS = 5
EXPERIMENTS = ("width_ablation", "decay_ablation")
LIBRARIES = ("-c", "import torch, hydra")
DRY = ("-m", "orchestrator", "+experiment=width_ablation", "dry_run=true")
WHOLE = ("-m", "orchestrator", "seeds=[0]", "launcher.parallel=1")
# Ends the process after its first update, and prints when that was.
FIRST = """
import os, sys, time
from orchestrator import job
from orchestrator.training.trainer import Trainer

def update(self):
    original(self)
    print(time.time(), flush=True)
    os._exit(0)

original, Trainer.update = Trainer.update, update
job.main(sys.argv[1:])
"""
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}


def run(words: tuple[str, ...], folder: Path) -> str:
    done = subprocess.run([sys.executable, *words], cwd=folder, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def cpu(words: tuple[str, ...], folder: Path) -> float:
    """Seconds of CPU of one run, with the processes that it starts."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run(words, folder)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def first_step(cell: Path) -> float:
    """Seconds from the start of a new cell's process to the end of its first update."""
    for path in (cell / "checkpoints").glob("step_*"):
        path.rename(path.with_name(f"was-{path.name}-{time.time_ns()}"))
    for path in cell.glob("forensics/*.json"):
        path.unlink()
    began = time.time()
    return float(run(("-c", FIRST, str(cell)), cell.parents[3]).split()[-1]) - began


def shown(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.2f} s ({min(seconds):.2f} ... {max(seconds):.2f})"


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name, (module, _) in cli.COMMANDS.items():
            if name != "completion":
                words = ("-m", module.removesuffix(".__main__"), "--help")
                print(f"{name} --help: {shown([cpu(words, folder) for _ in range(REPEATS)])} of CPU")
        pairs = [(cpu(DRY, folder), cpu(LIBRARIES, folder)) for _ in range(REPEATS)]
        ratio = statistics.median(dry / libraries for dry, libraries in pairs)
        print(
            f"a dry run: {shown([dry for dry, _ in pairs])} of CPU, {ratio:.2f} times that of importing torch and hydra"
        )

        for experiment in EXPERIMENTS:
            words = (*WHOLE, f"+experiment={experiment}")
            short = cpu((*words, "name=short", "train.steps=2"), folder) / 2  # which also prepares the data
            if experiment == EXPERIMENTS[0]:
                firsts = [first_step(folder / "outputs/short/uniform/seed=0") for _ in range(REPEATS)]
                print(f"the first update of a cell: {shown(firsts)} after its process began")
            each = cpu(words, folder) / 2
            files = sum(path.stat().st_size for path in (folder / "outputs" / experiment).rglob("*") if path.is_file())
            print(
                f"cells of {experiment}: {3600 / each:.0f} per core-hour, {each:.1f} s of CPU and {files / 2e6:.0f} MB "
                f"each, of which {short:.1f} s are there at 2 steps as well; launch and comparison included"
            )
            shutil.rmtree(folder / "outputs/short")


if __name__ == "__main__":
    main()
