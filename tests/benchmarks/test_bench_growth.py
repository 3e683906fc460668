"""The fits of the benchmark of growth against powers that are known, and the whole of it at sizes without meaning."""

from __future__ import annotations

import pytest

from tests.benchmarks import bench_growth
from tests.benchmarks.bench_growth import fitted, line


@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.7])
def test_a_power_is_found(exponent: float) -> None:
    fit = fitted([1, 2, 5, 30], [3 * x**exponent for x in (1, 2, 5, 30)])
    assert fit.exponent == pytest.approx(exponent)
    assert fit.last == pytest.approx(exponent)
    assert fit.residual == pytest.approx(0, abs=1e-9)


def test_the_residual_is_the_largest_ratio_to_the_fit() -> None:
    assert fitted([1, 10, 100], [1, 4, 1]).residual == pytest.approx(4 ** (2 / 3) - 1)


def test_more_than_on_paper_is_said() -> None:
    assert line("x", [1, 2, 4], [1, 4, 16], 1.0) != line("x", [1, 2, 4], [1, 4, 16], 2.0)


def test_the_whole_benchmark_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(bench_growth, "REPEATS", 1)
    for name, sizes in (("LAYERS", (1, 2)), ("WIDTHS", (32, 48)), ("ROWS", (1, 2)), ("READ_LAYERS", (2, 3))):
        monkeypatch.setattr(bench_growth, name, sizes)
    monkeypatch.setattr(bench_growth, "READ_WIDTHS", (32, 48))
    assert bench_growth.main() == 0
    assert len(capsys.readouterr().out.splitlines()) == 5
