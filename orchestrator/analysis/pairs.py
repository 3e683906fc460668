"""Pair the baseline's cell with another arm's at each seed, and check that they are comparable (SCIENCE §8)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from orchestrator.analysis.cells import CellResult, ExperimentResult
from orchestrator.analysis.flops import at_equal_flops, spent
from orchestrator.common.errors import UserError
from orchestrator.config.keys import OF_ROUNDING, OPERATIONAL, differences, is_within

METRICS = ("test_loss", "validation_loss", "best_validation_loss")  # nats/token; the first is the primary one
BATCH_KEYS = ("data", "train.batch_size", "train.seq_len", "seed")  # decide which tokens a step sees
HELDOUT_KEYS = ("data", "train.seq_len")  # decide the held-out rows
EQUAL_FLOPS = "validation_loss_at_equal_flops"  # where the runs of a pair cost differently
MEAN = "mean"  # the domain that stands for the unweighted mean of all
PRIMARY = ((METRICS[0], MEAN), (EQUAL_FLOPS, MEAN))  # tested in this order; all other losses are secondary


@dataclass(frozen=True)
class Pair:
    """Two finished cells of one seed; `a` belongs to the baseline."""

    a: CellResult
    b: CellResult
    differing: tuple[str, ...]  # configuration keys in which they differ, all declared

    @property
    def seed(self) -> int:
        return self.a.seed

    @property
    def arm(self) -> str:
        return self.b.arm

    @property
    def cells(self) -> tuple[CellResult, ...]:
        return self.a, self.b

    @property
    def common_steps(self) -> list[int]:
        """Steps at which the layers of both cells were read, ascending."""
        return [step for step in self.a.readings if step in self.b.readings]

    def differing_in(self, keys: tuple[str, ...]) -> list[str]:
        """Return the differing keys that are one of `keys` or below one."""
        return [key for key in self.differing if is_within(key, keys)]


@dataclass(frozen=True)
class LeftOut:
    """A pair with at least one cell that cannot be compared."""

    arm: str
    seed: int
    reason: str


def pair_up(experiment: ExperimentResult) -> tuple[list[Pair], list[LeftOut]]:
    """Pair the baseline with every other arm, seed by seed: the complete pairs, and those left out with their reasons.

    Raises `UserError` where two cells differ in an undeclared key, or in their batches without a key that explains it.
    """
    pairs, left_out = [], []
    baseline, *others = experiment.arms
    for arm in others:
        for seed in experiment.seeds:
            a, b = experiment.cell(baseline, seed), experiment.cell(arm, seed)
            if reasons := [f"{cell.label}: {cell.missing}" for cell in (a, b) if cell.missing]:
                left_out.append(LeftOut(arm, seed, "; ".join(reasons)))
            else:
                pairs.append(pair_of(a, b, experiment.declared))
    return pairs, left_out


def pair_of(a: CellResult, b: CellResult, declared: list[str]) -> Pair:
    """Pair two complete cells. Raises `UserError` as `pair_up` does."""
    pair = Pair(a, b, declared_differences(a, b, declared))
    digests = {record["step"]: record["digest"] for record in b.metrics}
    differing = [x["step"] for x in a.metrics if digests.get(x["step"], x["digest"]) != x["digest"]]
    if differing and not pair.differing_in(BATCH_KEYS):
        raise UserError(
            f"{a.label} and {b.label} saw different batches at step {differing[0]} or before: "
            "train both again on the same data."
        )
    return pair


def declared_differences(a: CellResult, b: CellResult, declared: list[str]) -> tuple[str, ...]:
    """Return the keys in which the cells' configurations differ. Raises `UserError` for one that is not declared."""
    differing = differences(a.config, b.config, ignore=(*OPERATIONAL, *OF_ROUNDING, "arm"))
    undeclared = {key: values for key, values in differing.items() if not is_within(key, declared)}
    if undeclared:
        listing = ", ".join(f"{key} ({x} against {y})" for key, (x, y) in undeclared.items())
        raise UserError(
            f"{a.label} and {b.label} differ in {listing}, "
            "which 'declared' in experiment.yaml does not name: declare it, or train both arms alike."
        )
    return tuple(differing)


def losses(cell: CellResult, domains: list[str]) -> dict[tuple[str, str], float]:
    """Return (metric, domain) → nats/token of a finished cell, for the domains of `shown`; empty without a domain."""
    if not domains:
        return {}
    final = cell.metrics[-1]
    curves = validation_curves(cell, domains)
    by_metric = {
        "test_loss": with_mean({domain: final["test"][domain] for domain in domains}),
        "validation_loss": {domain: curve[-1][1] for domain, curve in curves.items()},
        "best_validation_loss": {domain: min(loss for _, loss in curve) for domain, curve in curves.items()},
    }
    return {(metric, domain): by_metric[metric][domain] for metric in METRICS for domain in shown(domains)}


def pair_losses(pair: Pair, domains: list[str]) -> dict[tuple[str, str], tuple[float, float]]:
    """Return (metric, domain) → (a, b), nats/token: `losses`, and those at equal FLOPs where the costs differ."""
    a, b = losses(pair.a, domains), losses(pair.b, domains)
    found = {key: (a[key], b[key]) for key in a}
    if not domains:
        return found
    flops = [spent(cell) for cell in pair.cells]
    curves = [validation_curves(cell, domains) for cell in pair.cells]
    for domain in shown(domains):
        if both := at_equal_flops((flops[0], curves[0][domain]), (flops[1], curves[1][domain])):
            found[EQUAL_FLOPS, domain] = (both[0], both[1])
    return found


def loss_gaps(pairs: list[Pair], arm: str, domains: list[str]) -> dict[str, list[dict[int, float]]]:
    """Return domain → per pair of `arm`, step → its validation loss minus the baseline's, nats/token."""
    curves = [[validation_curves(cell, domains) for cell in pair.cells] for pair in pairs if pair.arm == arm]
    return {
        domain: [
            {step: b[step] - a[step] for step in a if step in b}
            for a, b in ((dict(of_a[domain]), dict(of_b[domain])) for of_a, of_b in curves)
        ]
        for domain in shown(domains)
    }


def validation_curves(cell: CellResult, domains: list[str]) -> dict[str, list[tuple[int, float]]]:
    """Return domain → (step, nats/token) at every evaluation, `mean` included where all domains were evaluated."""
    curves: dict[str, list[tuple[int, float]]] = {domain: [] for domain in (MEAN, *domains)}
    for record in cell.metrics:
        heldout: dict[str, Any] = record.get("heldout", {})
        values = {domain: heldout[domain] for domain in domains if domain in heldout}
        values = with_mean(values) if len(values) == len(domains) else values
        for domain, loss in values.items():
            if math.isfinite(loss):
                curves[domain].append((record["step"], loss))
    return curves


def shown(domains: list[str]) -> list[str]:
    """Return the domains that tables show: the mean and each, or only the mean if there is one domain."""
    return [MEAN, *domains] if len(domains) > 1 else [MEAN]


def with_mean(by_domain: dict[str, float]) -> dict[str, float]:
    """Put the mean before the losses; empty without losses."""
    return {MEAN: float(np.mean(list(by_domain.values()))), **by_domain} if by_domain else {}


def domains_of(cells: list[CellResult]) -> list[str]:
    """Return the domains on which every finished cell has a test and a held-out loss, in the first cell's order."""
    finals = [cell.metrics[-1] for cell in cells if cell.missing is None]
    return [
        d
        for d in (finals[0]["test"] if finals else ())
        if all(d in f["test"] and d in f.get("heldout", {}) for f in finals)
    ]
