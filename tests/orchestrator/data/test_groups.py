"""Files dealt into groups: nothing lost, no file in two, a long file cut where its stretches meet."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.data.groups import SHARES, Group, deal


def files_of(lengths: list[int]) -> list[list[str]]:
    """Files of so many pieces, of which each names its file and its place: "3:17 ……"."""
    rng = random.Random(0)
    return [[f"{f}:{i} ".ljust(rng.randrange(50, 100), ".") for i in range(n)] for f, n in enumerate(lengths)]


def places(group: Group) -> list[tuple[int, int]]:
    """(file, place in it) of each piece."""
    return [(int(f), int(i)) for f, i in (piece.split(" ")[0].split(":") for piece in group)]


@given(lengths=st.lists(st.integers(0, 12), min_size=1, max_size=60), seed=st.integers(0, 9))
def test_every_piece_is_in_one_group_whatever_the_order_of_the_files(lengths: list[int], seed: int) -> None:
    files = files_of(lengths)
    groups = deal(files, set())
    assert sorted(piece for group in groups for piece in group) == sorted(piece for file in files for piece in file)
    assert all(groups)
    assert len(groups) <= SHARES
    random.Random(seed).shuffle(files)
    assert deal(files, set()) == groups


def test_no_file_is_in_two_groups_and_groups_are_of_equal_length() -> None:
    rng = random.Random(1)
    groups = deal(files_of([rng.randrange(1, 40) for _ in range(500)]), set())
    homes = [{file for file, _ in places(group)} for group in groups]
    assert sum(map(len, homes)) == len(set().union(*homes)) == 500
    sizes = [sum(map(len, group)) for group in groups]
    assert len(groups) == SHARES
    assert max(sizes) < 1.5 * sum(sizes) / SHARES


def test_the_files_of_a_group_take_turns() -> None:
    group = deal(files_of([20] * 500), set())[0]
    homes = [file for file, _ in places(group)]
    count = len(set(homes))
    assert count > 10
    assert all(len(set(homes[i : i + count])) == count for i in range(0, len(homes), count))
    assert [i for file, i in places(group) if file == homes[0]] != list(range(20))  # not only how files begin


@pytest.mark.parametrize("lengths", [[1000], [1000, 3, 2], [400, 600]])
def test_a_long_file_is_cut_into_contiguous_stretches(lengths: list[int]) -> None:
    groups = deal(files_of(lengths), set())
    assert len(groups) >= SHARES - 2
    home = {place: number for number, group in enumerate(groups) for place in places(group)}
    cuts = sum(home[f, i] != home[f, i + 1] for f, n in enumerate(lengths) for i in range(n - 1))
    assert cuts < SHARES + len(lengths)


def test_a_piece_that_several_files_share_is_in_the_first_alone() -> None:
    files = [["licence", f"text {i}", " \n", "licence"] for i in range(40)]
    seen: set[bytes] = set()
    groups = deal(files, seen)
    assert sorted(piece for group in groups for piece in group) == sorted(
        ["licence", *(f"text {i}" for i in range(40))]
    )
    assert deal(files, seen) == []
    assert deal([[], [" "]], set()) == deal([], set()) == []
