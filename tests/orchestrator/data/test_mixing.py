"""The n-th row is a pure function, exact and in the proportions asked for."""

from __future__ import annotations

import random
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.common.errors import UserError
from orchestrator.data.mixing import LONGEST_EPOCH, Mixture, apportion

ROWS = {"code": 300, "facts": 41, "math": 7}
WEIGHTS = {"code": 1.0, "facts": 0.5, "math": 2.5}


@given(
    total=st.integers(0, 10_000),
    weights=st.lists(st.floats(1e-3, 1e3, allow_nan=False), min_size=1, max_size=6),
)
def test_apportion_is_largest_remainder(total: int, weights: list[float]) -> None:
    counts = apportion(total, weights)
    whole = sum(Fraction(w) for w in weights)
    quotas = [total * Fraction(w) / whole for w in weights]
    assert sum(counts) == total
    raised = [c - q.__floor__() for c, q in zip(counts, quotas, strict=True)]
    slack = Fraction(1, 10**6)  # the quotas are floats in the code
    assert all(-slack <= c - q + 1 and c - q <= 1 + slack for c, q in zip(counts, quotas, strict=True))
    remainders = [q - q.__floor__() for q in quotas]
    up = [r for r, more in zip(remainders, raised, strict=True) if more > 0]
    down = [r for r, more in zip(remainders, raised, strict=True) if more == 0]
    if up and down and min(raised) >= 0:
        assert min(up) >= max(down) - slack


def test_huge_weights_do_not_overflow() -> None:
    assert apportion(10, [1e308, 1e308, 1e308]) == [4, 3, 3]


def test_every_epoch_holds_its_counts_exactly() -> None:
    mixture = Mixture(ROWS, WEIGHTS)
    assert mixture.size == 3 * sum(ROWS.values())  # the first multiple of all rows from 1024
    expected = {"code": 261, "facts": 131, "math": 652}  # 1044 × (1/4, 1/8, 5/8) = 261, 130.5, 652.5
    for epoch in (0, 1, 5):
        seen = Counter(name for name, _ in mixture.row_ids(3, epoch * mixture.size, mixture.size))
        assert seen == expected


def test_every_row_is_seen_once_before_any_is_seen_twice() -> None:
    ids = Mixture(ROWS, WEIGHTS).row_ids(0, 0, 4000)
    for name, size in ROWS.items():
        rows = [row for domain, row in ids if domain == name]
        passes = [rows[i : i + size] for i in range(0, len(rows) - size + 1, size)]
        assert len(passes) >= 2
        assert all(sorted(p) == list(range(size)) for p in passes)
        assert passes[0] != passes[1]


def test_rows_do_not_depend_on_what_was_asked_before() -> None:
    spans = [(start, 8) for start in range(0, 5000, 8)]
    expected = {span: Mixture(ROWS, WEIGHTS).row_ids(1, *span) for span in spans[::60]}
    used = Mixture(ROWS, WEIGHTS)
    random.Random(0).shuffle(spans)
    shuffled = {}
    for span in spans:
        used.row_ids(2, *span)  # another seed in between
        shuffled[span] = used.row_ids(1, *span)
    assert all(shuffled[span] == ids for span, ids in expected.items())
    assert [i for span in sorted(spans) for i in shuffled[span]] == used.row_ids(1, 0, 5000)


def test_seeds_differ_and_the_order_of_domains_does_not_matter() -> None:
    turned = Mixture(dict(reversed(ROWS.items())), WEIGHTS)
    assert turned.row_ids(0, 0, 500) == Mixture(ROWS, WEIGHTS).row_ids(0, 0, 500)
    assert turned.row_ids(0, 0, 500) != turned.row_ids(1, 0, 500)


def test_proportions_hold_within_an_epoch() -> None:
    """A tenth of an epoch is a sample without replacement: within 5 sigma of the weights."""
    seen = Counter(name for name, _ in Mixture({"a": 50_000, "b": 50_000}, {"a": 3, "b": 1}).row_ids(0, 0, 10_000))
    assert abs(seen["a"] - 7500) < 5 * (10_000 * 0.75 * 0.25) ** 0.5


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(1, 50), seed=st.integers(-(2**40), 2**40), start=st.integers(0, 10**9))
def test_one_domain_is_its_own_permutations(rows: int, seed: int, start: int) -> None:
    first = start // rows * rows
    ids = Mixture({"only": rows}, {"only": 1.0}).row_ids(seed, first, rows)
    assert sorted(row for _, row in ids) == list(range(rows))


def test_a_long_epoch_is_capped() -> None:
    mixture = Mixture({"a": 3 * LONGEST_EPOCH, "b": 10}, {"a": 1.0, "b": 1.0})
    assert mixture.size == LONGEST_EPOCH
    assert mixture.counts == [LONGEST_EPOCH // 2, LONGEST_EPOCH // 2]


def test_a_weight_below_one_row_is_refused() -> None:
    with pytest.raises(UserError, match=r"data\.domains\.tiny\.weight=1e-09"):
        Mixture({"big": 100, "tiny": 100}, {"big": 1.0, "tiny": 1e-9})
