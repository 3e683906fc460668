"""Draw the lineage of an experiment's arms: a tree of trunks and branches, and the steps that each arm trained."""

from __future__ import annotations

from collections.abc import Iterator

from orchestrator.analysis.cells import ExperimentResult
from orchestrator.analysis.comparison import Comparison
from orchestrator.analysis.sections.section import Section, TableCell

BAR = 24  # characters that the longest run takes
TRUNKS, OWN = "░", "█"  # steps that the trunk trained, and the arm itself


def lineage(c: Comparison) -> Section:
    """Return a line per arm, each trunk before its branches; empty where no arm has a trunk."""
    e = c.experiment
    drawn = list(_tree(e)) if e.lineage else []
    rows: list[list[TableCell]] = [_row(e, arm, depth) for arm, depth in drawn]
    notes = []
    if rows:
        seen, spent = (sum(counts) for counts in zip(*(_flops(e, arm) for arm, _ in drawn), strict=True))
        others = sorted({branch.experiment for branch in e.lineage.values() if branch.experiment})
        notes = [
            f"Steps that arms share were trained once: {spent:.3g} FLOPs at each seed, where apart the arms would have "
            f"taken {seen:.3g}.",
            *(f"Trunk in another experiment: {path}." for path in others),
        ]
    columns = ["lineage", "begins", "ends", "own steps", "FLOPs", f"{TRUNKS} trunk's, {OWN} own"]
    return Section("Trunk and branches", columns, rows, notes, dict.fromkeys(columns))


def _tree(e: ExperimentResult) -> Iterator[tuple[str, int]]:
    """Yield arm and depth, depth first; branches of one trunk from the earliest to the latest."""

    def below(trunk: str, depth: int) -> Iterator[tuple[str, int]]:
        own = [arm for arm, branch in e.lineage.items() if branch.arm == trunk and branch.experiment is None]
        for arm in sorted(own, key=lambda arm: e.lineage[arm].step):
            yield arm, depth
            yield from below(arm, depth + 1)

    for arm in e.arms:
        branch = e.lineage.get(arm)
        if branch is None or branch.experiment is not None or branch.arm not in e.arms:
            yield arm, 0
            yield from below(arm, 1)


def _row(e: ExperimentResult, arm: str, depth: int) -> list[TableCell]:
    branch, ends = e.lineage.get(arm), e.steps.get(arm, 0)
    begins = branch.step if branch else 0
    longest = max([*e.steps.values(), 1])
    shared = round(BAR * begins / longest)
    bar = TRUNKS * shared + OWN * (round(BAR * ends / longest) - shared)
    name = f"{'  ' * (depth - 1)}└ {arm}" if depth else arm
    if branch and (branch.experiment or branch.arm not in e.arms):
        name = f"{name} (from {branch.arm})"
    return [name, f"{begins:,}", f"{ends:,}", f"{ends - begins:,}", f"{_flops(e, arm)[1]:.3g}", bar]


def _flops(e: ExperimentResult, arm: str) -> tuple[float, float]:
    """Return the FLOPs of the steps that one model of the arm has seen, and of those that the arm trained itself."""
    model, ends = e.models.get(arm), e.steps.get(arm, 0)
    whole = model.training_flops or 0.0 if model else 0.0
    begins = e.lineage[arm].step if arm in e.lineage else 0
    return whole, whole * (1 - begins / ends) if ends else 0.0
