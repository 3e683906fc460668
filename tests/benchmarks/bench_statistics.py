"""Error rates of the comparison's statistics where the truth is known, by simulation: `make bench`.

tests/orchestrator/analysis/test_calibration.py asserts the same rates on fewer draws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import product
from pathlib import Path

import numpy as np

from orchestrator.analysis.cells import CellResult
from orchestrator.analysis.coincidence import coincide
from orchestrator.analysis.conservation import REFERENCES, conserve
from orchestrator.analysis.migration import RoleShift, role_shift
from orchestrator.analysis.pairs import PRIMARY, Pair
from orchestrator.analysis.statistics import (
    MARGIN,
    PairedResult,
    compare_paired,
    interval,
)
from orchestrator.experiments.decision import ALPHA
from orchestrator.forensics.roles.routing import ROLES, STATES
from tests.orchestrator.reading import reading_of

REPEATS = 1000
Law = Callable[[np.random.Generator, int], np.ndarray]  # n differences of mean 0

LAWS: dict[str, Law] = {
    "normal": lambda rng, n: rng.standard_normal(n),
    "uniform": lambda rng, n: rng.uniform(-1.0, 1.0, n),
    "t, 3 df": lambda rng, n: rng.standard_t(3, n),
    "exponential": lambda rng, n: rng.exponential(size=n) - 1.0,
    "lognormal": lambda rng, n: rng.lognormal(size=n) - np.exp(0.5),
}
HOLDS = f"each ≤ {ALPHA} where the law is symmetric"
BASELINE = 3.0  # nats/token
BUDGETS, CHANCE = (60.0, 120.0), 10.0  # saturated positions of a whole stack
WITHIN = ("conserved", "nothing moved")
SECONDARY = [(metric, domain) for metric in ("validation", "best") for domain in ("mean", "code", "facts", "math")]


def share(events: Iterable[bool]) -> float:
    """The share of `events` that are true."""
    return float(np.mean(list(events)))


def missed(law: Law, n: int, level: float, repeats: int) -> tuple[float, float]:
    """Shares of intervals wholly above and wholly below the true mean; each should be (1 − level)/2."""
    rng = np.random.default_rng(n)
    ends = np.array([(i.low, i.high) for i in (interval(law(rng, n), level) for _ in range(repeats))], dtype=float)
    return share(ends[:, 0] > 0.0), share(ends[:, 1] < 0.0)


def paired(differences: np.ndarray) -> list[PairedResult]:
    """The product's results for differences [metrics, n]: the primary outcomes first, then secondary ones."""
    a = np.full(differences.shape[1], BASELINE)
    keys = [*PRIMARY, *SECONDARY][: len(differences)]
    samples = {k: (list(a), list(a + d)) for k, d in zip(keys, differences, strict=True)}
    return compare_paired({"b": samples}, PRIMARY, MARGIN, {})


def called(law: Law, n: int, repeats: int) -> float:
    """Share of experiments with one outcome and no difference that are called better or worse."""
    rng = np.random.default_rng(n)
    return share(paired(law(rng, n)[None])[0].verdict in ("better", "worse") for _ in range(repeats))


def family(n: int, correlation: float, repeats: int) -> tuple[float, float]:
    """Shares of experiments without any difference in which some primary, some secondary outcome is called.

    The outcomes are two and eight, normal and equally correlated. Under nine pairs none of eight can pass Holm alone.
    """
    rng = np.random.default_rng(n)
    first, others = [], []
    for _ in range(repeats):
        own, common = rng.standard_normal((len(PRIMARY) + len(SECONDARY), n)), rng.standard_normal(n)
        results = paired(np.sqrt(1.0 - correlation) * own + np.sqrt(correlation) * common)
        hit = [r.verdict in ("better", "worse") for r in results]
        first.append(any(hit[: len(PRIMARY)]))
        others.append(any(hit[len(PRIMARY) :]))
    return share(first), share(others)


def equivalent(law: Law, n: int, spread: float, repeats: int) -> float:
    """Share called equivalent where the difference is exactly the margin; `spread` scales the law, in margins."""
    rng, margin = np.random.default_rng(n), MARGIN * BASELINE
    found = (paired(margin * (1.0 + spread * law(rng, n)[None]))[0] for _ in range(repeats))
    return share(r.verdict == "equivalent" for r in found)


def budget_verdict(budgets: np.ndarray) -> str:
    """The conservation of pairs with these budgets, [n, 2], where chance gives CHANCE positions."""
    chance = {f"{REFERENCES[0]}_expected": CHANCE}
    cells = [[_cell({REFERENCES[0]: count} | chance, "hub") for count in pair] for pair in budgets.tolist()]
    return conserve("b", [Pair(a, b, ()) for a, b in cells], REFERENCES[0]).verdict


def conserved(law: Law, n: int, ratio: float, spread: float, repeats: int, *verdicts: str) -> float:
    """Share given one of `verdicts` where the true ratio of what exceeds chance is `ratio`, its log spread by the law.

    Budgets are counts, as in the experiments that are here: Poisson, of a mean that each seed has from BUDGETS.
    """
    rng = np.random.default_rng(n)
    found = []
    for _ in range(repeats):
        mean = rng.uniform(*BUDGETS, n)  # [n], of the baseline
        excess = (mean - CHANCE) * ratio * np.exp(spread * law(rng, n))
        means = np.stack([mean, CHANCE + excess], axis=1)  # [n, 2]
        found.append(budget_verdict(rng.poisson(means).astype(float)))
    return share(one in verdicts for one in found)


def shifted(n: int, layers: int, repeats: int) -> tuple[float, float]:
    """Shares of experiments in which roles are said to differ, overall and of some layer; the arms are alike.

    Every layer has its own, uneven chances of the five states; seeds are independent.
    """
    rng = np.random.default_rng(n)
    found = []
    for _ in range(repeats):
        chances = rng.dirichlet(np.full(len(STATES), 0.7), layers)  # [layers, 5]
        roles = [[rng.choice(STATES, p=p) for p in chances] for _ in range(2 * n)]
        cells = [_cell({}, *held) for held in roles]
        shift = role_shift("b", [Pair(a, b, ()) for a, b in zip(cells[:n], cells[n:], strict=True)])
        found += [shift] if shift else []
    return share(s.p is not None and s.p <= ALPHA for s in found), share(map(_some_layer, found))


def _some_layer(shift: RoleShift) -> bool:
    return any(layer.p is not None and layer.p <= ALPHA for layer in shift.layers)


def _cell(measures: dict[str, float], *roles: str) -> CellResult:
    return CellResult(
        "b",
        0,
        Path(),
        [],
        {0: reading_of([role if role in ROLES else "damper/hub" for role in roles], [measures] * len(roles))},
        None,
    )


def met(intervals: int, cells: int, repeats: int, *, linked: float = 0.0, **options: float) -> float:
    """Share of experiments in which drops and transitions are said to coincide, of all with as many cells.

    Both are denser early. They are independent but for `linked`, the mean number of layers that a drop takes along.
    """
    rng = np.random.default_rng(intervals + cells)
    found = (coincide("b", [run(rng, intervals, linked, **options) for _ in range(cells)], ["d"])[0]
             for _ in range(repeats))  # fmt: skip
    return share(any_change.p is not None and any_change.p <= ALPHA for any_change in found)


def run(
    rng: np.random.Generator,
    intervals: int,
    linked: float,
    *,
    noise: float = 0.02,
    settling: float = 0.0,
    drops: float = 0.06,
    early: float = 0.0,
) -> CellResult:
    """A cell of 11 layers, evaluated four times between readings.

    `noise` (nats) is 1 + `settling` times as large at first; an interval has a drop of 0.15 nats with chance `drops`,
    1 + `early` times as often at first.
    """
    k, t = np.arange(intervals), np.arange(4 * intervals + 1) / 4.0  # intervals
    loss = 2.0 + 3.0 * (1.0 + t / 3.0) ** -0.6
    loss += noise * (1.0 + settling * np.exp(-6.0 * t / intervals)) * rng.standard_normal(t.size)
    moved = rng.binomial(11, 0.04 + 0.45 * np.exp(-8.0 * k / intervals))
    for at in np.flatnonzero(rng.random(intervals) < drops * (1.0 + early * np.exp(-8.0 * k / intervals))):
        loss -= 0.15 * np.clip(t - at, 0.0, 1.0)
        moved[at] = min(11, moved[at] + rng.poisson(linked))
    states = np.vstack([np.zeros(11, int), np.cumsum(np.arange(11) < moved[:, None], axis=0) % 2])  # [readings, 11]
    readings = {4 * i: reading_of([STATES[s] for s in row]) for i, row in enumerate(states)}
    metrics = [{"step": step, "heldout": {"d": float(value)}} for step, value in enumerate(loss)]
    return CellResult("b", 0, Path(), metrics, readings, None)


def print_coverage() -> None:
    print("Share of intervals of the mean that hold it (further side's misses), nominal 90 % and 95 %")
    print(f"  {'n':>3}" + "".join(f"{name:>30}" for name in LAWS))
    for n in (2, 3, 5, 6, 8, 12, 20):
        line = f"  {n:3d}"
        for law in LAWS.values():
            for level in (0.90, 0.95):
                above, below = missed(law, n, level, 2 * REPEATS)
                line += f"   {1.0 - above - below:5.3f} ({max(above, below):.3f})"
        print(line)


def print_verdicts() -> None:
    print(f"\nCalled better or worse without a difference, equivalent with one of the margin ({HOLDS})")
    for n, (name, law) in product((6, 12), LAWS.items()):
        edge = max(equivalent(law, n, spread, REPEATS) for spread in (0.6, 1.0))
        print(f"  n = {n:2d}  {name:<12} called {called(law, n, REPEATS):.3f}  equivalent {edge:.3f}")
    print("\nSome outcome called without any difference: of two primary ones in sequence, of eight under Holm")
    for n, correlation in product((10, 12), (0.0, 0.5, 0.9)):
        first, others = family(n, correlation, REPEATS)
        print(f"  n = {n:2d}  correlation {correlation:.1f}  primary {first:.3f}  secondary {others:.3f}")


def print_budgets() -> None:
    print(f"\nConserved at a ratio of exactly 0.80 or 1.25, not conserved at 1 ({HOLDS})")
    for n, (name, law) in product((2, 6, 12), LAWS.items()):
        edges = [max(conserved(law, n, r, s, REPEATS, *WITHIN) for s in (0.05, 0.1)) for r in (0.80, 1.25)]
        moved = conserved(law, n, 1.0, 0.3, REPEATS, "not conserved")
        print(f"  n = {n:2d}  {name:<12} conserved {edges[0]:.3f}, {edges[1]:.3f}  not conserved {moved:.3f}")


def print_roles() -> None:
    print(f"\nRoles said to differ between arms that are alike (each ≤ {ALPHA})")
    for n, layers in product((6, 10), (1, 11, 24)):
        overall, some = shifted(n, layers, REPEATS // 2)
        print(f"  n = {n:2d}  {layers:2d} layers  overall {overall:.3f}  some layer {some:.3f}")


SERIES: dict[str, dict[str, float]] = {
    "trend alone": {"drops": 0.0},
    "trend, little noise": {"drops": 0.0, "noise": 0.003},
    "noise settles": {"drops": 0.0, "settling": 4.0},
    "drops anywhere": {},
    "drops denser early": {"early": 9.0},
    "the same, little noise": {"early": 9.0, "noise": 0.005},
    "4 layers at a drop": {"linked": 4.0, "noise": 0.01},
    "the same, early": {"linked": 4.0, "noise": 0.01, "early": 9.0},
}


def print_coincidence() -> None:
    sizes = ((20, 1), (20, 4), (50, 4), (100, 1), (100, 8))
    print(f"\nDrops and transitions said to coincide (independent: each ≤ {ALPHA}; then power), intervals × cells")
    print(" " * 24 + "".join(f"{f'{k} × {c}':>9}" for k, c in sizes))
    for name, options in SERIES.items():
        print(f"  {name:<22}" + "".join(f"{met(k, c, REPEATS // 2, **options):9.3f}" for k, c in sizes))


def main() -> None:
    """Print the tables."""
    print_coverage()
    print_verdicts()
    print_budgets()
    print_roles()
    print_coincidence()


if __name__ == "__main__":
    main()
