"""Compute the trajectory of an arm: steps of commitment to roles, and events at loss drops (SCIENCE §4)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from orchestrator.analysis.cells import CellResult
from orchestrator.analysis.coincidence import Coincidence, coincide
from orchestrator.analysis.statistics import interval, mean_of_known
from orchestrator.forensics.trajectory.agreement import ROLE, changes, scorings_of
from orchestrator.forensics.trajectory.commitment import FEWEST, LEVELS, Commitment, Speed, commitments, p_of, speed_of


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its 95 % interval, whose ends are null for one seed."""

    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class ArmCommitment:
    """The commitment of one arm by roles or by scores under one scoring, over its cells."""

    arm: str
    kind: str  # roles · scores
    scoring: str
    seeds: list[int]  # that count: by roles, those in which some layer ends with a role
    layers: float  # that count, mean over these seeds
    depth: int
    half: Estimate  # step from which half of them hold
    half_by_chance: float
    most: Estimate  # step from which nine tenths hold
    most_by_chance: float
    early: Estimate  # share that holds from 30 % of the run on
    early_by_chance: float
    early_step: int
    last_step: int
    p: float  # one-sided, of the mean share over the readings
    apart: int | None  # steps between the readings whose changes make the speed; null where readings are too few
    before: float | None  # changes per 1000 steps in the first 30 % of the run
    after: float | None  # and later
    faster: Estimate | None  # after − before


@dataclass(frozen=True)
class ArmTrajectory:
    """One arm that was read often enough, under every scoring that its readings hold."""

    arm: str
    seeds: list[int]  # of its cells with enough readings
    scorings: list[str]  # that all of their readings hold
    commitments: list[ArmCommitment]
    coincidences: list[Coincidence]  # empty without losses
    curves: list[dict[str, Any]]  # rows of the table `trajectory`


def trajectory(arm: str, cells: list[CellResult], domains: list[str]) -> ArmTrajectory | None:
    """Return the trajectory of an arm; None where no finished cell has enough readings for one."""
    read = [cell for cell in cells if cell.missing is None and len(cell.readings) >= FEWEST]
    if not read:
        return None
    found = [(cell, run) for cell in read for run in commitments(list(cell.readings.values()), list(cell.readings))]
    kinds = dict.fromkeys((run.scoring, run.kind) for _, run in found)
    of_kind = [[(c, run) for c, run in found if (run.scoring, run.kind) == kind] for kind in kinds]
    speeds = [[speed for cell in read if (speed := _speed(cell, *kind))] for kind in kinds]
    return ArmTrajectory(
        arm,
        [cell.seed for cell in read],
        _shared(read),
        [
            _commitment(arm, [cell.seed for cell, _ in own], [run for _, run in own], of_all)
            for own, of_all in zip(of_kind, speeds, strict=True)
        ],
        coincide(arm, read, domains),
        [row for cell, run in found for row in _rows(cell, run)],
    )


def curve_rows(found: list[ArmTrajectory]) -> list[dict[str, Any]]:
    """Return a row per arm, seed, scoring, kind and reading."""
    return [row for of_arm in found for row in of_arm.curves]


def coincidence_rows(found: list[ArmTrajectory]) -> list[dict[str, Any]]:
    """Return a row per arm, event, scoring and domain."""
    return [vars(one) for of_arm in found for one in of_arm.coincidences]


def _speed(cell: CellResult, scoring: str, kind: str) -> Speed | None:
    return speed_of(list(cell.readings), changes([reading.by(scoring) for reading in cell.readings.values()], kind))


def _commitment(arm: str, seeds: list[int], runs: list[Commitment], speeds: list[Speed]) -> ArmCommitment:
    """Sum up the cells that count; `speeds` are of all, for a layer that ends with a role has gained it."""
    half, most = ([run.reached(level) for run in runs] for level in LEVELS)
    by_chance = [float(np.mean([run.reached_by_chance(level) for run in runs])) for level in LEVELS]
    early = [float(run.held[run.at_early]) for run in runs]
    return ArmCommitment(
        arm, runs[0].kind, runs[0].scoring, seeds, float(np.mean([run.layers for run in runs])), runs[0].depth,
        _estimate(half), by_chance[0], _estimate(most), by_chance[1],
        _estimate(early, least=0.0 if runs[0].kind == ROLE else -1.0, most=1.0),
        float(np.mean([run.by_chance[:, run.at_early].mean() for run in runs])),
        early_step=int(runs[0].steps[runs[0].at_early]), last_step=int(runs[0].steps[-1]), p=p_of(runs),
        apart=speeds[0].apart if speeds else None,
        before=mean_of_known(speed.before for speed in speeds), after=mean_of_known(speed.after for speed in speeds),
        faster=_estimate([speed.after - speed.before for speed in speeds]) if speeds else None,
    )  # fmt: skip


def _estimate(values: list[float] | list[int], *, least: float = -math.inf, most: float = math.inf) -> Estimate:
    """Return the mean with its interval, cut at the smallest and largest possible values."""
    around = interval(values, 0.95)
    ends = [None if end is None else min(most, max(least, end)) for end in (around.low, around.high)]
    return Estimate(float(np.mean(values)), *ends)


def _shared(cells: list[CellResult]) -> list[str]:
    """Return the scorings that every cell's readings hold."""
    each = [scorings_of(list(cell.readings.values())) for cell in cells]
    return [scoring for scoring in each[0] if all(scoring in own for own in each)]


def _rows(cell: CellResult, run: Commitment) -> list[dict[str, Any]]:
    """Return a row per reading: what held from there on, by chance, and the change since the reading before."""
    by_chance = run.by_chance.mean(axis=0)  # [readings]
    return [
        {
            "arm": cell.arm, "seed": cell.seed, "scoring": run.scoring, "kind": run.kind, "step": int(step),
            "layers": run.layers, "held": float(run.held[index]), "by_chance": float(by_chance[index]),
            "change": float(run.changed[index - 1]) if index else None,
        }
        for index, step in enumerate(run.steps)
    ]  # fmt: skip
