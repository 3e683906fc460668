"""Damage per document, against losses of one document at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from orchestrator.interventions.calibration import Calibration, calibrate
from orchestrator.interventions.damage import Damage, Results, Trial, measure
from orchestrator.interventions.documents import Document, batches
from orchestrator.interventions.edits import EDITS
from orchestrator.interventions.passes import Pass
from orchestrator.interventions.subject import Subject
from tests.orchestrator.interventions.models import LAYERS, rebuilt, subject_of

LENGTHS = (5, 11, 2, 8, 8, 3)
DOCUMENTS = [
    Document("text", tuple(np.random.default_rng(place).integers(0, 41, length).tolist()))
    for place, length in enumerate(LENGTHS)
]
TRIALS = [Trial("delete", 1), Trial("repeat", 2)]
ORDERS = ([0, 2, 3], [0, 1, 2, 2, 3])
NONE = Calibration([], [], [], [], [{}] * LAYERS)


def damage_of(family: str, at_once: int, done: Results | None = None) -> tuple[Damage, list[int]]:
    advanced: list[int] = []
    found = measure(
        subject_of(family), batches(DOCUMENTS, at_once), EDITS, TRIALS, NONE,
        {} if done is None else done, advanced.append,
    )  # fmt: skip
    return found, advanced


@pytest.mark.parametrize("at_once", [1, 16, 1000])
@pytest.mark.parametrize("family", ["ours, sandwich", "llama", "gemma2"])
def test_sums_are_those_of_each_document_alone(family: str, at_once: int) -> None:
    found, _ = damage_of(family, at_once)
    whole, changed = subject_of(family), [rebuilt(family, order) for order in ORDERS]
    for place, document in enumerate(DOCUMENTS):
        row = torch.tensor([document.tokens])
        mask = torch.ones_like(row, dtype=torch.bool)
        with torch.no_grad():
            before = whole.run(row, mask)[0, :-1]
            last = _last_stream(whole, row)
            intact = F.cross_entropy(before, row[0, 1:], reduction="sum").item()
            assert found.tokens[place] == len(document.tokens) - 1
            assert found.intact[place] == pytest.approx(intact, abs=1e-5)
            for trial, subject in enumerate(changed):
                after = subject.run(row, mask)[0, :-1]
                rise = F.cross_entropy(after, row[0, 1:], reduction="sum").item() - intact
                each = [F.cross_entropy(of, row[0, 1:], reduction="none") for of in (before, after)]
                rises = each[1] - each[0]
                assert found.effects["absolute"][trial, place] == pytest.approx(rises.abs().sum().item(), abs=1e-5)
                assert found.effects["squared"][trial, place] == pytest.approx((rises**2).sum().item(), abs=1e-5)
                ratios = _last_stream(subject, row).norm(dim=1) / last.norm(dim=1)
                assert found.effects["lengthening"][trial, place] == pytest.approx(ratios[:-1].sum().item(), abs=1e-5)
                divergence = F.kl_div(after.log_softmax(-1), before.softmax(-1), reduction="sum").item()
                assert found.effects["rise"][trial, place] == pytest.approx(rise, abs=1e-5)
                assert found.effects["divergence"][trial, place] == pytest.approx(divergence, abs=1e-5)


def _last_stream(subject: Subject, row: torch.Tensor) -> torch.Tensor:
    """The stream after the last layer [T, D], by a hook of the test's own."""
    seen: list[torch.Tensor] = []
    hook = subject.layers[-1].register_forward_hook(lambda _, __, output: seen.append(output[0]))
    subject.run(row, torch.ones_like(row, dtype=torch.bool))
    hook.remove()
    return seen[0]


def test_an_encoder_is_judged_by_its_embedding() -> None:
    found, _ = damage_of("bert", 20)
    whole, cut = subject_of("bert"), rebuilt("bert", ORDERS[0])
    for place, document in enumerate(DOCUMENTS):
        row = torch.tensor([document.tokens])
        mask = torch.ones_like(row, dtype=torch.bool)
        with torch.no_grad():
            embeddings = [subject.run(row, mask)[0].mean(0) for subject in (whole, cut)]
        distance = 1 - torch.dot(*embeddings) / (embeddings[0].norm() * embeddings[1].norm())
        assert found.effects["rise"][0, place] == pytest.approx(distance.item(), abs=1e-6)
    assert (found.tokens == 1).all()
    assert (found.intact == 0).all()
    assert np.isnan(found.effects["divergence"]).all()


def test_trials_that_are_done_are_not_computed_again() -> None:
    whole, advanced = damage_of("llama", 16)
    groups = batches(DOCUMENTS, 16)
    assert sum(advanced) == len(groups) * len(TRIALS)
    assert set(advanced) == {1}
    kept: Results = {}
    damage_of("llama", 16, kept)
    assert len(kept) == len(groups) * (1 + len(TRIALS))
    marked = {place: values + 1 for place, values in kept.items() if place != (1, 0)}
    again, advanced = damage_of("llama", 16, marked)
    assert sum(advanced) == len(groups) * len(TRIALS)
    assert advanced.count(1) == 2  # one that was done beside it, and the trial itself
    of_second = np.isin(np.arange(len(DOCUMENTS)), groups[1].documents)
    marks = np.where(of_second, [[0], [1]], 1)  # [trials, documents]
    assert np.array_equal(again.effects["rise"], whole.effects["rise"] + marks)


@pytest.mark.parametrize("at_once", [1, 9, 16, 100])
def test_batches_hold_every_document_once_and_whole(at_once: int) -> None:
    places: list[int] = []
    for group in batches(DOCUMENTS, at_once):
        assert group.tokens.numel() <= max(at_once, group.tokens.shape[1])
        for row, mask, place in zip(group.tokens, group.mask, group.documents, strict=True):
            assert tuple(row[mask].tolist()) == DOCUMENTS[place].tokens
            assert bool(mask[: len(DOCUMENTS[place].tokens)].all())
            places.append(place)
    assert sorted(places) == list(range(len(DOCUMENTS)))


def test_calibration_weighs_positions_alike_and_padding_not() -> None:
    subject = subject_of("ours, pre")
    facts = calibrate([Pass(subject, of.tokens, of.mask) for of in batches(DOCUMENTS, 16)], [{}] * LAYERS)
    each: list[list[tuple[torch.Tensor, torch.Tensor]]] = [[] for _ in range(LAYERS)]
    for document in DOCUMENTS:
        row = torch.tensor([document.tokens])
        one = Pass(subject, row, torch.ones_like(row, dtype=torch.bool))
        for layer, (before, after) in enumerate(one.streams()):
            each[layer] += zip(before, after, strict=True)
    for layer, pairs in enumerate(each):
        width = subject.width(layer)
        mean = torch.stack([y - x for x, y in pairs]).mean(0)
        torch.testing.assert_close(facts.writes[layer].double(), mean, rtol=1e-6, atol=1e-6)
        expected = {
            "growth": [y[:width].norm() / x[:width].norm() for x, y in pairs],
            "relative_write": [(y - x).norm() / x.norm() for x, y in pairs],
            "block_influence": [1 - x @ y / x.norm() / y.norm() for x, y in pairs],
        }
        for name, values in expected.items():
            assert getattr(facts, name)[layer] == pytest.approx(torch.stack(values).mean().item())
