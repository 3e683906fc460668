"""The libraries that a command imports, in a process of its own: none that takes long and is not used."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.common import cli

HEAVY = (
    "torch",
    "torch._dynamo",
    "sympy",
    "wandb",
    "transformers",
    "datasets",
    "pandas",
    "pyarrow",
    "plotly",
    "scipy",
    "sklearn",
    "matplotlib",
)
MODULES = [module.removesuffix(".__main__") for name, (module, _) in cli.COMMANDS.items() if name != "completion"]
WATCHED = """
import json, runpy, sys
name, *sys.argv[1:] = sys.argv[1:]
try:
    runpy.run_module(name, run_name="__main__", alter_sys=True)
except SystemExit as end:
    sys.stdout.flush()
    print("\\n" + json.dumps([end.code, sorted({*HEAVY} & sys.modules.keys())]))
"""


def imported(folder: Path, *words: str) -> set[str]:
    """The libraries of `HEAVY` that `python -m WORDS` imported, which must end with exit code 0."""
    command = [sys.executable, "-c", f"HEAVY = {HEAVY}\n{WATCHED}", *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.stdout, done.stderr
    code, found = json.loads(done.stdout.splitlines()[-1])
    assert not code, done.stderr
    return set(found)


@pytest.mark.parametrize("option", ["--help", "--version"])
@pytest.mark.parametrize("module", MODULES)
def test_help_waits_for_no_library(module: str, option: str, tmp_path: Path) -> None:
    assert imported(tmp_path, module, option) == set()


def test_a_dry_run_needs_torch_alone(tmp_path: Path) -> None:
    """It also times a reading. The corpus need not be prepared, and is not."""
    assert imported(tmp_path, "orchestrator", "+experiment=width_ablation", "dry_run=true") == {"torch"}
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


STARTED = """
import sys
from pathlib import Path
from orchestrator.jobs.readers import reader_for
from orchestrator.training.loop import StopSignal, train_cell
from orchestrator.training.trainer import Trainer

def update(self):
    original(self)
    if self.step == 1:
        print(*sorted({*HEAVY} & sys.modules.keys()))

original, Trainer.update = Trainer.update, update
with StopSignal() as stop:
    train_cell(Path(sys.argv[1]), stop, reader_for)
"""


def test_a_cell_and_its_status_wait_for_no_other_library(tmp_path: Path) -> None:
    """The first update of a cell whose corpus is prepared comes before W&B, which is on, starts."""
    small = ["model=nano", "train.steps=2", "train.batch_size=1", "train.seq_len=16", "data.heldout_tokens=64"]
    words = [sys.executable, "-m", "orchestrator", *small, "data.train_tokens=20000", "name=x"]
    subprocess.run(words, cwd=tmp_path, check=True, capture_output=True)
    cell = next(tmp_path.glob("outputs/x/*/seed=*"))
    for checkpoint in sorted(cell.glob("checkpoints/*")):
        checkpoint.rename(checkpoint.with_name(f"was-{checkpoint.name}"))
    words = [sys.executable, "-c", f"HEAVY = {HEAVY}\n{STARTED}", str(cell)]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert set(done.stdout.split()) == {"torch"}, done.stderr
    assert imported(tmp_path, "orchestrator.status", "outputs/x") == set()
