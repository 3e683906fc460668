"""`python -m tests.studies.prediction.tuning OUTPUTS [OVERRIDE ...]`: runs of `width_study` go on, on other text."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from orchestrator.common import command
from orchestrator.common.errors import UserError

WIDTHS = {"uniform": [], "variable": ["width=ramp"]}


def experiment(outputs: Path) -> dict[str, Any]:
    """The experiment `tuning`, of one arm for each run: 120 steps on Python's reference in plain English."""
    arms = {
        f"{arm}_{cell.name.removeprefix('seed=')}": [*width, f"train.init_from='{cell.resolve()}'"]
        for arm, width in WIDTHS.items()
        for cell in sorted((outputs / "width_study" / arm).glob("seed=*"))
    }
    if not arms:
        raise UserError(f"{outputs / 'width_study'} holds no runs: train it first.")
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: that of the training, or 2 for arguments that cannot be used."""
    parser = command.parser("tests.studies.prediction.tuning", __doc__)
    parser.add_argument("outputs", type=Path, metavar="OUTPUTS", help="the directory of the experiments")
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE", help="such as launcher=debug")
    return command.run(parser, _train, arguments)


def _train(options: argparse.Namespace) -> int:
    """Train it; what is trained is not trained again."""
    outputs = options.outputs
    folder = outputs / ".tuning"
    (folder / "experiment").mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(experiment(outputs), sort_keys=False)
    (folder / "experiment/tuning.yaml").write_text(f"# @package _global_\n{text}")
    words = ["--config-dir", str(folder.resolve()), "+experiment=tuning", f"root={outputs}", *options.overrides]
    return subprocess.run([sys.executable, "-m", "orchestrator", *words], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
