"""The spread of attention's share over the layers, against numpy by hand."""

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


def rewrite(root: Path, share: Callable[[str, int, int], float | None]) -> None:
    for path in root.glob("*/seed=*/forensics/*.json"):
        reading = json.loads(path.read_text())
        arm, seed = path.parts[-4], int(path.parts[-3].removeprefix("seed="))
        for layer in reading["layers"]:
            layer["measures"]["attention_share"] = share(arm, seed, layer["layer"])
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
