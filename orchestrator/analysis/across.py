"""Many experiments side by side: one row per experiment and arm, and nothing else of them kept in memory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path

import pandas as pd
import scipy

from orchestrator.analysis.cells import one_line
from orchestrator.analysis.comparison import Comparison, compute
from orchestrator.analysis.conservation import REFERENCES
from orchestrator.analysis.pairs import PRIMARY
from orchestrator.analysis.statistics import FEWEST_PAIRS
from orchestrator.common.errors import UserError

CALLED = ("better", "worse")


@dataclass(frozen=True)
class Row:
    """One arm beside its experiment's baseline. Null is what cannot be said, `problem` why there is nothing."""

    directory: str
    experiment: str
    question: str
    baseline: str | None
    arm: str | None
    n: int = 0  # seed pairs
    delta: float | None = None  # of the primary outcome, nats/token
    low: float | None = None  # its 95 % interval
    high: float | None = None
    p: float | None = None  # two-sided sign-flip, exact up to 16 pairs
    q: float | None = None  # by Benjamini and Hochberg over all rows whose seeds allow p ≤ 0.05
    verdict: str = "not measured"  # the arm's own, at 5 %
    ratio: float | None = None  # robust budget of the arm over that of the baseline
    ratio_low: float | None = None  # its 90 % interval
    ratio_high: float | None = None
    budget: str = "not measured"  # the verdict of conservation
    centre_shift: float | None = None  # of the robust budget, share of the depth
    centre_low: float | None = None  # its 95 % interval
    centre_high: float | None = None
    centre_p: float | None = None
    expected: int = 0  # lines of `expect`, of all arms of the experiment
    delivered: int = 0
    problem: str | None = None


def survey(directories: Iterable[Path]) -> list[Row]:
    """The rows of every experiment, in the order given; one that cannot be read is a row with its sentence."""
    return _adjusted([row for directory in directories for row in _read(directory)])


def sort_out(paths: Iterable[Path]) -> tuple[list[Path], list[Path]]:
    """Experiments, each once, and what else there is beside them. What does not exist counts as the former."""
    once = {path.resolve(): path for path in reversed(list(paths))}
    first = list(reversed(once.values()))
    beside = [path for path in first if path.exists() and not (path / "experiment.yaml").is_file()]
    return [path for path in first if path not in beside], beside


def frame(rows: list[Row]) -> pd.DataFrame:
    """One column per field of `Row`."""
    return pd.DataFrame([vars(row) for row in rows], columns=[field.name for field in fields(Row)])


def testable(row: Row) -> bool:
    """Whether its seeds are enough to call the arm better or worse, whatever their losses."""
    return row.p is not None and row.n >= FEWEST_PAIRS


def _read(directory: Path) -> list[Row]:
    try:
        return _rows(str(directory), compute(directory))
    except (UserError, OSError) as error:
        problem = str(error)
    except Exception as error:  # a fault in one must not cost the others their rows
        problem = f"{directory} cannot be compared ({type(error).__name__}: {one_line(error)}): compare it alone."
    return [Row(str(directory), directory.name, "", None, None, problem=problem)]


def _rows(directory: str, c: Comparison) -> list[Row]:
    """A row per arm but the baseline; one alone where there is no other arm."""
    arms: list[str | None] = [*c.experiment.arms[1:]]
    found = []
    for arm in arms or [None]:
        row = Row(
            directory, c.experiment.name, c.experiment.question, c.baseline, arm, expected=len(c.expectations),
            delivered=sum(one.verdict == "delivered" for one in c.expectations),
        )  # fmt: skip
        for loss in c.statistics:
            if (loss.arm, (loss.metric, loss.domain)) == (arm, PRIMARY[0]):
                row = replace(
                    row, n=loss.n, delta=loss.delta, low=loss.low, high=loss.high, p=loss.p, verdict=loss.verdict
                )
        for spent in c.conservation:
            if (spent.arm, spent.reference) == (arm, REFERENCES[0]):
                row = replace(
                    row, ratio=spent.ratio, ratio_low=spent.low, ratio_high=spent.high, budget=spent.verdict,
                    centre_shift=spent.centre_shift, centre_low=spent.centre_low, centre_high=spent.centre_high,
                    centre_p=spent.centre_p,
                )  # fmt: skip
        found.append(row)
    return found


def _adjusted(rows: list[Row]) -> list[Row]:
    """With q: of all arms called at q ≤ 0.05, at most 5 % are expected to be false (Benjamini & Hochberg 1995).

    That is proven of independent tests, and of one-sided ones that are positively dependent. The tests here are
    two-sided, and arms that share a baseline depend on each other: it holds approximately. Rows whose seeds cannot
    reach p ≤ 0.05 take no part: they could not have been called.
    """
    taking = [i for i, row in enumerate(rows) if testable(row)]
    q = scipy.stats.false_discovery_control([rows[i].p for i in taking], method="bh") if taking else []
    adjusted = dict(zip(taking, map(float, q), strict=True))
    return [replace(row, q=adjusted.get(i)) for i, row in enumerate(rows)]
