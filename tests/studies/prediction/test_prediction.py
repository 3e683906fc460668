"""The study's correlations and its fit, on numbers whose answer is known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from tests.studies.prediction import between
from tests.studies.prediction.between import apart, mantel
from tests.studies.prediction.correlation import of_group, over_layers, spearman
from tests.studies.prediction.fit import Votes, fit, votes


def test_rho_is_scipys() -> None:
    draw = np.random.default_rng(7)
    x, y = draw.normal(size=(2, 30))
    y[3] = y[4]  # a tie
    assert spearman(x, y) == pytest.approx(scipy.stats.spearmanr(x, y).statistic)
    x[5] = np.nan
    known = np.isfinite(x)
    assert spearman(x, y) == pytest.approx(scipy.stats.spearmanr(x[known], y[known]).statistic)


def test_the_partial_rho_is_the_formula_of_three() -> None:
    """Kendall & Stuart: (ρ_xy − ρ_xd ρ_yd) / √((1 − ρ_xd²)(1 − ρ_yd²))."""
    draw = np.random.default_rng(7)
    x, y, d = draw.normal(size=(3, 40))
    y += d
    xy, xd, yd = (scipy.stats.spearmanr(a, b).statistic for a, b in ((x, y), (x, d), (y, d)))
    expected = (xy - xd * yd) / np.sqrt((1 - xd**2) * (1 - yd**2))
    assert spearman(x, y, [d]) == pytest.approx(expected)


def test_what_is_undefined() -> None:
    draw = np.random.default_rng(7)
    x = np.arange(8.0)
    assert np.isnan(spearman(np.ones(8), x))
    assert spearman(x, draw.normal(size=8), [x]) == 0  # nothing but depth
    assert np.isnan(spearman(x[:3], x[:3]))


def test_votes_are_the_same_for_any_monotone_measure() -> None:
    draw = np.random.default_rng(7)
    x = draw.normal(size=20)
    assert np.allclose(votes(x), votes(np.exp(3 * x)))
    assert np.allclose(votes(x), -votes(-x))
    assert votes(np.array([1.0, np.nan, 3.0]))[1] == 0


def models(groups: int = 3, runs: int = 3, layers: int = 14) -> pd.DataFrame:
    """The outcome is the sum of `cause` and `other`'s negative, on a scale of each model's own."""
    draw = np.random.default_rng(7)
    rows = []
    for group in range(groups):
        for run in range(runs):
            cause, other, noise = draw.normal(size=(3, layers))
            scale = np.exp(draw.normal())
            for layer in range(layers):
                rows.append(
                    {"group": f"g{group}", "run": f"g{group}-{run}", "seed": run, "depth": layer / (layers - 1)}
                    | {"cause": scale * cause[layer], "other": np.exp(other[layer]), "noise": noise[layer]}
                    | {"damage": np.exp(cause[layer] - other[layer])}
                )
    return pd.DataFrame(rows)


def test_the_fit_finds_what_was_planted_and_nothing_else() -> None:
    layers = models()
    of = Votes(layers, ["noise", "cause", "other"], "damage")
    predictor = fit(of, ["noise", "cause", "other"], ["g0", "g1"])
    assert predictor == {"cause": 1, "other": -1}
    assert of.of_group(predictor, "g2").value > 0.9


def test_a_fit_on_noise_predicts_nothing_elsewhere() -> None:
    draw = np.random.default_rng(8)
    layers = models(groups=12)
    candidates = [f"n{i}" for i in range(20)]
    for name in candidates:
        layers[name] = draw.normal(size=len(layers))
    of = Votes(layers, candidates, "damage")
    held = [of.of_group(fit(of, candidates, [f"g{i}", f"g{i + 1}"]), f"g{i + 2}").value for i in range(10)]
    assert abs(np.mean(held)) < 0.2  # its standard error is 0.05


def test_intervals_are_over_runs_or_over_the_layers_of_the_only_one() -> None:
    layers = models(groups=1, runs=6)
    rho = of_group(layers, "cause", "damage")
    assert rho.low < rho.value < rho.high < 1
    one = layers[layers["run"] == "g0-0"]
    rho = of_group(one, "cause", "damage")
    assert rho.value == pytest.approx(scipy.stats.spearmanr(one["cause"], one["damage"]).statistic)
    assert rho.low < rho.value < rho.high
    assert of_group(one, "cause", "−damage").value == pytest.approx(-rho.value)


def test_mantel_sees_what_goes_together_and_not_what_shares_the_control() -> None:
    draw = np.random.default_rng(7)
    values, loss, noise = draw.normal(size=(3, 12))
    rho, p = mantel(apart(values), apart(values + 0.1 * noise), apart(loss), ["a"] * 12)
    assert rho > 0.8
    assert p < 0.01
    both = [apart(loss + 0.1 * draw.normal(size=12)) for _ in range(2)]
    assert mantel(*both, apart(draw.normal(size=12)), ["a"] * 12)[0] > 0.8
    assert abs(mantel(*both, apart(loss), ["a"] * 12)[0]) < 0.4


def test_mantel_without_a_relation_gives_an_even_p(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(7)
    monkeypatch.setattr(between, "PERMUTATIONS", 199)
    found = [mantel(*(apart(draw.normal(size=8)) for _ in range(3)), [*"aaaabbbb"])[1] for _ in range(60)]
    assert scipy.stats.kstest(found, "uniform").pvalue > 0.001


def test_intervals_over_layers_cover() -> None:
    """About 95 % of 400 samples of 30 layers with ρ = 0.6 (Gaussian r by Pearson's formula)."""
    draw = np.random.default_rng(7)
    rho, n = 0.6, 30
    r = 2 * np.sin(np.pi * rho / 6)
    hit = 0
    for _ in range(400):
        x, y = draw.multivariate_normal([0, 0], [[1, r], [r, 1]], n).T
        low, high = over_layers(spearman(x, y), n, 0)
        hit += low < rho < high
    assert 0.91 < hit / 400 < 0.99


def test_arms_of_one_seed_count_once() -> None:
    layers = models(groups=1, runs=6)
    twice = pd.concat([layers, layers.assign(run=layers["run"] + "'")])
    assert of_group(twice, "cause", "damage").low == pytest.approx(of_group(layers, "cause", "damage").low)
