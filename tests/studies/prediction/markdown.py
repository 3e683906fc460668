"""The study's tables as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from tests.studies.prediction.correlation import Rho, of_group
from tests.studies.prediction.fit import Routing, Votes, fit
from tests.studies.prediction.predictors import APART, BASELINES, GROUPS, PROBED, SCORES, measures, newest
from tests.studies.prediction.tables import TARGETS, WRITTEN

BEST = 10  # measures listed for each target
OWN = "the same edit, on the model's own samples"
STEPS = ("passthrough (paper)", "hub (calibrated)", "stable rank of k", "relative write (random tokens)")


def page(layers: pd.DataFrame, records: Sequence[Mapping[str, Any]]) -> str:
    """Everything, as one page."""
    last = newest(layers)
    return "\n".join(
        ["# What predicts the damage of a deletion", *_models(last, records), *_tables(last), *_steps(layers)]
    )


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
        f"of a single model). Pooled: the mean over groups, without {APART}. [n of N]: defined in n of the models; "
        "in the others all layers have one score. *Damage on other text*: ρ of the damage on half of a model's domains "
        "with that on the others, which is how far the damage itself carries over."
    )


def _tables(layers: pd.DataFrame) -> Iterator[str]:
    for target, edit in TARGETS.items():
        outcome = f"damage.{target}"
        yield f"\n## Damage of `{edit}`\n"
        yield from _head(layers, "predicted by")
        for name, column in (SCORES | BASELINES).items():
            yield _row(layers, name, column, outcome)
        yield _row(layers, OWN, f"own.{target}", outcome)
        yield _row(layers, "damage on other text", f"{outcome}.a", f"{outcome}.b")
        of = Votes(layers[layers["group"] != APART], candidates := measures(layers), outcome)
        for name in sorted(candidates, key=lambda name: -abs(of.mean({name: 1}, GROUPS)))[:BEST]:
            yield _row(layers, f"`{name}`", name, outcome)
    yield "\n## The predictions written before looking\n"
    yield from _head(layers, "prediction")
    for prediction, (role, outcome) in WRITTEN.items():
        for scoring in ("paper", "calibrated"):
            yield _row(layers, f"{prediction} ({scoring})", f"{scoring}.{role}", outcome)
    for target in TARGETS:
        yield from _fits(layers[layers["group"] != APART], target)


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
    means = " / ".join(signed(value) for value in np.mean(pooled, axis=0)) if pooled else "–"
    return f"| {name} | {' | '.join(cells)} | {means} |"


def _fits(layers: pd.DataFrame, target: str) -> Iterator[str]:
    """The routing that is fitted without each group, and its ρ there."""
    candidates, own = measures(layers), f"own.{target}"
    alone: dict[str, Routing] = {name: {column: 1} for name, column in (PROBED | {OWN: own}).items()}
    of = Votes(layers, [*candidates, *PROBED.values(), own], f"damage.{target}")
    yield f"\n## Damage of `{TARGETS[target]}`: routings fitted on three groups, judged on the fourth\n"
    yield f"| fitted on | {' | '.join(GROUPS)} | mean | routing of all groups |\n|---|{'---|' * (len(GROUPS) + 2)}"
    for name, routing in alone.items():
        yield _judged(f"nothing: {name}", {group: of.of_group(routing, group) for group in GROUPS}, "")
    ways: dict[str, tuple[list[str], Routing]] = {
        "weights": (candidates, {}),
        "weights and a probe": ([*candidates, *PROBED.values()], {}),
        "weights and own samples": ([*candidates, own], {}),
    } | {f"weights, added to {name}": (candidates, alone[name]) for name in PROBED}
    for name, (among, start) in ways.items():
        judged = {
            held: of.of_group(fit(of, among, [group for group in GROUPS if group != held], start), held)
            for held in GROUPS
        }
        yield _judged(name, judged, described(fit(of, among, GROUPS, start)))


def _judged(name: str, found: Mapping[str, Rho], routing: str) -> str:
    mean = np.nanmean([rho.value for rho in found.values()])
    return f"| {name} | {' | '.join(_whole(found[group]) for group in GROUPS)} | {signed(mean)} | {routing} |"


def described(routing: Routing) -> str:
    """`+ total_write − cv`."""
    return " ".join(f"{'+' if sign > 0 else '−'} `{name}`" for name, sign in routing.items())


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
