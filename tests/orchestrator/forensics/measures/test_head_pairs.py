"""Clusters of heads and composition between heads: by loops, on noise, and where some were planted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.sparse.csgraph import connected_components

from orchestrator.forensics.analyzer import analyze
from orchestrator.forensics.architecture.layout import Heads
from orchestrator.forensics.measures.head_pairs import clusters, components, top_pair_share
from orchestrator.forensics.measures.heads import drawn_fingerprints

WIDTH = 256


@pytest.mark.parametrize("heads", [Heads(8, 8, 32), Heads(8, 2, 32), Heads(8, 1, 64)])
def test_heads_by_chance_are_all_of_their_own(heads: Heads) -> None:
    found = [clusters(drawn_fingerprints(heads, WIDTH, np.random.default_rng(seed)), heads) for seed in range(50)]
    assert np.mean(np.array(found) == 8) >= 0.9


def test_copies_of_a_head_are_one_cluster() -> None:
    heads = Heads(8, 8, 32)
    rng = np.random.default_rng(0)
    prints = drawn_fingerprints(heads, WIDTH, rng)
    prints[1:4] = -prints[0] + 0.02 * rng.normal(size=(3, 2 * WIDTH))  # the sign of a singular vector means nothing
    prints[5] = prints[4]
    assert clusters(prints, heads) == 4
    assert clusters(np.zeros_like(prints), heads) == 8


@pytest.mark.parametrize("links", [0, 3, 10, 30])
def test_components_are_those_of_scipy(links: int) -> None:
    rng = np.random.default_rng(links)
    for n in (1, 2, 5, 40, 128):
        linked = np.zeros((n, n), dtype=bool)
        linked[rng.integers(n, size=links), rng.integers(n, size=links)] = True
        assert components(linked) == connected_components(linked, directed=False)[0]
    path = np.eye(50, k=1, dtype=bool)  # the longest way there is
    assert components(path) == 1


def test_the_top_share_by_loops() -> None:
    rng = np.random.default_rng(0)
    writes = [rng.normal(size=(5, width)) for width in (8, 6, 8)]
    reads = [rng.normal(size=(15, width)) for width in (8, 6, 8)]
    for layer in range(3):
        pairs = [(i, j) for i in range(3) for j in range(i + 1, 3) if layer in (i, j)]
        values = []
        for i, j in pairs:
            for write in writes[i]:
                for read in reads[j]:
                    d = min(len(write), len(read))
                    cos = write[:d] @ read[:d] / np.linalg.norm(write[:d]) / np.linalg.norm(read[:d])
                    values.append(cos**2)
        top = sorted(values)[-2:]  # 1 % of 150, rounded up
        assert len(values) == 150
        assert top_pair_share(layer, writes, reads) == pytest.approx(sum(top) / sum(values))


def test_the_top_share_of_noise_is_that_of_chi_square() -> None:
    rng = np.random.default_rng(0)
    writes, reads = ([rng.normal(size=(count, WIDTH)) for _ in range(6)] for count in (16, 48))
    assert top_pair_share(2, writes, reads) == pytest.approx(0.084, abs=0.006)
    assert top_pair_share(0, writes[:1], reads[:1]) is None
    assert top_pair_share(0, [None, None], [None, None]) is None


def test_a_head_that_reads_what_another_writes_is_found(checkpoint: Callable[..., Any]) -> None:
    """In the key of one head, in the query, or in the value: the share of both layers rises."""
    for kind in ("q", "k", "v"):
        ours = checkpoint(widths=(48,) * 4, kv_heads=4)
        plain = [layer.measures["head_composition_top"] for layer in analyze(ours.write()).layers]
        direction = np.random.default_rng(5).normal(size=48)
        ours.tensors[ours.name(0, "o")][:, 0] = 40 * direction  # of head 0
        ours.tensors[ours.name(2, kind)][0] = 40 * direction / ours.tensors["model.layers.2.input_layernorm.weight"]
        planted = [layer.measures["head_composition_top"] for layer in analyze(ours.write()).layers]
        rise = np.array(planted) - plain
        assert min(rise[0], rise[2]) > 2 * max(abs(rise[1]), abs(rise[3])), kind
