"""Intervals of means over documents."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from orchestrator.interventions.intervals import mean_and_interval

TOKENS = np.random.default_rng(3).integers(20, 200, 40)


def test_the_mean_is_over_tokens_not_over_documents() -> None:
    (mean, low, high), *_ = mean_and_interval(np.array([[1.0, 30.0]]), np.array([10, 90]))
    assert mean == pytest.approx(0.31)
    assert low <= mean <= high


def test_the_interval_has_the_width_of_the_ratio_estimators_standard_error() -> None:
    """Its linearised standard error (Cochran 1977, §2.11) times 1.96, for rises that are nearly normal."""
    rises = TOKENS * (0.2 + 0.05 * np.random.default_rng(4).standard_normal((5, 40)))
    for row, (mean, low, high) in zip(rises, mean_and_interval(rises, TOKENS), strict=True):
        residuals = row - mean * TOKENS
        error = np.sqrt((residuals**2).sum() / (len(TOKENS) - 1) / len(TOKENS)) / TOKENS.mean()
        assert (high - low) / 2 == pytest.approx(scipy.stats.norm.ppf(0.975) * error, rel=0.25)
        assert low < mean < high


@pytest.mark.parametrize("count", [5, 8, 16])
def test_few_documents_are_covered_as_often_as_the_interval_says(count: int) -> None:
    """Within three standard errors of 95 %: of 400 normal samples, each with 500 documents of one length."""
    samples = 0.3 + np.random.default_rng(4).standard_normal((400, count))
    found = mean_and_interval(samples, np.ones(count))
    covered = ((found[:, 1] <= 0.3) & (found[:, 2] >= 0.3)).mean()
    assert 0.91 < covered <= 1


def test_one_document_has_no_interval() -> None:
    found = mean_and_interval(np.array([[3.0], [0.0]]), np.array([6]))
    assert found[:, 0].tolist() == [0.5, 0.0]
    assert np.isnan(found[:, 1:]).all()


def test_documents_that_all_agree_have_an_interval_without_width() -> None:
    assert mean_and_interval(np.stack([TOKENS * 0.0, TOKENS * 2.0]), TOKENS).tolist() == [[0, 0, 0], [2, 2, 2]]


def test_rows_do_not_depend_on_their_company() -> None:
    rises = TOKENS * np.random.default_rng(4).standard_normal((3, 40))
    assert np.allclose(mean_and_interval(rises, TOKENS)[1], mean_and_interval(rises[1:2], TOKENS)[0])
