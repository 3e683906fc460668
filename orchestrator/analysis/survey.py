"""Summarise many experiments, one line per experiment and arm; only the summaries stay in memory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path

import pandas as pd
import scipy

from orchestrator.analysis.comparison import Comparison, compute
from orchestrator.common.errors import UserError
from orchestrator.common.shapes import one_line
from orchestrator.experiments.decision import FEWEST_PAIRS

CALLED = ("better", "worse")


@dataclass(frozen=True)
class ArmSummary:
    """One arm against its experiment's baseline; null means not known. With a `problem` all else is unknown."""

    directory: str
    experiment: str
    question: str
    baseline: str | None
    arm: str | None
    n: int = 0  # seed pairs
    delta: float | None = None  # of the primary outcome, nats/token
    low: float | None = None  # its 95 % interval
    high: float | None = None
    p: float | None = None  # two-sided sign-flip, over all looks
    q: float | None = None  # by Benjamini and Hochberg over all arms with seeds enough to be called
    verdict: str = "not measured"  # corrected for the arms of its experiment
    ratio: float | None = None  # excess of the arm's robust budget over chance, over that of the baseline
    ratio_low: float | None = None  # its 95 % interval
    ratio_high: float | None = None
    budget: str = "not measured"  # the verdict of conservation
    centre_shift: float | None = None  # of the robust budget, share of the depth
    centre_low: float | None = None  # its 95 % interval
    centre_high: float | None = None
    centre_p: float | None = None
    expected: int = 0  # lines of `expect`, of all arms of the experiment
    delivered: int = 0
    definitions: int | None = None  # version of what the readings' numbers mean
    problem: str | None = None

    @property
    def testable(self) -> bool:
        """True where there are enough seeds to call the arm better or worse."""
        return self.p is not None and self.n >= FEWEST_PAIRS


def survey(directories: Iterable[Path]) -> list[ArmSummary]:
    """Summarise every experiment, in the order given; one that cannot be read has a single summary, its problem."""
    return _adjusted([summary for directory in directories for summary in _read(directory)])


def sort_out(paths: Iterable[Path]) -> tuple[list[Path], list[Path]]:
    """Return the experiments, each once, and the paths that hold none. A missing path counts as an experiment."""
    once = {path.resolve(): path for path in reversed(list(paths))}
    first = list(reversed(once.values()))
    others = [path for path in first if path.exists() and not (path / "experiment.yaml").is_file()]
    return [path for path in first if path not in others], others


def frame(arms: list[ArmSummary]) -> pd.DataFrame:
    """Return a table with a column per field of `ArmSummary`."""
    return pd.DataFrame([vars(arm) for arm in arms], columns=[field.name for field in fields(ArmSummary)])


def _read(directory: Path) -> list[ArmSummary]:
    try:
        return _summaries(str(directory), compute(directory))
    except (UserError, OSError) as error:
        problem = str(error)
    except Exception as error:  # a fault in one experiment must not hide the others
        problem = f"{directory} cannot be compared ({type(error).__name__}: {one_line(error)}): compare it alone."
    return [ArmSummary(str(directory), directory.name, "", None, None, problem=problem)]


def _summaries(directory: str, c: Comparison) -> list[ArmSummary]:
    """Return a summary per arm but the baseline; a single one where there is no other arm."""
    found = []
    others: list[str | None] = [*c.experiment.arms[1:]]
    for arm in others or [None]:
        summary = ArmSummary(
            directory, c.experiment.name, c.experiment.question, c.baseline, arm, expected=len(c.expectations),
            delivered=sum(one.verdict == "delivered" for one in c.expectations), definitions=_definitions(c),
        )  # fmt: skip
        if arm and (r := c.primary.get(arm)):
            summary = replace(summary, n=r.n, delta=r.delta, low=r.low, high=r.high, p=r.p, verdict=r.verdict)
        if arm and (b := c.budgets.get(arm)):
            summary = replace(
                summary, ratio=b.ratio, ratio_low=b.low, ratio_high=b.high, budget=b.verdict,
                centre_shift=b.centre_shift, centre_low=b.centre_low, centre_high=b.centre_high, centre_p=b.centre_p,
            )  # fmt: skip
        found.append(summary)
    return found


def _definitions(c: Comparison) -> int | None:
    """Return the version of the definitions that the experiment's readings follow; null without a reading."""
    return next((reading.definitions for cell in c.experiment.cells for reading in cell.readings.values()), None)


def _adjusted(arms: list[ArmSummary]) -> list[ArmSummary]:
    """Add q: of all arms with q ≤ `ALPHA`, at most that share is expected to be false (Benjamini & Hochberg 1995).

    It holds approximately, because the tests are two-sided and arms share baselines. Arms with too few seeds to reach
    p ≤ `ALPHA` are left out.
    """
    tested = [i for i, arm in enumerate(arms) if arm.testable]
    q = scipy.stats.false_discovery_control([arms[i].p for i in tested], method="bh") if tested else []
    adjusted = dict(zip(tested, map(float, q), strict=True))
    return [replace(arm, q=adjusted.get(i)) for i, arm in enumerate(arms)]
