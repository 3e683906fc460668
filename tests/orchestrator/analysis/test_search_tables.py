"""The tables of a search, as a terminal and the report show them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from orchestrator.analysis.sections.search import FEW_KEYS, FEW_ROWS, shared_prefix, trials
from orchestrator.experiments.trials import Trial


@pytest.mark.parametrize(
    ("keys", "shared"),
    [
        (["optim.lr", "optim.beta2"], "optim."),
        (["sidecar.coefficients.decay.q", "sidecar.coefficients.decay.k"], "sidecar.coefficients.decay."),
        (["sidecar.coefficients.decay.q", "sidecar.sigma"], "sidecar."),
        (["optim.lr", "width"], ""),
        (["optim.lr"], ""),
        ([], ""),
    ],
)
def test_the_sections_that_keys_share(keys: list[str], shared: str) -> None:
    assert shared_prefix(keys) == shared


@pytest.mark.parametrize("keys", [2, FEW_KEYS + 1])
def test_a_terminal_has_the_best_rows_and_few_keys_or_the_chosen_ones_in_a_note(keys: int) -> None:
    tried = [
        Trial(f"t{i}", {f"optim.k{k}": str(i) for k in range(keys)}, losses={8: 3.0 - i / 100}, chosen=i == 19)
        for i in range(20)
    ]
    comparison = SimpleNamespace(experiment=SimpleNamespace(trials=tried))
    whole, short = (trials(comparison, whole=one) for one in (True, False))  # type: ignore[arg-type]
    assert [row[0] for row in whole.rows] == [f"t{i}" for i in reversed(range(20))]
    assert whole.columns == ["trial", "after 8", "", *(f"k{k}" for k in range(keys))]
    assert short.rows == [row[: len(short.columns)] for row in whole.rows[:FEW_ROWS]]
    assert short.columns == (whole.columns if keys == 2 else whole.columns[:3])
    assert any("12 more" in note for note in short.notes)
    assert any("k0 19, k1 19" in note for note in short.notes) == (keys > FEW_KEYS)
