"""The study's tables as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from tests.studies.prediction.correlation import Rho, of_group
from tests.studies.prediction.fit import Predictor, Votes
from tests.studies.prediction.fits import Fitted
from tests.studies.prediction.predictors import APART, BASELINES, GROUPS, OTHER, OWN, SCORES, measures, newest
from tests.studies.prediction.tables import TARGETS, WRITTEN

BEST = 10  # measures listed for each target
STEPS = ("passthrough (paper)", "hub (calibrated)", "stable rank of k", "relative write (random tokens)")


def page(layers: pd.DataFrame, records: Sequence[Mapping[str, Any]], fits: Mapping[str, Sequence[Fitted]]) -> str:
    """Everything, as one page."""
    last = newest(layers)
    lines = [
        "# What predicts the damage of a deletion",
        *_models(last, records),
        *_tables(last),
        *(line for target in TARGETS for line in _fits(fits[target], target)),
        *_steps(layers),
    ]
    return "\n".join(lines)


def _models(layers: pd.DataFrame, records: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield "\n| group | models | seeds | layers | text |\n|---|---|---|---|---|"
    for group in _groups(layers):
        rows = layers[layers["group"] == group]
        texts = {of["identity"]["text"] for of in records if of["group"] == group}
        text = ", ".join(f"English and code, {of}" if of else "its own validation split" for of in texts)
        models = rows["run"].nunique()
        yield f"| {group} | {models} | {rows['seed'].nunique()} | {len(rows) // models} | {text} |"
    yield (
        "\nEvery cell: Spearman's ρ raw / with depth partialled out (its 95 % interval, over seeds, or over the layers "
        f"of a single model). Pooled: the mean over groups, without {APART}, where all have one. [n of N]: in n "
        "of the models; in the others all layers have one score. 0 without an interval: it orders the layers "
        "as depth does. *Damage on other text*: ρ of the damage on half of a model's domains with that on the others. "
        f"The last {BEST} rows of a table are the measures with the largest mean |ρ|, chosen on what they are shown on."
    )


def _tables(layers: pd.DataFrame) -> Iterator[str]:
    for target, edit in TARGETS.items():
        outcome = f"damage.{target}"
        yield f"\n## Damage of `{edit}`\n"
        yield from _head(layers, "predicted by")
        for name, column in (SCORES | BASELINES).items():
            yield _row(layers, name, column, outcome)
        yield _row(layers, OWN, f"own.{target}", outcome)
        yield _row(layers, OTHER, f"{outcome}.a", f"{outcome}.b")
        of = Votes(layers[layers["group"] != APART], candidates := measures(layers), outcome)
        for name in sorted(candidates, key=lambda name: -abs(of.mean({name: 1}, GROUPS)))[:BEST]:
            yield _row(layers, f"`{name}`", name, outcome)
    yield "\n## The predictions written before looking\n"
    yield from _head(layers, "prediction")
    for prediction, (role, outcome) in WRITTEN.items():
        for scoring in ("paper", "calibrated"):
            yield _row(layers, f"{prediction} ({scoring})", f"{scoring}.{role}", outcome)


def _head(layers: pd.DataFrame, first: str) -> Iterator[str]:
    groups = _groups(layers)
    yield f"| {first} | {' | '.join(groups)} | pooled |\n|---|{'---|' * (len(groups) + 1)}"


def _row(layers: pd.DataFrame, name: str, predictor: str, outcome: str) -> str:
    cells, pooled = [], []
    for group in _groups(layers):
        of = layers[layers["group"] == group]
        raw, partial = (of_group(of, predictor, outcome, controls) for controls in ((), ("depth",)))
        cells.append(f"{_plain(raw)} / {_whole(partial)}" if raw.defined else "–")
        if group != APART and np.isfinite(raw.value):
            pooled.append((raw.value, partial.value))
    everywhere = len(pooled) == len(GROUPS)
    means = " / ".join(signed(value) for value in np.mean(pooled, axis=0)) if everywhere else "–"
    return f"| {name} | {' | '.join(cells)} | {means} |"


def _fits(found: Sequence[Fitted], target: str) -> Iterator[str]:
    """The predictor that is fitted without each group, and its ρ there."""
    yield f"\n## Damage of `{TARGETS[target]}`: predictors fitted on three groups, judged on the fourth\n"
    yield f"| fitted on | {' | '.join(GROUPS)} | mean | predictor of all groups |\n|---|{'---|' * (len(GROUPS) + 2)}"
    for of in found:
        mean = np.nanmean([rho.value for rho in of.held_out.values()])
        cells = " | ".join(_whole(of.held_out[group]) for group in GROUPS)
        yield f"| {of.way} | {cells} | {signed(mean)} | {described(of.predictor)} |"


def described(predictor: Predictor) -> str:
    """`+ total_write − cv`."""
    return " ".join(f"{'+' if sign > 0 else '−'} `{name}`" for name, sign in predictor.items())


def _steps(layers: pd.DataFrame) -> Iterator[str]:
    """ρ with the damage of a deletion over training, depth partialled out."""
    yield "\n## Over training: damage of `delete`, depth partialled out\n"
    yield f"| group | step | {' | '.join(STEPS)} |\n|---|---|{'---|' * len(STEPS)}"
    for (group, step), of in layers[layers["step"].notna()].groupby(["group", "step"]):
        found = (of_group(of, (SCORES | BASELINES)[name], "damage.layer", ("depth",)) for name in STEPS)
        yield f"| {group} | {step} | {' | '.join(map(_whole, found))} |"


def _groups(layers: pd.DataFrame) -> list[str]:
    present = set(layers["group"])
    return [group for group in (*GROUPS, APART) if group in present]


def _plain(rho: Rho) -> str:
    return signed(rho.value) if rho.defined else "–"


def _whole(rho: Rho) -> str:
    ends = f" ({signed(rho.low)} to {signed(rho.high)})" if np.isfinite(rho.low) else ""
    share = f" [{rho.defined} of {rho.models}]" if 0 < rho.defined < rho.models else ""
    return _plain(rho) + ends + share


def signed(value: float) -> str:
    """`+.52`, `−.04`."""
    return f"{value:+.2f}".replace("0.", ".", 1).replace("-", "−")
