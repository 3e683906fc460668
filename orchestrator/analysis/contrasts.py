"""Test contrasts: weighted sums of the arms' losses, seed by seed, such as an arm minus its control."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from orchestrator.analysis.cells import CellResult, ExperimentResult
from orchestrator.analysis.flops import at_equal_flops, spent
from orchestrator.analysis.pairs import EQUAL_FLOPS, MEAN, METRICS, losses, pair_of, validation_curves
from orchestrator.analysis.sign_flip import p_two_sided
from orchestrator.analysis.statistics import (
    in_sequence,
    interval,
    p_within,
    verdict,
)
from orchestrator.experiments.decision import ALPHA

CONTRASTED = (METRICS[0], EQUAL_FLOPS)  # the contrasts of each metric are one sequence of tests
SIGNS = {"better": "negative", "worse": "positive"}  # verdicts on a sum over more than two arms


@dataclass(frozen=True)
class Contrast:
    """One contrast of the domains' mean loss; null means not known.

    Of two arms, the verdict is on the one with positive weight; of more, it is the sign of the weighted sum.
    """

    contrast: str
    weights: dict[str, float]
    metric: str
    seeds: dict[int, float]  # seed → weighted sum, nats/token
    n: int
    value: float | None  # their mean
    low: float | None  # its 95 % interval
    high: float | None
    method: str
    p: float | None  # two-sided sign-flip, over all looks
    p_adjusted: float | None  # for its place in the sequence
    tested: bool  # false once a contrast before it was not significant
    against: float | None  # nats/token: the loss whose share is the margin of equivalence
    verdict: str  # better · worse · negative · positive · equivalent · inconclusive · not tested · not measured


def contrast_all(experiment: ExperimentResult, domains: list[str]) -> list[Contrast]:
    """Test every contrast in the file's order: test loss, and validation loss where the cheapest of its runs ends.

    The contrasts of a metric are a fixed sequence: testing ends at the first whose p exceeds `ALPHA` or is unknown, so
    the order must be fixed before the losses are known. Equivalence is judged for each contrast alone. Raises
    `UserError` where runs are not comparable.
    """
    found = [one for name in experiment.contrasts for one in _measured(experiment, name, domains)]
    judged: dict[tuple[str, str], Contrast] = {}
    for metric in CONTRASTED:
        sequence, tested = [one for one in found if one.metric == metric], True
        for one, p in zip(sequence, in_sequence([one.p for one in sequence]), strict=True):
            judged[one.contrast, metric] = _judged(experiment, replace(one, p_adjusted=p, tested=tested))
            tested = p is not None and p <= ALPHA
    return [judged[one.contrast, one.metric] for one in found]


def contrast_rows(contrasts: list[Contrast]) -> list[dict[str, Any]]:
    """Return a row per contrast, metric and seed; value in nats/token."""
    return [
        {"contrast": one.contrast, "metric": one.metric, "seed": seed, "value": value}
        for one in contrasts
        for seed, value in one.seeds.items()
    ]


def _measured(experiment: ExperimentResult, name: str, domains: list[str]) -> list[Contrast]:
    """Return the contrast under each metric, without verdicts; at equal FLOPs only where its runs cost unequally."""
    weights = experiment.contrasts[name]
    w = np.array(list(weights.values()), dtype=np.float64)  # [arms]
    complete = _complete(experiment, list(weights)) if domains else {}
    seeds, looks = experiment.looks_at(list(weights), list(complete))
    by_seed = {seed: complete[seed] for seed in seeds}
    test = [[losses(cell, domains)[METRICS[0], MEAN] for cell in cells] for cells in by_seed.values()]
    runs = [[(spent(cell), validation_curves(cell, domains)[MEAN]) for cell in cells] for cells in by_seed.values()]
    equal = [at for own in runs if (at := at_equal_flops(*own)) is not None]
    by_metric = {METRICS[0]: np.array(test)}
    if equal or not by_seed:  # unmeasured where only some seeds' runs differ in cost
        by_metric[EQUAL_FLOPS] = np.array(equal if len(equal) == len(by_seed) else [])
    found = []
    for metric, per_seed in by_metric.items():
        x = per_seed.reshape(-1, w.size)  # [n, arms], nats/token
        values, within = x @ w, interval(x @ w, 0.95)  # [n]
        mean, against = None, None
        if values.size:
            mean = float(values.mean())
            # the mean of the arms with negative weight, so that more arms do not widen the margin
            against = float(np.abs(w).max() * np.average(x.mean(axis=0), weights=w.clip(max=0.0)))
        p = p_two_sided(values, looks if values.size == len(seeds) else ())
        found.append(
            Contrast(
                contrast=name, weights=weights, metric=metric, seeds=dict(zip(by_seed, values.tolist(), strict=False)),
                n=values.size, value=mean, low=within.low, high=within.high, method=within.method, p=p,
                p_adjusted=None, tested=False, against=against, verdict="not measured",
            )
        )  # fmt: skip
    return found


def _judged(experiment: ExperimentResult, one: Contrast) -> Contrast:
    if one.value is None or one.against is None:
        return one
    values = list(one.seeds.values())
    margin = experiment.margin * abs(one.against)
    equal = p_within(values, -margin, margin, experiment.looks_at(list(one.weights), list(one.seeds))[1])
    found = verdict(one.low, one.high, margin, one.p_adjusted, equal)
    if found == "inconclusive" and not one.tested:
        found = "not tested"
    return replace(one, verdict=found if len(one.weights) == 2 else SIGNS.get(found, found))


def _complete(experiment: ExperimentResult, arms: list[str]) -> dict[int, list[CellResult]]:
    """Return seed → the arms' cells, where all are complete. Raises `UserError` where they are not comparable."""
    found = {}
    for seed in experiment.seeds:
        cells = [experiment.cell(arm, seed) for arm in arms]
        if any(cell.missing for cell in cells):
            continue
        if experiment.cell(experiment.arms[0], seed).missing:  # otherwise each was paired with the baseline
            for other in cells[1:]:
                pair_of(cells[0], other, experiment.declared)
        found[seed] = cells
    return found
