"""Errors, numbers of pairs and power of `seeds: auto`, by simulation: `make bench`; SCIENCE §8 shows the tables.

tests/orchestrator/analysis/test_calibration.py asserts the same errors on fewer draws.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np

from orchestrator.analysis.sign_flip import Look, is_below
from orchestrator.analysis.statistics import (
    interval,
    verdict,
)
from orchestrator.config.schema import DecideConfig
from orchestrator.experiments.decision import ALPHA

REPEATS = 2000
Law = Callable[[np.random.Generator, int], np.ndarray]  # n differences of mean 0 and standard deviation 1

LAWS: dict[str, Law] = {
    "normal": lambda rng, n: rng.standard_normal(n),
    "t, 3 df": lambda rng, n: rng.standard_t(3, n) / 3**0.5,
    "gamma, skewness 1": lambda rng, n: rng.gamma(4.0, size=n) / 2.0 - 2.0,
    "gamma, skewness −1": lambda rng, n: 2.0 - rng.gamma(4.0, size=n) / 2.0,
    "exponential, skewness 2": lambda rng, n: rng.exponential(size=n) - 1.0,
}


def decide(differences: np.ndarray, margin: float, least: int, step: int = 1) -> tuple[str, int]:
    """The verdict at the look that decides, or at the last one, and its number of pairs: the rule of the product."""
    most = differences.size
    looks: list[Look] = []
    for n in [*range(least, most, step), most]:
        looks.append(Look(n, most))
        x, error = differences[:n], ALPHA / 2.0
        differs = is_below(x, looks, error) or is_below(-x, looks, error)
        equal = is_below(x - margin, looks, error) and is_below(-x - margin, looks, error)
        if differs or equal:
            within = interval(x, 0.95)
            word = verdict(within.low, within.high, margin, *(ALPHA if holds else 1.0 for holds in (differs, equal)))
            if word != "inconclusive":
                return word, n
    return "inconclusive", most


def simulate(
    law: Law,
    mean: float,
    margin: float,
    repeats: int,
    *,
    least: int = DecideConfig.min,
    most: int = DecideConfig.max,
    step: int = 1,
) -> tuple[Counter[str], float]:
    """Verdict → its share, and the mean number of pairs; `mean` and `margin` in standard deviations of a difference."""
    rng = np.random.default_rng(round(1000 * (mean + margin)) + most)
    found = [decide(mean + law(rng, most), margin, least, step) for _ in range(repeats)]
    shares = Counter({word: n / repeats for word, n in Counter(word for word, _ in found).items()})
    return shares, float(np.mean([n for _, n in found]))


def errors(repeats: int) -> None:
    print(f"{'false decisions at looks at 7, 8, … 12 pairs':48} {'better/worse':>12} {'equivalent':>12}")
    for name, law in LAWS.items():
        null = simulate(law, 0.0, 1e-9, repeats)[0]
        at_margin = simulate(law, 1.0, 1.0, repeats)[0]
        print(f"{name:48} {null['better'] + null['worse']:12.3f} {at_margin['equivalent']:12.3f}", flush=True)


def course(repeats: int) -> None:
    print(f"\n{'normal differences, margin 1.5 std: mean':42} better/worse  equivalent  open  mean n")
    for mean in (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0):
        shares, n = simulate(LAWS["normal"], mean, 1.5, repeats)
        row = (shares["better"] + shares["worse"], shares["equivalent"], shares["inconclusive"])
        print(f"{mean:42.1f} {row[0]:12.2f} {row[1]:11.2f} {row[2]:5.2f} {n:7.1f}", flush=True)


if __name__ == "__main__":
    errors(REPEATS)
    course(REPEATS // 4)
