"""`python -m tests.studies.prediction DIR OUTPUTS`: do roles, measures and baselines predict what deletions cost?

DIR keeps what has been computed: the same command goes on. OUTPUTS holds the experiments `width_study`,
`decay_controls` and `small`. Prints Markdown. Train them first:

    python -m orchestrator +experiment=width_ablation name=width_study 'seeds=[0,1,2,3,4,5]'
    python -m orchestrator +experiment=decay_controls
    python -m orchestrator name=small model=small
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from tests.studies.prediction.correlation import of_group
from tests.studies.prediction.fit import Votes, fit
from tests.studies.prediction.gather import gather
from tests.studies.prediction.tables import TARGETS, WRITTEN, table

GROUPS = ("smollm2", "small", "tiny", "nano")  # folds: each is predicted from the others
APART = "minilm"  # six layers: shown, not pooled
ROLES = ("hub", "damper", "passthrough", "specialist")
BASELINES = {
    "depth": "depth",
    "width": "width",
    "parameter norm": "parameter_norm",
    "WeightWatcher's α": "alpha",
    "stable rank of o": "stable_rank.o",
    "stable rank of k": "stable_rank.k",
    "Block Influence (probed)": "probe.block_influence",
    "relative write (probed)": "probe.relative_write",
    "relative write (random tokens)": "total_write",
}
PROBED = ("probe.relative_write", "probe.block_influence")
NEVER = (
    "_chance",
    "_expected",
    "momentum_alignment",
    "gradient_alignment",
    "stuck_fraction",
    "copy_density",
    "sink_mass",
)


def newest(layers: pd.DataFrame) -> pd.DataFrame:
    """The rows of every run's last step."""
    last = layers.groupby("run")["step"].transform("max")
    return layers[layers["step"].isna() | (layers["step"] == last)]


def measures(layers: pd.DataFrame) -> list[str]:
    """The measures of the weights alone that every model has."""
    first = list(layers.columns).index("calibrated.specialist") + 1
    last = list(layers.columns).index("damage.layer")
    return [
        name
        for name in layers.columns[first:last]
        if not any(part in name for part in NEVER)
        and all(group[name].notna().mean() > 0.9 for _, group in layers.groupby("group"))
    ]


def row(layers: pd.DataFrame, predictor: str, outcome: str) -> str:
    """Cells of one line: per group ρ raw and with depth partialled out, with its interval; then the pooled means."""
    cells, pooled = [], []
    for group in (*GROUPS, APART):
        of = layers[layers["group"] == group]
        if of.empty:
            continue
        raw, _, _ = of_group(of, predictor, outcome, False)
        partial, low, high = of_group(of, predictor, outcome, True)
        cells.append(f"{raw:+.2f} / {partial:+.2f} ({low:+.2f} to {high:+.2f})" if np.isfinite(raw) else "–")
        if group != APART and np.isfinite(raw):
            pooled.append((raw, partial))
    means = " / ".join(f"{value:+.2f}" for value in np.mean(pooled, axis=0)) if pooled else "–"
    return " | ".join([*cells, means])


def lines(layers: pd.DataFrame) -> Iterator[str]:
    """The tables as Markdown."""
    groups = [group for group in (*GROUPS, APART) if (layers["group"] == group).any()]
    head = f"| {{}} | {' | '.join(groups)} | pooled |\n|---|{'---|' * (len(groups) + 1)}"
    for target, edit in TARGETS.items():
        outcome = f"damage.{target}"
        yield f"\n## Damage of `{edit}`\n\n" + head.format("predicted by")
        for scoring in ("paper", "calibrated"):
            for role in ROLES:
                yield f"| {role} ({scoring}) | {row(layers, f'{scoring}.{role}', outcome)} |"
        for name, column in BASELINES.items():
            yield f"| {name} | {row(layers, column, outcome)} |"
        candidates = measures(layers)
        of = Votes(layers[layers["group"] != APART], candidates, outcome)
        ranked = sorted(candidates, key=lambda name: -abs(of.mean({name: 1}, list(of.models))))
        for name in ranked[:12]:
            yield f"| {name} | {row(layers, name, outcome)} |"
    yield "\n## The predictions written before looking\n\n" + head.format("prediction")
    for prediction, (predictor, outcome) in WRITTEN.items():
        yield f"| {prediction} | {row(layers, predictor, outcome)} |"
    for target in TARGETS:
        yield from fitted(layers[layers["group"] != APART], f"damage.{target}")


def fitted(layers: pd.DataFrame, outcome: str) -> Iterator[str]:
    """The routing that is fitted without each group, and its ρ there."""
    for title, candidates in {
        "weights only": measures(layers),
        "with a probe": [*measures(layers), *PROBED],
        "relative write alone": [PROBED[0]],
        "Block Influence alone": [PROBED[1]],
    }.items():
        of = Votes(layers, candidates, outcome)
        yield f"\n## {outcome}, fitted: {title}\n"
        yield "| held out | ρ there, depth partialled out | raw | routing |\n|---|---|---|---|"
        for held in of.models:
            routing = fit(of, candidates, [group for group in of.models if group != held])
            each, raw = (np.nanmean(of.each(routing, held, partial)) for partial in (True, False))
            yield f"| {held} | {each:+.2f} | {raw:+.2f} | {described(routing)} |"
        yield f"| none | | | {described(fit(of, candidates, list(of.models)))} |"


def described(routing: dict[str, int]) -> str:
    """`+ total_write − cv`."""
    return " ".join(f"{'+' if sign > 0 else '−'} `{name}`" for name, sign in routing.items())


def main(arguments: Sequence[str]) -> None:
    """Print the tables."""
    folder, outputs = map(Path, arguments)
    layers = newest(table(gather(folder, outputs)))
    print("\n".join(lines(layers)))


if __name__ == "__main__":
    main(sys.argv[1:])
