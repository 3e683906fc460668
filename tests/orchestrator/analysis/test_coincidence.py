"""Loss drops and role transitions planted by hand, and p against every combination of shifts."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from orchestrator.analysis.cells import CellResult
from orchestrator.analysis.coincidence import ANY, Coincidence, coincide
from tests.naming import names
from tests.orchestrator.reading import reading_of

EVERY = 10  # steps between readings


def cell_of(
    losses: Sequence[float], moved: Sequence[int], *, seed: int = 0, layers: int = 4, read: Sequence[int] | None = None
) -> CellResult:
    """Evaluations at every `EVERY / 2` steps, linear between `losses`; `moved` layers change state per interval."""
    steps = np.arange(0, EVERY * (len(losses) - 1) + 1, EVERY // 2)
    values = np.interp(steps, EVERY * np.arange(len(losses)), losses)
    metrics = [{"step": int(s), "heldout": {"code": v, "facts": v + 1.0}} for s, v in zip(steps, values, strict=True)]
    states, readings = np.zeros(layers, dtype=int), {}
    for index, count in enumerate([0, *moved]):
        states[:count] = 1 - states[:count]
        step = EVERY * index if read is None else read[index]
        readings[step] = reading_of([("hub", "damper")[s] for s in states])
    return CellResult("b", seed, Path(), metrics, readings, None)


def falling(intervals: int, drops: dict[int, float], seed: int = 0, noise: float = 0.001) -> list[float]:
    """A straight fall with some noise, and further falls in the given intervals."""
    changes = -0.02 + noise * np.random.default_rng(seed).standard_normal(intervals)
    for at, size in drops.items():
        changes[at] -= size
    return list(5.0 + np.concatenate([[0.0], np.cumsum(changes)]))


def role_changes(
    cells: list[CellResult], domains: Sequence[str] = ("code",), domain: str = "mean"
) -> Coincidence | None:
    """The coincidence of any change of role; None where nothing was judged."""
    found = coincide("b", cells, list(domains))
    return next((one for one in found if (one.event, one.domain) == ("any change of role", domain)), None)


def once(intervals: int, at: dict[int, int]) -> list[int]:
    return [at.get(i, 0) for i in range(intervals)]


def test_planted_drops_are_found_where_they_are() -> None:
    drops = {8: 0.3, 15: 0.2, 22: 0.1}
    found = role_changes([cell_of(falling(30, drops), once(30, {8: 2, 22: 3, 12: 1}), seed=7)])
    assert found is not None
    assert found.drop_steps == {7: [EVERY * (at + 1) for at in drops]}
    assert (found.intervals, found.drops, found.events, found.together) == (28, 3, 6, 5)
    assert found.p is not None
    assert found.expected is not None
    assert found.expected < 1.5
    assert found.p < 0.05
    assert found.sentence == ""


@pytest.mark.parametrize("seed", range(3))
def test_p_counts_every_combination_of_shifts(seed: int) -> None:
    rng = np.random.default_rng(seed)
    drops = [{3: 0.3, 10: 0.2}, {6: 0.3}]
    moved = [rng.integers(0, 3, 16) for _ in drops]
    cells = [cell_of(falling(16, d), m, seed=i) for i, (d, m) in enumerate(zip(drops, moved, strict=True))]
    found = role_changes(cells)
    assert found is not None
    # the intervals but for the first and last, in stretches of five and the rest
    parts = []
    for d, m in zip(drops, moved, strict=True):
        for start, stop in ((1, 6), (6, 15)):
            hit = np.array([at in d for at in range(start, stop)])
            parts.append([np.roll(m[start:stop], s)[hit].sum() for s in range(stop - start)])
    every = np.array([sum(shifts) for shifts in itertools.product(*parts)])
    assert found.together == every[0]
    assert found.expected == pytest.approx(every.mean())
    assert found.p == pytest.approx(np.mean(every >= every[0]))
    assert found.smallest_p == pytest.approx(np.mean(every == every.max()))


def test_a_trend_is_no_drop_nor_is_one_bad_evaluation() -> None:
    steps = np.arange(41)
    losses = 2.0 + 3.0 * (1.0 + steps / 2.0) ** -0.8  # falls by 0.9 nats in the first interval, 0.01 in the last
    cell = cell_of(list(losses), [4] * 5 + [0] * 35)
    found = role_changes([cell])
    assert found is not None
    assert (found.drops, found.events, found.p, found.expected) == (0, 16, None, None)
    assert "no loss drop" in found.sentence
    spiked = cell_of(falling(30, {}, noise=0.01), [1] * 30)
    spiked.metrics[21]["heldout"]["code"] -= 0.5
    found = role_changes([spiked])
    assert found is not None
    assert found.drops == 0


def test_what_cannot_be_said_is_said() -> None:
    def sentence(cells: list[CellResult]) -> str:
        found = role_changes(cells)
        assert found is not None
        assert (found.p is None) == (found.expected is None) == (found.smallest_p is None)
        assert json.loads(json.dumps(asdict(found), allow_nan=False))["sentence"] == found.sentence
        return found.sentence

    assert names(sentence([cell_of(falling(1, {}), [1])]), "1 interval", "10")
    assert names(sentence([cell_of(falling(9, {4: 0.3}), [1] * 9)]), "9 intervals", "10")
    assert "no such event" in sentence([cell_of(falling(20, {9: 0.3}), [0] * 20)])
    assert names(sentence([cell_of([3.0] * 21, [0] * 20)]), "no loss drop", "no such event")
    lone = cell_of(falling(20, {9: 0.3}), once(20, {9: 4}))
    assert names(sentence([lone]), "0.077")
    # a cell with enough intervals speaks for itself beside one that has too few
    assert sentence([lone, cell_of(falling(5, {}), [4] * 5, seed=1)]) == sentence([lone])


def test_nothing_read_beside_a_loss_is_nothing() -> None:
    whole = cell_of(falling(12, {}), [1] * 12)
    unread = CellResult("b", 0, Path(), whole.metrics, {}, None)
    once_read = CellResult("b", 0, Path(), whole.metrics, dict([*whole.readings.items()][:1]), None)
    silent = CellResult("b", 0, Path(), [], whole.readings, None)
    infinite = [{"step": r["step"], "heldout": {"code": float("nan")}} for r in whole.metrics]
    diverged = CellResult("b", 0, Path(), infinite, whole.readings, None)
    assert role_changes([unread, once_read, silent, diverged]) is None
    assert role_changes([]) is None


def test_readings_at_other_steps_than_evaluations_and_beyond_them() -> None:
    read = [-7, *range(3, 193, EVERY), 400]  # before and after every evaluation, and between two
    losses = falling(20, {9: 0.5})
    cell = cell_of(losses, once(20, {10: 3}), read=read)
    found = role_changes([cell])
    assert found is not None
    assert found.intervals == 18 - 2
    assert found.drop_steps == {0: [103]}  # half of it falls before that reading, and half after


def test_readings_between_two_evaluations_are_one() -> None:
    losses, every = falling(20, {9: 0.5}), [EVERY * i for i in range(21)]
    dense = cell_of(losses, once(40, {19: 3}), read=[step + more for step in every for more in (0, 2)][:41])
    found = role_changes([dense])
    assert found is not None
    assert (found.intervals, found.drop_steps) == (18, {0: [100]})


def test_a_single_layer_and_several_domains() -> None:
    cell = cell_of(falling(20, {9: 0.3}), once(20, {9: 1}), layers=1)
    one = role_changes([cell])
    assert one is not None
    assert (one.together, one.events, one.drop_steps) == (1, 1, {0: [100]})
    for domain in (ANY, "mean", "code", "facts"):
        of = role_changes([cell], ("code", "facts"), domain)
        assert of is not None
        assert (of.drop_steps, of.p) == (one.drop_steps, one.p)
