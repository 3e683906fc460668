"""Results of an unfinished run, on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from orchestrator.interventions.partial import PartialResults

VALUES = np.array([[1.5, np.nan], [1e-300, -2.0]])


def test_results_are_read_back_bit_for_bit(tmp_path: Path) -> None:
    path = tmp_path / "out.json.partial"
    kept = PartialResults(path, {"a": 1})
    kept[3] = VALUES
    kept[0] = VALUES[:1]
    again = PartialResults(path, {"a": 1})
    assert sorted(again) == [0, 3]
    assert np.array_equal(again[3], VALUES, equal_nan=True)


def test_a_line_that_was_cut_short_is_left_out_and_written_again(tmp_path: Path) -> None:
    path = tmp_path / "out.json.partial"
    kept = PartialResults(path, {})
    kept[0] = VALUES
    kept[1] = VALUES
    whole = path.read_bytes()
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        again = PartialResults(path, {})
        assert set(again) <= {0}
        again[1] = VALUES
        assert 1 in PartialResults(path, {})


def test_a_corrupt_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "out.json.partial"
    kept = PartialResults(path, {})
    kept[0] = VALUES
    kept[1] = VALUES
    first, second, _ = path.read_text().split("\n")
    path.write_text("\n".join([first[:-3] + "?", second, ""]))
    assert set(PartialResults(path, {})) == {1}
    assert set(PartialResults(path, {})) == {1}


def test_results_of_another_run_are_not_taken(tmp_path: Path) -> None:
    path = tmp_path / "out.json.partial"
    PartialResults(path, {"text": "a"})[0] = VALUES
    assert not PartialResults(path, {"text": "b"})
    assert not PartialResults(path, {"text": "a"})  # begun anew


def test_two_runs_that_write_one_file_do_not_take_each_others_results(tmp_path: Path) -> None:
    path = tmp_path / "out.json.partial"
    one = PartialResults(path, {"documents": 4})
    other = PartialResults(path, {"documents": 2})
    one[0] = VALUES
    other[1] = 2 * VALUES
    one[2] = 3 * VALUES
    assert set(PartialResults(path, {"documents": 2})) == {1}


def test_two_runs_of_the_same_share_what_they_have_done(tmp_path: Path) -> None:
    path = tmp_path / "out.json.partial"
    one, other = (PartialResults(path, {"documents": 4}) for _ in range(2))
    one[0] = VALUES
    other[1] = VALUES
    assert set(PartialResults(path, {"documents": 4})) == {0, 1}
