"""`python -m tests.studies.prediction.tuning OUTPUTS [OVERRIDE ...]`: runs of `width_study` go on, on other text."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

WIDTHS = {"uniform": [], "variable": ["width=ramp"]}


def experiment(outputs: Path) -> dict[str, Any]:
    """The experiment `tuning`, of one arm for each run: 120 steps on Python's reference in plain English."""
    arms = {
        f"{arm}_{cell.name.removeprefix('seed=')}": [*width, f"train.init_from='{cell.resolve()}'"]
        for arm, width in WIDTHS.items()
        for cell in sorted((outputs / "width_study" / arm).glob("seed=*"))
    }
    if not arms:
        raise FileNotFoundError(f"{outputs / 'width_study'} holds no runs: train it first.")
    return {
        "defaults": [{"override /data": "code"}, {"override /sidecar": "decay"}],
        "name": "tuning",
        "question": "Do runs of other roles take to other text differently?",
        "arms": arms,
        "declared": ["width", "train.init_from"],
        "data": {"domains": {"code": {"path": "prose"}}, "train_tokens": 32768, "heldout_tokens": 8192},
        "train": {"steps": 120, "eval_every": 40, "checkpoint_every": 120},
        "forensics": {"every": 120},
    }


def main(arguments: Sequence[str]) -> None:
    """Train it; what is trained is not trained again."""
    outputs, *overrides = arguments
    folder = Path(outputs) / ".tuning"
    (folder / "experiment").mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(experiment(Path(outputs)), sort_keys=False)
    (folder / "experiment/tuning.yaml").write_text(f"# @package _global_\n{text}")
    command = ["--config-dir", str(folder.resolve()), "+experiment=tuning", f"root={outputs}", *overrides]
    subprocess.run([sys.executable, "-m", "orchestrator", *command], check=True)


if __name__ == "__main__":
    main(sys.argv[1:])
