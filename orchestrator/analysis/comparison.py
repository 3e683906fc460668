"""Compute the comparison of an experiment's arms, once for terminal, report and W&B."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from orchestrator.analysis import tables
from orchestrator.analysis.caveats import caveats
from orchestrator.analysis.cells import CellResult, ExperimentResult, read_experiment
from orchestrator.analysis.conservation import REFERENCES, REGIONS, Conservation, conserve
from orchestrator.analysis.contrasts import Contrast, contrast_all
from orchestrator.analysis.damage import DamageShift, damage_shift
from orchestrator.analysis.expectations import Expectation, expectations
from orchestrator.analysis.migration import RoleShift, Transitions, role_shift, transitions
from orchestrator.analysis.pairs import MEAN, PRIMARY, LeftOut, Pair, domains_of, pair_losses, pair_up
from orchestrator.analysis.sign_flip import Look
from orchestrator.analysis.statistics import PairedResult, Samples, compare_paired
from orchestrator.analysis.symmetry import Symmetry, symmetry
from orchestrator.analysis.trajectory import ArmTrajectory, trajectory


@dataclass(frozen=True)
class Comparison:
    """An experiment, its complete pairs, and every result over them."""

    experiment: ExperimentResult
    pairs: list[Pair]
    left_out: list[LeftOut]
    domains: list[str]
    tables: dict[str, pd.DataFrame]
    statistics: list[PairedResult]
    contrasts: list[Contrast]
    expectations: list[Expectation]
    conservation: list[Conservation]
    symmetry: list[Symmetry]  # of attention's share of the energy
    write_symmetry: list[Symmetry]  # of its share of what both branches write
    damage: list[DamageShift]  # one per compared arm whose layers were intervened on
    transitions: list[Transitions]  # one per arm that was read twice
    role_shifts: list[RoleShift]  # one per compared arm as deep as the baseline
    trajectories: list[ArmTrajectory]  # one per arm that was read often enough
    notes: list[str]

    @property
    def directory(self) -> Path:
        return self.experiment.path / "comparison"

    @property
    def baseline(self) -> str:
        return self.experiment.arms[0]

    @property
    def compared(self) -> list[str]:
        """The arms that have at least one complete pair with the baseline."""
        return list(dict.fromkeys(pair.arm for pair in self.pairs))

    @property
    def completeness(self) -> str:
        """The number of complete pairs as text, arm by arm where they differ."""
        arms = self.experiment.arms[1:]
        counts = {arm: sum(pair.arm == arm for pair in self.pairs) for arm in arms}
        planned = len(self.experiment.seeds)
        if len(set(counts.values())) == 1 and len(arms) > 1:
            return f"{next(iter(counts.values()))} of {planned} complete for each arm"
        each = (f"{n} of {planned} complete{f' for {arm}' if len(arms) > 1 else ''}" for arm, n in counts.items())
        return ", ".join(each)

    @property
    def primary(self) -> dict[str, PairedResult]:
        """Arm → the result on the primary outcome."""
        return {r.arm: r for r in self.statistics if (r.metric, r.domain) == PRIMARY[0]}

    @property
    def open_arms(self) -> list[str]:
        """The arms whose primary outcome is not decided, and those without a complete pair."""
        decided = {arm for arm, r in self.primary.items() if r.verdict != "inconclusive"}
        return [arm for arm in self.experiment.arms[1:] if arm not in decided]

    @property
    def budgets(self) -> dict[str, Conservation]:
        """Arm → the conservation on which claims rest."""
        return {r.arm: r for r in self.conservation if (r.reference, r.region) == (REFERENCES[0], REGIONS[0])}

    def name_of(self, domain: str) -> str:
        """Return the domain's printed name; the mean of a single domain has that domain's name."""
        return self.domains[0] if domain == MEAN and len(self.domains) == 1 else domain

    @property
    def incomplete_cells(self) -> list[tuple[str, str]]:
        """(cells, reason) for the cells that no pair can use; cells of one arm with one reason share an entry."""
        alike: dict[tuple[str, str], list[int]] = {}
        for cell in self.experiment.cells:
            if cell.missing:
                alike.setdefault((cell.arm, cell.missing), []).append(cell.seed)
        return [(f"{arm}/seed={','.join(map(str, seeds))}", reason) for (arm, reason), seeds in alike.items()]

    def seeds_of(self, arm: str) -> list[int]:
        """Return the seeds of the complete pairs of `arm`."""
        return [pair.seed for pair in self.pairs if pair.arm == arm]

    def deltas_of(self, arm: str) -> list[float]:
        """Return the differences of the primary outcome, one per complete pair, nats/token."""
        table = self.tables["paired_eval"]
        metric, domain = PRIMARY[0]
        rows = table[(table["metric"] == metric) & (table["domain"] == domain)]
        return list(rows["delta"] if "arm" not in rows else rows.loc[rows["arm"] == arm, "delta"])

    def cells_of(self, arm: str) -> list[CellResult]:
        """Return the cells of `arm` in complete pairs, or all of its cells where no pair is complete."""
        return _cells_of(arm, self.experiment, self.pairs)


def compute(path: Path) -> Comparison:
    """Read `path` and compare its arms; write nothing. Raises `UserError` as reading and pairing do."""
    return compare_cells(read_experiment(path))


def compare_cell(cell: CellResult) -> Comparison:
    """Return the tables and figures of a single cell, as an experiment of one arm and one seed."""
    return compare_cells(
        ExperimentResult(cell.path, cell.label, question="", arms=[cell.arm], seeds=[cell.seed], cells=[cell])
    )


def compare_cells(experiment: ExperimentResult) -> Comparison:
    """Compare the cells of `experiment`; a single arm has no pairs."""
    pairs, left_out = pair_up(experiment)
    domains = domains_of(experiment.cells)
    arms = list(dict.fromkeys(pair.arm for pair in pairs))
    contrasts = contrast_all(experiment, domains)
    cells_of = {arm: _cells_of(arm, experiment, pairs) for arm in experiment.arms}
    courses = [course for arm, cells in cells_of.items() if (course := trajectory(arm, cells, domains))]
    return Comparison(
        experiment=experiment,
        pairs=pairs,
        left_out=left_out,
        domains=domains,
        contrasts=contrasts,
        expectations=expectations(experiment),
        tables=tables.build(experiment.cells, pairs, contrasts, courses),
        statistics=_losses_compared(experiment, pairs, domains),
        symmetry=[found for arm in arms if (found := symmetry(arm, pairs))],
        write_symmetry=[found for arm in arms if (found := symmetry(arm, pairs, "write_share"))],
        conservation=[
            conserve(arm, pairs, reference, region)
            for arm in arms
            for reference in REFERENCES
            for region in (REGIONS if reference == REFERENCES[0] else REGIONS[:1])
        ],
        damage=[shift for arm in arms if (shift := damage_shift(arm, pairs))],
        transitions=[moved for arm, cells in cells_of.items() if (moved := transitions(arm, cells))],
        role_shifts=[moved_roles for arm in arms if (moved_roles := role_shift(arm, pairs))],
        trajectories=courses,
        notes=caveats(experiment, pairs, domains),
    )


def _cells_of(arm: str, experiment: ExperimentResult, pairs: list[Pair]) -> list[CellResult]:
    cells = [cell for pair in pairs for cell in pair.cells] if pairs else experiment.cells
    return list({cell.label: cell for cell in cells if cell.arm == arm}.values())


def _losses_compared(experiment: ExperimentResult, pairs: list[Pair], domains: list[str]) -> list[PairedResult]:
    """Compare every loss of every arm with the baseline's, pair by pair in the order in which they were added."""
    arms: dict[str, Samples] = {}
    looks: dict[str, list[Look]] = {}
    by_arm: dict[str, dict[int, Pair]] = {}
    for pair in pairs:
        by_arm.setdefault(pair.arm, {})[pair.seed] = pair
    for arm, own in by_arm.items():
        seeds, looks[arm] = experiment.looks_at([arm], list(own))
        values = [pair_losses(own[seed], domains) for seed in seeds]
        keys = [key for key in values[0] if all(key in found for found in values)]
        arms[arm] = {key: ([v[key][0] for v in values], [v[key][1] for v in values]) for key in keys}
    return compare_paired(arms, PRIMARY, experiment.margin, looks)
