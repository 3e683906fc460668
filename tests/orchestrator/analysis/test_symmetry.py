"""The spreads of attention's shares over the layers, against numpy by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy

from orchestrator.analysis.comparison import compute
from orchestrator.analysis.sections import sections

Write = Callable[..., Path]


def rewrite(root: Path, share: Callable[[str, int, int], float | None], name: str = "attention_share") -> None:
    for path in root.glob("*/seed=*/forensics/*.json"):
        reading = json.loads(path.read_text())
        arm, seed = path.parts[-4], int(path.parts[-3].removeprefix("seed="))
        for layer in reading["layers"]:
            layer["measures"][name] = share(arm, seed, layer["layer"])
        path.write_text(json.dumps(reading))


def test_spreads_are_paired_by_seed(experiment: Write) -> None:
    root = experiment(seeds=(0, 1, 2))
    at = {"uniform": 0.01, "variable": 0.1}
    rewrite(root, lambda arm, seed, layer: 0.4 + at[arm] * (1 + 0.1 * seed**2) * layer)
    c = compute(root)
    (found,) = c.symmetry
    a, b = (np.array([at[arm] * (1 + 0.1 * s**2) * np.std(range(4)) for s in range(3)]) for arm in at)
    assert (found.arm, found.n) == ("variable", 3)
    assert [found.a, found.b, found.delta] == pytest.approx([a.mean(), b.mean(), (b - a).mean()])
    assert [found.range_a, found.range_b] == pytest.approx(
        [3 * a.mean() / np.std(range(4)), 3 * b.mean() / np.std(range(4))]
    )
    low, high = scipy.stats.t.interval(0.95, 2, loc=(b - a).mean(), scale=scipy.stats.sem(b - a))
    assert [found.low, found.high] == pytest.approx([low, high])
    assert found.p == 0.25
    (section,) = (s for s in sections(c) if s.title.startswith("Symmetry"))
    assert [row[0] for row in section.rows] == ["uniform", "variable"]


def test_without_every_layers_share_nothing_is_said(experiment: Write) -> None:
    root = experiment()
    rewrite(root, lambda arm, seed, layer: None if layer == 2 else 0.4)
    c = compute(root)
    assert c.symmetry == []
    assert not [s for s in sections(c) if s.title.startswith("Symmetry")]


def test_writes_have_a_spread_of_their_own(experiment: Write) -> None:
    root = experiment(seeds=(0, 1))
    rewrite(root, lambda arm, seed, layer: 0.4 + 0.1 * layer * (arm == "variable"), "write_share")
    c = compute(root)
    assert [(r.a, r.b) for r in c.symmetry] == [(0, 0)]
    (found,) = c.write_symmetry
    assert [found.a, found.b, found.range_b] == pytest.approx([0, 0.1 * np.std(range(4)), 0.3])
    assert len([s for s in sections(c) if s.title.startswith("Symmetry")]) == 2


def test_largest_entries_stand_beside_the_flattening(experiment: Write) -> None:
    root = experiment(seeds=(0, 1))
    rewrite(root, lambda arm, seed, layer: {"uniform": 0.55, "variable": 0.06}[arm] + layer, "max_abs")
    (section,) = (s for s in sections(compute(root)) if s.title.startswith("Flattening"))
    assert [row[-2:] for row in section.rows] == [[f"{layer}.550", f"{layer}.060"] for layer in range(4)]
