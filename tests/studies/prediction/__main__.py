"""`python -m tests.studies.prediction DIR OUTPUTS TARGET`: do roles and measures predict what deletions cost?

DIR keeps what has been computed: the same command goes on. OUTPUTS holds the experiments `width_study`,
`decay_ablation` and `small`; train them first, two core-hours:

    python -m orchestrator +experiment=width_ablation name=width_study 'seeds=[0,1,2,3,4,5]'
    python -m orchestrator +experiment=decay_ablation
    python -m orchestrator name=small model=small
    python -m tests.studies.prediction.tuning outputs

TARGET gets the tables, `prediction.md`, every correlation, `prediction.csv`, the fitted predictors, `fitted.json`, and
the figure, `prediction.png`. WeightWatcher comes with the extra `bench`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from orchestrator.common import command
from orchestrator.common.errors import UserError
from tests.studies.prediction import between
from tests.studies.prediction.figure import draw
from tests.studies.prediction.fits import fits
from tests.studies.prediction.gather import gather
from tests.studies.prediction.markdown import page
from tests.studies.prediction.predictors import correlations, newest
from tests.studies.prediction.tables import table

EXPERIMENTS = ("width_study", "decay_ablation", "small", "tuning")


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0, or 2 for arguments that cannot be used."""
    parser = command.parser("tests.studies.prediction", __doc__)
    parser.add_argument("folder", type=Path, metavar="DIR", help="the directory that keeps what has been computed")
    parser.add_argument("outputs", type=_trained, metavar="OUTPUTS", help="the directory of the experiments")
    parser.add_argument("target", type=Path, metavar="TARGET", help="the directory that gets the tables and the figure")
    return command.run(parser, _write, arguments)


def _trained(text: str) -> Path:
    """The directory, which holds the experiments."""
    if absent := [name for name in EXPERIMENTS if not (Path(text) / name).is_dir()]:
        raise UserError(f"{text} lacks {', '.join(absent)}: train them first, as --help says.")
    return Path(text)


def _write(options: argparse.Namespace) -> None:
    """Write the tables and the figure."""
    target, outputs = options.target, options.outputs
    records = gather(options.folder, outputs)
    layers = table(records)
    target.mkdir(parents=True, exist_ok=True)
    found = fits(layers)
    text = "\n".join([page(layers, records, found), *between.lines(newest(layers), outputs)])
    (target / "prediction.md").write_text(text + "\n")
    predictors = {of_target: {of.way: of.predictor for of in ways} for of_target, ways in found.items()}
    (target / "fitted.json").write_text(json.dumps(predictors, indent=1) + "\n")
    correlated = correlations(layers)
    correlated.to_csv(target / "prediction.csv", index=False)
    draw(correlated, target / "prediction.png")


if __name__ == "__main__":
    sys.exit(main())
