"""Results of an unfinished run, on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from orchestrator.interventions.partial import Partial

VALUES = np.array([[1.5, np.nan], [1e-300, -2.0]])


def test_results_are_read_back_bit_for_bit(tmp_path: Path) -> None:
    path = tmp_path / "out.json.partial"
    kept = Partial(path).of({"a": 1})
    kept[3,] = VALUES
    kept[0,] = VALUES[:1]
    again = Partial(path).of({"a": 1})
    assert sorted(again) == [(0,), (3,)]
    assert np.array_equal(again[3,], VALUES, equal_nan=True)


def test_a_line_that_was_cut_short_is_left_out_and_written_again(tmp_path: Path) -> None:
    path = tmp_path / "out.json.partial"
    kept = Partial(path).of({})
    kept[0,] = VALUES
    kept[1,] = VALUES
    whole = path.read_bytes()
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        again = Partial(path).of({})
        assert set(again) <= {(0,)}
        again[1,] = VALUES
        assert (1,) in Partial(path).of({})


def test_a_corrupt_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "out.json.partial"
    kept = Partial(path).of({})
    kept[0,] = VALUES
    kept[1,] = VALUES
    first, second, _ = path.read_text().split("\n")
    path.write_text("\n".join([first[:-3] + "?", second, ""]))
    assert set(Partial(path).of({})) == {(1,)}
    assert set(Partial(path).of({})) == {(1,)}


def test_results_of_another_run_are_not_taken_and_not_lost(tmp_path: Path) -> None:
    path = tmp_path / "out.json.partial"
    Partial(path).of({"text": "a"})[0, None] = VALUES
    other = Partial(path)
    results = other.of({"text": "b"})
    assert not results
    results[0, None] = 2 * VALUES
    assert other.finish()
    assert set(Partial(path).of({"text": "a"})) == {(0, None)}
    assert not Partial(path).of({"text": "b"})
    last = Partial(path)
    assert last.of({"text": "a"})
    assert not last.finish()
    assert not path.exists()


def test_two_runs_that_write_one_file_do_not_take_each_others_results(tmp_path: Path) -> None:
    path = tmp_path / "out.json.partial"
    one = Partial(path).of({"documents": 4})
    other = Partial(path).of({"documents": 2})
    one[0,] = VALUES
    other[1,] = 2 * VALUES
    one[2,] = 3 * VALUES
    assert set(Partial(path).of({"documents": 2})) == {(1,)}


def test_two_runs_of_the_same_share_what_they_have_done(tmp_path: Path) -> None:
    path = tmp_path / "out.json.partial"
    one, other = (Partial(path).of({"documents": 4}) for _ in range(2))
    one[0,] = VALUES
    other[1,] = VALUES
    assert set(Partial(path).of({"documents": 4})) == {(0,), (1,)}
