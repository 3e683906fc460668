"""What a reader must know before believing the numbers of a comparison, in sentences."""

from __future__ import annotations

from collections import Counter

from orchestrator.analysis import late_changes
from orchestrator.analysis.cells import CellResult, ExperimentResult
from orchestrator.analysis.common_step import common_step_of_cells, common_step_of_pairs
from orchestrator.analysis.formatting import grouped_notes
from orchestrator.analysis.pairs import BATCH_KEYS, HELDOUT_KEYS, Pair
from orchestrator.analysis.statistics import ALPHA, BOOTSTRAP_FROM, smallest_p
from orchestrator.forensics.reading import roles_of
from orchestrator.forensics.roles.routing import ROLES


def caveats(experiment: ExperimentResult, pairs: list[Pair], domains: list[str]) -> list[str]:
    """Every sentence that holds, the most general first."""
    notes = []
    if len(experiment.arms) == 1:
        notes.append("One arm has nothing to be compared with.")
    elif not pairs:
        notes.append("No pair is complete: nothing can be said about a difference between the arms.")
    notes += _count_notes(pairs)
    if pairs and not domains:
        notes.append("No held-out domain is common to all finished cells: their losses cannot be compared.")
    notes += late_changes.notes(experiment)
    notes += _batch_notes(pairs)
    if any(
        len(a.layers) != len(b.layers)
        for pair in pairs
        for step in pair.common_steps[-1:]
        for a, b in [(pair.a.readings[step], pair.b.readings[step])]
    ):
        notes.append("The arms differ in depth: their layers are shown side by side but not compared one by one.")
    notes += _stale_notes(experiment, pairs)
    without = [cell.label for cell in experiment.cells if not cell.readings and cell.metrics]
    if without:
        notes.append(f"The layers of {', '.join(without)} were never read: roles and budgets do not cover them.")
    return notes + _role_notes(experiment.cells)


def _count_notes(pairs: list[Pair]) -> list[str]:
    """What too few pairs cannot show, fewest pairs first, with the arms if not all."""
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


def _stale_notes(experiment: ExperimentResult, pairs: list[Pair]) -> list[str]:
    """A sentence per step that training went beyond after the layers were last read, with its arms if not all."""
    arms = list(dict.fromkeys(pair.arm for pair in pairs))
    notes = {arm: common_step_of_pairs(arm, pairs).stale_note for arm in arms} or {
        arm: common_step_of_cells(cell for cell in experiment.cells if cell.arm == arm).stale_note
        for arm in experiment.arms
    }
    return grouped_notes(notes.items(), everything=len(notes), join=", ")


def _batch_notes(pairs: list[Pair]) -> list[str]:
    """What pairs no longer share where the arms' data differ, as declared."""
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
    """How many layers have a role before any training: what the scoring gives by chance."""
    notes = []
    untrained = [cell.readings[0] for cell in cells if 0 in cell.readings]
    if untrained:
        named = [role in ROLES for reading in untrained for role in roles_of(reading)]
        by_paper = sum(layer.role_paper in ROLES for reading in untrained for layer in reading.layers)
        rival = "" if untrained[0].scoring == "paper" else f", the paper's rule {by_paper}"
        notes.append(
            f"At step 0, before any training, {untrained[0].scoring} scoring gives {sum(named)} of {len(named)} "
            f"layers a role{rival}."
        )
    return notes
