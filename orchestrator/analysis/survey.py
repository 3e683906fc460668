"""Many experiments side by side: one summary per experiment and arm; nothing else of them is kept in memory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path

import pandas as pd
import scipy

from orchestrator.analysis.comparison import Comparison, compute
from orchestrator.analysis.conservation import REFERENCES, Conservation
from orchestrator.analysis.pairs import PRIMARY
from orchestrator.analysis.statistics import FEWEST_PAIRS, PairedResult
from orchestrator.common.errors import UserError
from orchestrator.common.shapes import one_line

CALLED = ("better", "worse")


@dataclass(frozen=True)
class ArmSummary:
    """One arm against its experiment's baseline; null is not known. `problem` says why there is nothing else."""

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
    q: float | None = None  # by Benjamini and Hochberg over all arms whose seeds allow p ≤ 0.05
    verdict: str = "not measured"  # on this arm alone, at 5 %
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

    @property
    def testable(self) -> bool:
        """True where the seeds are enough to call the arm better or worse, whatever their losses."""
        return self.p is not None and self.n >= FEWEST_PAIRS


def survey(directories: Iterable[Path]) -> list[ArmSummary]:
    """The summaries of every experiment, in the order given; one that cannot be read has a single one, its problem."""
    return _adjusted([summary for directory in directories for summary in _read(directory)])


def sort_out(paths: Iterable[Path]) -> tuple[list[Path], list[Path]]:
    """Experiments, each once, and paths that hold none. A path that does not exist counts as an experiment."""
    once = {path.resolve(): path for path in reversed(list(paths))}
    first = list(reversed(once.values()))
    others = [path for path in first if path.exists() and not (path / "experiment.yaml").is_file()]
    return [path for path in first if path not in others], others


def frame(arms: list[ArmSummary]) -> pd.DataFrame:
    """One column per field of `ArmSummary`."""
    return pd.DataFrame([vars(arm) for arm in arms], columns=[field.name for field in fields(ArmSummary)])


def _read(directory: Path) -> list[ArmSummary]:
    try:
        return _summaries(str(directory), compute(directory))
    except (UserError, OSError) as error:
        problem = str(error)
    except Exception as error:  # a fault in one must not cost the others their summaries
        problem = f"{directory} cannot be compared ({type(error).__name__}: {one_line(error)}): compare it alone."
    return [ArmSummary(str(directory), directory.name, "", None, None, problem=problem)]


def _summaries(directory: str, c: Comparison) -> list[ArmSummary]:
    """One per arm but the baseline; a single one where there is no other arm."""
    losses: dict[str | None, PairedResult] = {r.arm: r for r in c.statistics if (r.metric, r.domain) == PRIMARY[0]}
    budgets: dict[str | None, Conservation] = {r.arm: r for r in c.conservation if r.reference == REFERENCES[0]}
    others: list[str | None] = [*c.experiment.arms[1:]]
    found = []
    for arm in others or [None]:
        summary = ArmSummary(
            directory, c.experiment.name, c.experiment.question, c.baseline, arm, expected=len(c.expectations),
            delivered=sum(one.verdict == "delivered" for one in c.expectations),
        )  # fmt: skip
        if r := losses.get(arm):
            summary = replace(summary, n=r.n, delta=r.delta, low=r.low, high=r.high, p=r.p, verdict=r.verdict)
        if b := budgets.get(arm):
            summary = replace(
                summary, ratio=b.ratio, ratio_low=b.low, ratio_high=b.high, budget=b.verdict,
                centre_shift=b.centre_shift, centre_low=b.centre_low, centre_high=b.centre_high, centre_p=b.centre_p,
            )  # fmt: skip
        found.append(summary)
    return found


def _adjusted(arms: list[ArmSummary]) -> list[ArmSummary]:
    """With q: of all arms called at q ≤ 0.05, at most 5 % are expected to be false (Benjamini & Hochberg 1995).

    That is proven of independent tests, and of one-sided ones that are positively dependent. The tests here are
    two-sided, and arms that share a baseline depend on each other: it holds approximately. Arms whose seeds cannot
    reach p ≤ 0.05 are left out: they could not have been called.
    """
    tested = [i for i, arm in enumerate(arms) if arm.testable]
    q = scipy.stats.false_discovery_control([arms[i].p for i in tested], method="bh") if tested else []
    adjusted = dict(zip(tested, map(float, q), strict=True))
    return [replace(arm, q=adjusted.get(i)) for i, arm in enumerate(arms)]
