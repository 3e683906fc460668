"""Everything that an experiment's files say about its arms, computed once for terminal, report and W&B alike."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from orchestrator.analysis import stated, tables
from orchestrator.analysis.cells import CellResult, ExperimentResult, read_experiment
from orchestrator.analysis.coincidence import Coincidence, coincide
from orchestrator.analysis.conservation import REFERENCES, Conservation, conserve
from orchestrator.analysis.contrasts import Contrast, contrast_all
from orchestrator.analysis.endings import ending_of_cells, ending_of_pairs
from orchestrator.analysis.expectations import Expectation, expectations
from orchestrator.analysis.migration import RoleShift, Transitions, role_shift, transitions
from orchestrator.analysis.pairs import (
    BATCH_KEYS,
    HELDOUT_KEYS,
    MEAN,
    PRIMARY,
    LeftOut,
    Pair,
    domains_of,
    pair_losses,
    pair_up,
    shown,
)
from orchestrator.analysis.statistics import ALPHA, BOOTSTRAP_FROM, PairedResult, compare_paired, smallest_p
from orchestrator.analysis.symmetry import Symmetry, symmetry
from orchestrator.common.palette import ROLES
from orchestrator.forensics.reading import roles_of


@dataclass(frozen=True)
class Comparison:
    """An experiment, its complete pairs, and what follows from them."""

    experiment: ExperimentResult
    pairs: list[Pair]
    left_out: list[LeftOut]
    domains: list[str]
    tables: dict[str, pd.DataFrame]
    statistics: list[PairedResult]
    contrasts: list[Contrast]
    expectations: list[Expectation]
    conservation: list[Conservation]
    symmetry: list[Symmetry]
    transitions: list[Transitions]  # one per arm that was read twice
    role_shifts: list[RoleShift]  # one per compared arm as deep as the baseline
    coincidences: list[Coincidence]  # per arm that was read twice: the domains' mean, then each domain
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
        """How many pairs are complete, arm by arm where they differ."""
        arms = self.experiment.arms[1:]
        counts = {arm: sum(pair.arm == arm for pair in self.pairs) for arm in arms}
        planned = len(self.experiment.seeds)
        if len(set(counts.values())) == 1 and len(arms) > 1:
            return f"{next(iter(counts.values()))} of {planned} complete for each arm"
        told = (f"{n} of {planned} complete{f' for {arm}' if len(arms) > 1 else ''}" for arm, n in counts.items())
        return ", ".join(told)

    def name_of(self, domain: str) -> str:
        """The domain as it is printed: one that is alone by its own name, not as the mean that it is."""
        return self.domains[0] if domain == MEAN and len(self.domains) == 1 else domain

    @property
    def incomplete_cells(self) -> list[tuple[str, str]]:
        """What no pair can use, and why: the cells of an arm that lack the same thing together."""
        alike: dict[tuple[str, str], list[int]] = {}
        for cell in self.experiment.cells:
            if cell.missing:
                alike.setdefault((cell.arm, cell.missing), []).append(cell.seed)
        return [(f"{arm}/seed={','.join(map(str, seeds))}", reason) for (arm, reason), seeds in alike.items()]

    def cells_of(self, arm: str) -> list[CellResult]:
        """The cells that stand for `arm`: those of complete pairs, or without any pair all that there are."""
        return _cells_of(arm, self.experiment, self.pairs)


def compute(path: Path) -> Comparison:
    """Read `path` and compare its arms; writes nothing. Raises `UserError` as reading and pairing do."""
    return compare_cells(read_experiment(path))


def compare_cell(cell: CellResult) -> Comparison:
    """What can be said of `cell` as an experiment of one arm and one seed: its tables, its figures."""
    return compare_cells(
        ExperimentResult(cell.path, cell.label, question="", arms=[cell.arm], seeds=[cell.seed], cells=[cell])
    )


def compare_cells(experiment: ExperimentResult) -> Comparison:
    """What follows from the cells of `experiment`; one that is alone is a comparison without pairs."""
    pairs, left_out = pair_up(experiment)
    domains = domains_of(experiment.cells)
    arms = list(dict.fromkeys(pair.arm for pair in pairs))
    contrasts = contrast_all(experiment, domains)
    standing = {arm: _cells_of(arm, experiment, pairs) for arm in experiment.arms}
    return Comparison(
        experiment=experiment,
        pairs=pairs,
        left_out=left_out,
        domains=domains,
        contrasts=contrasts,
        expectations=expectations(experiment),
        tables=tables.build(experiment.cells, pairs, contrasts),
        statistics=[result for arm in arms for result in _losses(arm, pairs, domains)],
        symmetry=[found for arm in arms if (found := symmetry(arm, pairs))],
        conservation=[conserve(arm, pairs, reference) for arm in arms for reference in REFERENCES],
        transitions=[moved for arm, cells in standing.items() if (moved := transitions(arm, cells))],
        role_shifts=[shift for arm in arms if (shift := role_shift(arm, pairs))],
        coincidences=[
            met
            for arm, cells in standing.items()
            for domain in (shown(domains) if domains else ())
            if (met := coincide(arm, cells, domain, domains))
        ],
        notes=_notes(experiment, pairs, domains),
    )


def _cells_of(arm: str, experiment: ExperimentResult, pairs: list[Pair]) -> list[CellResult]:
    cells = [cell for pair in pairs for cell in (pair.a, pair.b)] if pairs else experiment.cells
    return list({cell.label: cell for cell in cells if cell.arm == arm}.values())


def _losses(arm: str, pairs: list[Pair], domains: list[str]) -> list[PairedResult]:
    values = [pair_losses(pair, domains) for pair in pairs if pair.arm == arm]
    keys = [key for key in values[0] if all(key in found for found in values)]
    samples = {key: ([v[key][0] for v in values], [v[key][1] for v in values]) for key in keys}
    return compare_paired(arm, samples, PRIMARY)


def _notes(experiment: ExperimentResult, pairs: list[Pair], domains: list[str]) -> list[str]:
    """What a reader must know before believing the numbers, in sentences."""
    notes = []
    if len(experiment.arms) == 1:
        notes.append("One arm has nothing to be compared with.")
    elif not pairs:
        notes.append("No pair is complete: nothing can be said about a difference between the arms.")
    notes += _count_notes(pairs)
    if pairs and not domains:
        notes.append("No held-out domain is common to all finished cells: their losses cannot be compared.")
    notes += stated.notes(experiment)
    notes += _batch_notes(pairs)
    if any(
        len(a["layers"]) != len(b["layers"])
        for pair in pairs
        for step in pair.common_steps[-1:]
        for a, b in [(pair.a.readings[step], pair.b.readings[step])]
    ):
        notes.append("The arms differ in depth: their layers are shown side by side but not compared one by one.")
    notes += _ending_notes(experiment, pairs)
    without = [cell.label for cell in experiment.cells if not cell.readings and cell.metrics]
    if without:
        notes.append(f"The layers of {', '.join(without)} were never read: roles and budgets do not cover them.")
    return notes + _role_notes(experiment.cells)


def _count_notes(pairs: list[Pair]) -> list[str]:
    """What too few pairs leave unsaid, fewest first, with the arms it holds for where it is not all."""
    counts = Counter(pair.arm for pair in pairs)
    notes = []
    for n in sorted(n for n in set(counts.values()) if n < BOOTSTRAP_FROM):
        arms = [arm for arm, own in counts.items() if own == n]
        which = f" ({', '.join(arms)})" if len(arms) < len(counts) else ""
        called = f"no difference of loss can be called better or worse at {ALPHA}."
        notes.append(
            f"With 1 pair{which} there is no p at all: {called} An interval needs two pairs."
            if n == 1
            else f"With {n} pairs{which} the sign-flip test cannot give p under {smallest_p(n):.2g}: {called} "
            f"Intervals are Student's t: a bootstrap needs {BOOTSTRAP_FROM} pairs."
        )
    return notes


def _ending_notes(experiment: ExperimentResult, pairs: list[Pair]) -> list[str]:
    """Where the layers that are compared are not those that training ended with, with the arms it holds for."""
    arms = list(dict.fromkeys(pair.arm for pair in pairs))
    ends = {arm: ending_of_pairs(arm, pairs).note for arm in arms} or {
        arm: ending_of_cells(cell for cell in experiment.cells if cell.arm == arm).note for arm in experiment.arms
    }
    told = {note: [arm for arm, own in ends.items() if own == note] for note in ends.values() if note}
    return [note if len(arms) == len(ends) else f"{', '.join(arms)}: {note}" for note, arms in told.items()]


def _batch_notes(pairs: list[Pair]) -> list[str]:
    """What a declared difference of the data takes from the pairs; without one their digests are equal."""
    batches, heldout = (
        ", ".join(sorted({key for pair in pairs for key in pair.differing_in(keys)}))
        for keys in (BATCH_KEYS, HELDOUT_KEYS)
    )
    notes = []
    if batches:
        notes.append(f"The arms saw different batches, as declared ({batches}): they are paired by seed alone.")
    if heldout:
        notes.append(f"Their held-out losses are on different text, or on rows cut otherwise ({heldout}).")
    return notes


def _role_notes(cells: list[CellResult]) -> list[str]:
    notes = []
    untrained = [cell.readings[0] for cell in cells if 0 in cell.readings]
    if untrained:
        named = [role in ROLES for reading in untrained for role in roles_of(reading)]
        by_paper = sum(layer.get("role_paper") in ROLES for reading in untrained for layer in reading["layers"])
        rival = "" if untrained[0]["scoring"] == "paper" else f", the paper's rule {by_paper}"
        notes.append(
            f"At step 0, before any training, {untrained[0]['scoring']} scoring gives {sum(named)} of {len(named)} "
            f"layers a role{rival}."
        )
    return notes
