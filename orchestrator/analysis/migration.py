"""Compare roles from reading to reading within a cell, and between the cells of a pair (SCIENCE §4)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Any

import numpy as np

from orchestrator.analysis.cells import CellResult
from orchestrator.analysis.common_step import common_step_of_pairs
from orchestrator.analysis.pairs import Pair
from orchestrator.analysis.sign_flip import sign_patterns
from orchestrator.experiments.decision import ALPHA, smallest_p
from orchestrator.forensics.reading import roles_of
from orchestrator.forensics.roles.routing import STATES, state

Sides = Sequence[tuple[list[str], list[str]]]  # the roles of the same layers in two readings, several times


@dataclass(frozen=True)
class Overlap:
    """Number of layers with the same state in two readings, mean over several pairs of readings.

    Chance deals each reading's own states to its layers at random, so it keeps the number of hubs, dampers, ….
    """

    same: float  # layers
    expected: float  # layers, by chance
    kappa: float | None  # Cohen's: 1 = all layers agree, 0 = as by chance; null where chance alone makes all agree


@dataclass(frozen=True)
class Transitions:
    """State changes of an arm's layers from each reading to the next, over its cells; chance as in `Overlap`.

    Matrices are [6][6] in the order of `STATES`, rows = before.
    """

    arm: str
    layers: int  # layers × intervals counted
    counts: list[list[int]]
    expected: list[list[float]]  # by chance
    changed: int  # layers × intervals whose state changed
    changed_expected: float
    kappa: float | None  # as in `Overlap`, of before and after


@dataclass(frozen=True)
class LayerShift:
    """One layer in both arms, seed by seed."""

    layer: int
    roles_a: list[str]  # [n], the baseline's; a tie is the names of its two leaders
    roles_b: list[str]
    distance: float  # total variation between the two arms' shares of seeds in each state, 0 … 1
    p: float | None  # corrected for the number of layers; exact as in `RoleShift`


@dataclass(frozen=True)
class RoleShift:
    """The roles of baseline (a) and arm (b) at their common step.

    p is that of a permutation test which exchanges the arms' labels within the seed pairs: exact (all 2^n) up to
    `EXACT_PAIRS` pairs, beyond by random exchanges, null for one pair. It assumes a fixed number of pairs.
    """

    arm: str
    seeds: list[int]  # [n], read there
    step: int
    counts: list[list[int]]  # [6][6] in the order of `STATES`, rows = the baseline's; layers × pairs
    expected: list[list[float]]  # by chance, as in `Overlap`
    across: Overlap  # between the arms at one seed
    within_a: Overlap | None  # between two seeds of the baseline; null for one pair
    within_b: Overlap | None  # between two seeds of the arm
    layers: list[LayerShift]
    distance: float  # sum over the layers
    p: float | None  # of that sum
    smallest_p: float  # that n pairs can give
    verdict: str  # roles moved · inconclusive · not measured
    sentence: str  # caveats, or empty


def transitions(arm: str, cells: list[CellResult]) -> Transitions | None:
    """Count state changes between successive readings; None where no layer was read twice."""
    sides = [
        (roles_of(before), roles_of(after))
        for cell in cells
        for before, after in pairwise(cell.readings.values())
        if before.layers
    ]
    if not sides:
        return None
    counts, expected = _tables(sides)
    total = int(counts.sum())
    return Transitions(
        arm, total, counts.tolist(), expected.tolist(), changed=total - int(np.trace(counts)),
        changed_expected=total - float(np.trace(expected)), kappa=_overlap(sides).kappa,
    )  # fmt: skip


def role_shift(arm: str, pairs: list[Pair]) -> RoleShift | None:
    """Compare the roles of `arm` with the baseline's; None where they have no common step or differ in depth."""
    at = common_step_of_pairs(arm, pairs)
    if at.step is None:
        return None
    a = [roles_of(pair.a.readings[at.step]) for pair in at.read]
    b = [roles_of(pair.b.readings[at.step]) for pair in at.read]
    depths = {len(roles) for roles in (*a, *b)}
    if len(depths) != 1 or depths == {0}:
        return None
    counts, expected = _tables(list(zip(a, b, strict=True)))
    distances = _exchanged(a, b)  # [patterns, L], the first as observed
    several = len(a) > 1
    p = (distances.max(axis=1)[:, None] >= distances[0]).mean(axis=0)  # [L]
    layers = [
        LayerShift(
            layer, [roles[layer] for roles in a], [roles[layer] for roles in b],
            distance=float(distances[0, layer]) / len(a), p=float(p[layer]) if several else None,
        )
        for layer in range(len(a[0]))
    ]  # fmt: skip
    sums = distances.sum(axis=1)  # [patterns]
    together = float((sums >= sums[0]).mean()) if several else None
    moved = "roles moved" if together is not None and together <= ALPHA else "inconclusive"
    untrained = "These are the roles before training." if at.untrained else ""
    return RoleShift(
        arm, seeds=[pair.seed for pair in at.read], step=at.step, counts=counts.tolist(), expected=expected.tolist(),
        across=_overlap(list(zip(a, b, strict=True))),
        within_a=_overlap(list(combinations(a, 2))) if several else None,
        within_b=_overlap(list(combinations(b, 2))) if several else None,
        layers=layers, distance=float(sums[0]) / len(a), p=together,
        smallest_p=max(smallest_p(len(a)), 1.0 / len(distances)),
        verdict="not measured" if at.untrained else moved,
        sentence=" ".join(filter(None, [untrained, at.unread_note])),
    )  # fmt: skip


def _tables(sides: Sides) -> tuple[np.ndarray, np.ndarray]:
    """Return counts [5, 5] of states in the first (rows) and second of two readings, and those expected by chance."""
    each = [transition_counts(zip(first, second, strict=True)) for first, second in sides]
    expected = [np.outer(counts.sum(axis=1), counts.sum(axis=0)) / counts.sum() for counts in each]
    return np.sum(each, axis=0), np.sum(expected, axis=0)


def _overlap(sides: Sides) -> Overlap:
    counts, expected = _tables(sides)
    total, same, chance = float(counts.sum()), float(np.trace(counts)), float(np.trace(expected))
    kappa = (same - chance) / (total - chance) if total - chance > 1e-9 * total else None
    return Overlap(same / len(sides), chance / len(sides), kappa)


def _exchanged(a: list[list[str]], b: list[list[str]]) -> np.ndarray:
    """Return n × each layer's distance between the arms, [patterns, L], as observed and under every label exchange.

    A layer's p compares its distance with the largest of any layer under each pattern (Westfall & Young's max-T), which
    corrects it for the number of layers. All values are whole numbers, so equal ones compare equal.
    """
    return np.abs(np.tensordot(sign_patterns(len(a)), state_gaps(a, b), axes=1)).sum(axis=2) / 2.0


def state_gaps(a: Sequence[Sequence[str]], b: Sequence[Sequence[str]]) -> np.ndarray:
    """Return each layer's states of a minus those of b, pair by pair, [n, L, 6] in the order of `STATES`."""
    has = np.array([[[state(role) == name for name in STATES] for role in roles] for roles in (*a, *b)], dtype=float)
    return has[: len(a)] - has[len(a) :]


def role_migration(cell: CellResult) -> list[dict[str, Any]]:
    """Return a row per layer and interval between successive readings."""
    return [
        {
            "arm": cell.arm, "seed": cell.seed, "step_from": before.step, "step": after.step,
            "layer": new.layer, "role_from": old.role, "role_to": new.role,
            "margin_from": old.margin, "margin_to": new.margin,
            "changed": state(old.role) != state(new.role),  # from one tie to another is not a change
        }
        for before, after in pairwise(cell.readings.values())
        for old, new in zip(before.layers, after.layers, strict=True)
    ]  # fmt: skip


def transition_counts(moves: Iterable[tuple[str, str]]) -> np.ndarray:
    """Count each state before (rows) and after, [6, 6] in the order of `STATES`."""
    counted = Counter((state(before), state(after)) for before, after in moves)
    return np.array([[counted[before, after] for after in STATES] for before in STATES])
