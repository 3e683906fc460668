"""The benchmark's rises, passes and choices on a tiny model, against models that were built without the layers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from orchestrator.interventions.documents import Document
from orchestrator.interventions.subject import Subject
from tests.benchmarks.bench_pruning import Chooser, Judge, least
from tests.orchestrator.interventions.models import LAYERS, rebuilt, subject_of

ROWS = torch.randint(0, 41, (6, 12), generator=torch.Generator().manual_seed(1))
DOMAINS = ("a", "b", "b", "a", "b", "b")


@pytest.fixture
def judge() -> Judge:
    documents = [Document(name, tuple(row)) for name, row in zip(DOMAINS, ROWS.tolist(), strict=True)]
    return Judge(subject_of("llama"), documents)


def loss(subject: Subject) -> float:
    """The mean over domains of the loss."""
    logits = subject.run(ROWS, torch.ones_like(ROWS, dtype=torch.bool))[:, :-1]
    of = F.cross_entropy(logits.transpose(1, 2), ROWS[:, 1:], reduction="none").mean(1)
    return float(np.mean([np.mean([of[i].item() for i in range(6) if DOMAINS[i] == name]) for name in "ab"]))


def cost(layers: Sequence[int]) -> float:
    left = [layer for layer in range(LAYERS) if layer not in layers]
    return loss(rebuilt("llama", left)) - loss(subject_of("llama"))


def test_the_rise_is_that_of_a_model_without_the_layers(judge: Judge) -> None:
    assert judge.cost([1, 3]) == pytest.approx(cost([1, 3]), abs=1e-5)
    assert judge.cost([0], gone=(2,)) == pytest.approx(cost([0, 2]), abs=1e-5)
    assert judge.cost([3], gone=(2,)) == pytest.approx(cost([2, 3]), abs=1e-5)
    assert judge.cost([3]) == pytest.approx(cost([3]), abs=1e-5)


def test_passes_are_layers_that_ran_over_all_layers(judge: Judge) -> None:
    for layers, gone, ran in (([1], (), 2), ([0, 1], (), 2), ([2], (1,), 3 + 1), ([0], (1,), 2), ([3], (), 0)):
        before = judge.passes
        judge.cost(layers, gone)
        assert (judge.passes - before) * LAYERS == ran


def test_each_way_chooses_what_a_search_over_built_models_does(judge: Judge) -> None:
    chooser = Chooser(judge, [0.3, 0.1, 0.2, 0.4])
    singles = [cost([layer]) for layer in range(LAYERS)]
    assert chooser.singles == pytest.approx(singles, abs=1e-5)
    assert chooser.spent == 1 + (3 + 2 + 1 + 0) / LAYERS
    assert chooser.one_shot(2).layers == least(singles, 2)
    assert chooser.one_shot(2).predicted == pytest.approx(sum(sorted(singles)[:2]), abs=1e-5)
    block = min(([start, start + 1] for start in range(LAYERS - 1)), key=cost)
    assert (chooser.block(2).layers, chooser.block(2).predicted) == (block, pytest.approx(cost(block), abs=1e-5))
    (first,) = least(singles, 1)
    greedy = min((sorted(pair) for pair in combinations(range(LAYERS), 2) if first in pair), key=cost)
    assert chooser.extend(chooser.one_shot(1)).layers == greedy
    assert chooser.lowest_rank(2).layers == [1, 2]
    assert chooser.highest_rank(2).layers == [0, 3]
    assert (chooser.last(1).layers, chooser.last_but_one(2).layers) == ([3], [1, 2])
