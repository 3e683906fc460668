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

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.studies.prediction import between
from tests.studies.prediction.figure import draw
from tests.studies.prediction.fits import fits
from tests.studies.prediction.gather import gather
from tests.studies.prediction.markdown import page
from tests.studies.prediction.predictors import correlations, newest
from tests.studies.prediction.tables import table


def main(arguments: Sequence[str]) -> None:
    """Write the tables and the figure."""
    folder, outputs, target = map(Path, arguments)
    records = gather(folder, outputs)
    layers = table(records)
    target.mkdir(parents=True, exist_ok=True)
    found = fits(layers)
    text = "\n".join([page(layers, records, found), *between.lines(newest(layers), outputs)])
    (target / "prediction.md").write_text(text + "\n")
    predictors = {of_target: {of.way: of.predictor for of in ways} for of_target, ways in found.items()}
    (target / "fitted.json").write_text(json.dumps(predictors, indent=1) + "\n")
    correlations(layers).to_csv(target / "prediction.csv", index=False)
    draw(layers, target / "prediction.png")


if __name__ == "__main__":
    main(sys.argv[1:])
