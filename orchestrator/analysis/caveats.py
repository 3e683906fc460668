"""Caveats: sentences on what limits the numbers of a comparison."""

from __future__ import annotations

from collections import Counter

from orchestrator.analysis import late_changes
from orchestrator.analysis.cells import CellResult, ExperimentResult
from orchestrator.analysis.common_step import common_step, common_step_of_pairs
from orchestrator.analysis.formatting import grouped_notes
from orchestrator.analysis.pairs import BATCH_KEYS, HELDOUT_KEYS, Pair
from orchestrator.analysis.statistics import (
    BOOTSTRAP_FROM,
)
from orchestrator.experiments.decision import ALPHA, smallest_p
from orchestrator.forensics.reading import DEFINITIONS, roles_of
from orchestrator.forensics.roles.routing import ROLES


def caveats(experiment: ExperimentResult, pairs: list[Pair], domains: list[str]) -> list[str]:
    """Return every caveat that holds, the most general first."""
    notes = []
    if len(experiment.arms) == 1:
        notes.append("One arm has nothing to be compared with.")
    elif not pairs:
        notes.append("No pair is complete: nothing can be said about a difference between the arms.")
    notes += _count_notes(pairs)
    if pairs and not domains:
        notes.append("No held-out domain is common to all finished cells: their losses cannot be compared.")
    notes += late_changes.notes(experiment)
    notes += [f"{arm} was dropped on {day} and is not compared." for arm, day in experiment.dropped.items()]
    notes += _batch_notes(pairs)
    read = [[cell.readings[step] for cell in pair.cells] for pair in pairs for step in pair.common_steps[-1:]]
    if any(len(a.layers) != len(b.layers) for a, b in read):
        notes.append("The arms differ in depth: their layers are shown side by side but not compared one by one.")
    notes += _stale_notes(experiment, pairs)
    without = [cell.label for cell in experiment.cells if not cell.readings and cell.metrics]
    if without:
        notes.append(f"The layers of {', '.join(without)} were never read: roles and budgets do not cover them.")
    return notes + _definition_notes(experiment.cells) + _role_notes(experiment.cells)


def _count_notes(pairs: list[Pair]) -> list[str]:
    """Return a note per number of pairs under `BOOTSTRAP_FROM`, the smallest first, with its arms if not all."""
    counts = Counter(pair.arm for pair in pairs)
    notes = []
    for n in sorted(n for n in set(counts.values()) if n < BOOTSTRAP_FROM):
        arms = [arm for arm, own in counts.items() if own == n]
        which = f" ({', '.join(arms)})" if len(arms) < len(counts) else ""
        called = f"no loss can be called better or worse at {ALPHA}."
        notes.append(
            f"With 1 pair{which} there is no p: {called} An interval needs two pairs."
            if n == 1
            else f"With {n} pairs{which} the sign-flip test cannot give p under {smallest_p(n):.2g}: {called} "
            f"Intervals are Student's t, as a bootstrap needs {BOOTSTRAP_FROM} pairs."
        )
    return notes


def _stale_notes(experiment: ExperimentResult, pairs: list[Pair]) -> list[str]:
    """Return a note per last reading after which training went on, with its arms if not all."""
    arms = list(dict.fromkeys(pair.arm for pair in pairs))
    notes = {arm: common_step_of_pairs(arm, pairs).stale_note for arm in arms} or {
        arm: common_step(cell for cell in experiment.cells if cell.arm == arm).stale_note for arm in experiment.arms
    }
    return grouped_notes(notes.items(), everything=len(notes), join=", ")


def _batch_notes(pairs: list[Pair]) -> list[str]:
    """Return notes on the batches and held-out rows that differ because the arms' declared data differ."""
    batches, heldout = (
        ", ".join(sorted({key for pair in pairs for key in pair.differing_in(keys)}))
        for keys in (BATCH_KEYS, HELDOUT_KEYS)
    )
    notes = []
    if batches:
        notes.append(f"The arms saw different batches, as declared ({batches}): they are paired by seed alone.")
    if heldout:
        notes.append(f"The arms' held-out losses are on different text or on differently cut rows ({heldout}).")
    return notes


def _definition_notes(cells: list[CellResult]) -> list[str]:
    """The readings that are left out beside newer ones, and those that are all older than this version's."""
    left = [f"{cell.label} (step {', '.join(map(str, cell.outdated))})" for cell in cells if cell.outdated]
    found = {reading.definitions for cell in cells for reading in cell.readings.values()}
    again = "the experiment's own command reads them again where the checkpoint is kept."
    notes = [f"Readings of {', '.join(left)} follow older definitions and are left out: {again}"] if left else []
    if found - {DEFINITIONS}:
        versions = ", ".join(map(str, sorted(found)))
        notes.append(f"Readings follow version {versions} of the definitions; this is version {DEFINITIONS}: {again}")
    return notes


def _role_notes(cells: list[CellResult]) -> list[str]:
    """Return a note on the layers with a role at step 0, where every role is false."""
    untrained = [cell.readings[0] for cell in cells if 0 in cell.readings]
    if not untrained:
        return []
    scoring = untrained[0].scoring
    named = [role in ROLES for reading in untrained for role in roles_of(reading)]
    by_paper = sum(layer.role_paper in ROLES for reading in untrained for layer in reading.layers)
    rival = "" if scoring == "paper" else f"; the paper's rule gives one to {by_paper}"
    return [f"At step 0, before training, {scoring} scoring gives {sum(named)} of {len(named)} layers a role{rival}."]
