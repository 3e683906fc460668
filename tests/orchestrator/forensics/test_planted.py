"""Structures planted in one layer of an untrained model are found there and nowhere else (SCIENCE §3)."""

from __future__ import annotations

from collections import Counter
from itertools import product

import pytest
import torch

from orchestrator.forensics.analyzer import analyze
from orchestrator.forensics.roles.routing import ROLES
from tests.orchestrator.forensics.plantings import PLANTINGS, planted
from tests.orchestrator.forensics.untrained import model, spec

SEEDS = 8  # for every strength others
STRONGEST = 3.0
NEVER = 0.02  # of the layers in which nothing was planted


@pytest.mark.statistical
@pytest.mark.parametrize("name", PLANTINGS)
def test_what_is_planted_is_found(name: str) -> None:
    """Strengths between are those of `tests/studies/null`."""
    planting, missed, others, rows = PLANTINGS[name], 0, [], []
    for number, (profile, strength) in enumerate(product(("uniform", "ramp"), (planting.found_from, STRONGEST))):
        called, by_paper, evidence = [], [], Counter[str]()
        for seed in range(number * SEEDS, (number + 1) * SEEDS):
            decoder, at = planted(planting.recipe, strength, seed, profile)
            layers = analyze(decoder, resamples=2).layers
            called.append(layers[at].role == planting.role)
            by_paper.append(layers[at].role_paper == planting.role)
            evidence.update(layers[at].evidence)
            others += [layer.role in ROLES for layer in layers if layer.layer != at]
        missed += called.count(False)
        why = ", ".join(f"{feature} {count}/{SEEDS}" for feature, count in evidence.most_common()) or "nothing"
        shares = f"recall {sum(called) / SEEDS:.2f} (paper {sum(by_paper) / SEEDS:.2f})"
        rows.append(f"{profile:7} {name:11} {strength:4} {shares} by {why}")
    elsewhere = sum(others) / len(others)
    table = "\n".join([*rows, f"{name:11} other layers given a role: {elsewhere:.4f} of {len(others)}"])
    print(f"\n{table}")
    assert not missed, table
    assert elsewhere <= NEVER, table


@pytest.mark.parametrize("name", PLANTINGS)
def test_strength_1_is_nothing(name: str) -> None:
    """So the roles of an untrained model are those that a planting must not have."""
    decoder, _ = planted(PLANTINGS[name].recipe, 1.0, seed=0)
    for changed, own in zip(decoder.parameters(), model(spec(), 0).parameters(), strict=True):
        torch.testing.assert_close(changed, own, rtol=1e-4, atol=1e-6)
