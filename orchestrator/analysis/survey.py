"""Summarise many experiments, one line per experiment and arm, best first; only the summaries stay in memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import scipy

from orchestrator.analysis.cells import ExperimentResult
from orchestrator.analysis.comparison import Comparison, compute
from orchestrator.analysis.pairs import PRIMARY, losses
from orchestrator.analysis.statistics import interval, mean_of_known
from orchestrator.common.errors import UserError
from orchestrator.common.shapes import one_line
from orchestrator.config import keys
from orchestrator.experiments.decision import FEWEST_PAIRS
from orchestrator.experiments.trials import is_explored

CALLED = ("better", "worse")
BASELINE = "baseline"
# Keys that say who a cell is, or change its numbers by rounding alone.
# keys that change nothing that is trained, or only when it is looked at
NOT_SWEPT = (
    *keys.OPERATIONAL, *keys.OF_ROUNDING, "arm", "seed", "train.log_every", "train.eval_every",
    "train.checkpoint_every", "forensics",
)  # fmt: skip


@dataclass(frozen=True)
class ArmSummary:
    """One arm, and how it compares with its experiment's baseline; null means not known.

    With a `problem` all else is unknown.
    """

    directory: str
    experiment: str
    question: str
    baseline: str | None
    arm: str | None
    n: int = 0  # seeds of the loss; of an arm that is compared, seed pairs
    loss: float | None = None  # the primary outcome: test loss, mean over the domains, nats/token
    loss_low: float | None = None  # its 95 % interval over the seeds
    loss_high: float | None = None
    data: str | None = None  # the digest of its corpus; losses on another do not compare
    delta: float | None = None  # of the loss, minus the baseline's
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
    settings: dict[str, Any] = field(default_factory=dict)  # dotted key → value; empty where it cannot be read

    @property
    def is_compared(self) -> bool:
        """True for an arm that is not its experiment's baseline."""
        return self.arm not in (None, self.baseline)

    @property
    def testable(self) -> bool:
        """True where there are enough seeds to call the arm better or worse."""
        return self.p is not None and self.n >= FEWEST_PAIRS


def survey(directories: Iterable[Path]) -> list[ArmSummary]:
    """Summarise every experiment, best first; one that cannot be read has a single summary, its problem."""
    return ranked(_adjusted([summary for directory in directories for summary in _read(directory)]))


def ranked(arms: Iterable[ArmSummary]) -> list[ArmSummary]:
    """The arms by their loss, lowest first, those on the same data together; then those without a loss."""
    found = list(arms)
    groups = list(data_of(found))
    position = {(arm.directory, arm.arm): place for place, arm in enumerate(found)}

    def order(arm: ArmSummary) -> tuple[Any, ...]:
        known = arm.loss is not None
        group = groups.index(arm.data) if known else 0
        name = (arm.experiment, arm.directory)
        return (arm.problem is not None, not known, group, arm.loss or 0.0, *name, position[arm.directory, arm.arm])

    return sorted(found, key=order)


def data_of(arms: Iterable[ArmSummary]) -> dict[str | None, int]:
    """Digest → its number from 1, of the corpora on which losses are known; the one with most arms is first."""
    counts = Counter(arm.data for arm in arms if arm.loss is not None)
    ordered = sorted(counts, key=lambda digest: (digest is None, -counts[digest], digest or ""))
    return {digest: number for number, digest in enumerate(ordered, start=1)}


def sort_out(paths: Iterable[Path]) -> tuple[list[Path], list[Path]]:
    """Return the experiments, each once, and the paths that hold none. A missing path counts as an experiment."""
    once = {path.resolve(): path for path in reversed(list(paths))}
    first = list(reversed(once.values()))
    others = [path for path in first if path.exists() and not (path / "experiment.yaml").is_file()]
    return [path for path in first if path not in others], others


def _read(directory: Path) -> list[ArmSummary]:
    try:
        return _summaries(str(directory), compute(directory))
    except (UserError, OSError) as error:
        problem = str(error)
    except Exception as error:  # a fault in one experiment must not hide the others
        problem = f"{directory} cannot be compared ({type(error).__name__}: {one_line(error)}): compare it alone."
    return [ArmSummary(str(directory), directory.name, "", None, None, problem=problem)]


def _summaries(directory: str, c: Comparison) -> list[ArmSummary]:
    """Return a summary per arm, the baseline first."""
    found = []
    for arm in c.experiment.arms:
        summary = ArmSummary(
            directory, _name(c.experiment), c.experiment.question, c.baseline, arm, data=c.experiment.data.get(arm),
            expected=len(c.expectations), delivered=sum(one.verdict == "delivered" for one in c.expectations),
            definitions=_definitions(c), settings=_settings(c, arm), **_loss(c, arm),
        )  # fmt: skip
        if arm == c.baseline:
            summary = replace(summary, verdict=BASELINE if len(c.experiment.arms) > 1 else "only arm", budget="–")
        if r := c.primary.get(arm):
            summary = replace(summary, delta=r.delta, low=r.low, high=r.high, p=r.p, verdict=r.verdict)
        if b := c.budgets.get(arm):
            summary = replace(
                summary, ratio=b.ratio, ratio_low=b.low, ratio_high=b.high, budget=b.verdict,
                centre_shift=b.centre_shift, centre_low=b.centre_low, centre_high=b.centre_high, centre_p=b.centre_p,
            )  # fmt: skip
        found.append(summary)
    return found


def _loss(c: Comparison, arm: str) -> dict[str, Any]:
    """The mean loss of an arm over the seeds of its pairs, or over all that finished where it has none."""
    paired = c.cells_of(arm) if arm in (c.baseline, *c.compared) else c.experiment.cells
    known = [cell for cell in paired if cell.arm == arm and not cell.missing] if c.domains else []
    values = [losses(cell, c.domains)[PRIMARY[0]] for cell in known]
    within = interval(values, 0.95)
    return {"n": len(values), "loss": mean_of_known(values), "loss_low": within.low, "loss_high": within.high}


def _settings(c: Comparison, arm: str) -> dict[str, Any]:
    """The configuration of an arm, as far as it can differ from another's; empty where no cell's can be read."""
    for cell in c.experiment.cells:
        if cell.arm == arm:
            try:
                flat = keys.flatten(cell.config)
            except UserError:
                continue
            flat |= {"data.domains": ", ".join(cell.config.data.domains)}
            return {key: value for key, value in flat.items() if not keys.is_within(key, NOT_SWEPT)}
    return {}


def _name(experiment: ExperimentResult) -> str:
    """The experiment's name; of one length of a search also the search's, since all searches have such lengths."""
    explored = is_explored(experiment.path.resolve())
    return "/".join(experiment.path.resolve().parts[-3:]) if explored else experiment.name


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
