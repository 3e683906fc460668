"""Findings on an arm: a question, an answer and a sentence each. Add one as a function and a line in `FINDINGS`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from orchestrator.analysis.common_step import common_step_of_pairs
from orchestrator.analysis.comparison import Comparison
from orchestrator.analysis.conservation import CONSERVED, Conservation
from orchestrator.analysis.flattening import at_step, layer_p, log_ratios
from orchestrator.analysis.formatting import low_to_high, number, share
from orchestrator.analysis.migration import LayerShift, RoleShift
from orchestrator.analysis.outlook import more_pairs, pairs_to_decide, pairs_to_move, seeds_to_agree
from orchestrator.analysis.statistics import PairedResult
from orchestrator.common.formatting import signed
from orchestrator.experiments.decision import ALPHA
from orchestrator.forensics.roles.routing import state

FLATTENED = 2.0  # ratio of the CVs from which a layer counts as flattened
LISTED = 4  # most layers or lines in a sentence; the tables have all


@dataclass(frozen=True)
class Scale:
    """An estimate with its interval, the value of no difference, and the band that counts as no difference."""

    value: float
    low: float | None
    high: float | None
    none: float
    band: tuple[float, float]
    level: int  # of the interval, per cent
    sides: tuple[str, str]  # meaning of an estimate below and above `none`


@dataclass(frozen=True)
class Finding:
    """The answer to one question on one arm against the baseline."""

    arm: str
    question: str
    answer: str  # a few words
    sure: bool  # true where the data decide the answer
    sentence: str  # the numbers behind it
    scale: Scale | None = None
    terms: tuple[str, ...] = ()  # keys of the glossary
    pairs: int | None = None  # that would decide it in all, if it goes on as it is; null where not known


def findings(c: Comparison, arm: str) -> list[Finding]:
    """Return the findings on `arm`, the most important question first, without those that lack data.

    The sentence of one that is not decided ends with what would decide it.
    """
    n, decided = len(c.seeds_of(arm)), not c.open_arms
    found = [finding for find in FINDINGS if (finding := find(c, arm)) is not None]
    return [
        replace(one, sentence=f"{one.sentence} {more_pairs(one.pairs - n, c.experiment, losses_decided=decided)}")
        if not one.sure and one.pairs is not None and one.pairs > n
        else one
        for one in found
    ]


def _loss(c: Comparison, arm: str) -> Finding | None:
    r = c.primary.get(arm)
    if r is None:
        return None
    answers = {"better": f"{arm} is better", "worse": f"{c.baseline} is better"}
    answers["equivalent"] = f"equivalent within {share(c.experiment.margin)}"
    sides = (f"{arm} better", f"{c.baseline} better")
    scale = Scale(r.delta, r.low, r.high, none=0.0, band=(-r.margin, r.margin), level=95, sides=sides)
    answer, terms = answers.get(r.verdict, r.verdict), ("verdict", "interval")
    band, error = (-r.margin, r.margin), ALPHA / len(c.compared)
    outlook = pairs_to_decide(c.deltas_of(arm), outside=(0.0, 0.0), within=band, error=error)
    return Finding(arm, "Which arm won?", answer, r.verdict in answers, _delta(c, r), scale, terms, outlook)


def _delta(c: Comparison, r: PairedResult) -> str:
    of_loss = f" ({signed(100 * r.delta / r.a, 2)} %)" if r.a else ""
    within = "" if r.low is None else f", 95 % interval {low_to_high(r.low, r.high, 4, plus=True)}"
    inside = r.p_equivalent is not None and r.p_equivalent <= ALPHA
    small = inside and r.low is not None and r.high is not None and -r.margin < r.low and r.high < r.margin
    less = f" (less than {share(c.experiment.margin)})" if r.verdict in ("better", "worse") and small else ""
    decisive = r.p_equivalent if r.verdict == "equivalent" else r.p_adjusted
    p = "" if decisive is None else f", p = {decisive:.2g}"
    return (
        f"Test loss {number(r.a, 4)} → {number(r.b, 4)}: Δ {signed(r.delta, 4)} nats/token{of_loss}{within}{less}; "
        f"{_pairs(r.n)}{p}."
    )


def _roles(c: Comparison, arm: str) -> Finding | None:
    shift = next((s for s in c.role_shifts if s.arm == arm), None)
    if shift is None:
        return None
    differ = len(shift.layers) - shift.across.same
    within = [1.0 - side.same / len(shift.layers) for side in (shift.within_a, shift.within_b) if side]
    beside = f" (two seeds of one arm: in {len(shift.layers) * sum(within) / len(within):.3g})" if within else ""
    sentence = f"At one seed the arms' roles differ in {differ:.3g} of {len(shift.layers)} layers{beside}"
    p = "" if shift.p is None else f", p = {shift.p:.2g}"
    sentence += f"; {_pairs(len(shift.seeds))} at {_when(c, arm)}{p}."
    sentence = " ".join(filter(None, [sentence, changes(shift)]))
    alone = _significant(shift)
    answer = f"{_first([f'L{layer.layer}' for layer in alone])} moved" if alone else shift.verdict
    sentence, terms = f"{sentence} {shift.sentence}".rstrip(), ("role", "role_shift")
    sides = ([layer.roles_a for layer in shift.layers], [layer.roles_b for layer in shift.layers])  # [L][n]
    a, b = (list(zip(*by_layer, strict=True)) for by_layer in sides)
    outlook = pairs_to_move(a, b) if answer == "inconclusive" else None
    sure = shift.verdict == "roles moved"
    return Finding(arm, "Which layers changed role?", answer, sure, sentence, None, terms, outlook)


def changes(shift: RoleShift) -> str:
    """Return the sentences on the layers that differ: those that moved, then those that differ at some seed."""
    n, alone, told = len(shift.seeds), _significant(shift), list[str]()
    moved = alone or [layer for layer in shift.layers if unanimous(layer)]
    if moved:
        which = f"Layers with p ≤ {ALPHA}" if alone else "Changed in every seed" if n > 1 else "Changed"
        told.append(f"{which}: {_first(list(map(_move, sorted(moved, key=lambda layer: -layer.distance))))}.")
    some = [f"L{layer.layer} ({differing(layer)} of {n})" for layer in shift.layers if layer not in moved]
    if some := [one for one in some if " (0 of" not in one]:
        told.append(f"{'Also different' if moved else 'Different'} at some seed: {_first(some)}.")
    return " ".join(told)


def _significant(shift: RoleShift) -> list[LayerShift]:
    """Return the layers that differ by themselves."""
    return [layer for layer in shift.layers if layer.p is not None and layer.p <= ALPHA]


def _first(words: list[str]) -> str:
    """Return the first words, and the number of the others."""
    return ", ".join(words[:LISTED]) + (f" and {len(words) - LISTED} more" if len(words) > LISTED else "")


def unanimous(layer: LayerShift) -> bool:
    """Return true where the layer has one state in every seed of one arm and another in every seed of the other."""
    a, b = set(map(state, layer.roles_a)), set(map(state, layer.roles_b))
    return len(a) == len(b) == 1 and a != b


def differing(layer: LayerShift) -> int:
    """Return the number of seeds at which the layer has one state in one arm and another in the other."""
    return sum(state(a) != state(b) for a, b in zip(layer.roles_a, layer.roles_b, strict=True))


def _move(layer: LayerShift) -> str:
    a, b = (Counter(map(state, roles)).most_common(1)[0][0] for roles in (layer.roles_a, layer.roles_b))
    return f"L{layer.layer} {a} → {b}"


def _concentration(c: Comparison, arm: str) -> Finding | None:
    """Name the layers whose CV at least halved or doubled in every seed; None where there are none."""
    at = common_step_of_pairs(arm, c.pairs)
    seeds = [pair.seed for pair in at.read]
    table = c.tables["flattening"]
    ratios = log_ratios(table, arm, at.step, seeds)  # [layers, seeds]
    flat = ratios.index[ratios.min(axis=1) >= np.log(FLATTENED)].tolist()
    raised = ratios.index[ratios.max(axis=1) <= -np.log(FLATTENED)].tolist()
    if at.untrained or not (flat or raised):
        return None
    mean, by_layer, p = np.exp(ratios.mean(axis=1)), at_step(table, arm, at.step).groupby("layer"), layer_p(ratios)
    changes = []
    for i in sorted([*flat, *raised]):
        a, b = (by_layer[side].mean().get(i) for side in ("saturated_a", "saturated_b"))
        changes.append(f"L{i} {mean[i]:.{1 if mean[i] >= 1 else 2}f} × ({number(a, 0)} → {number(b, 0)} saturated)")
    listed = {word: ", ".join(f"L{i}" for i in layers) for word, layers in (("flattened", flat), ("raised", raised))}
    answer = "; ".join(f"{layers} {word}" for word, layers in listed.items() if layers)
    where = f"in each of {len(seeds)} seeds" if len(seeds) > 1 else f"at seed {seeds[0]}"
    largest = max((p[i] for i in [*flat, *raised]), default=None) if p else None
    sign = "=" if len(changes) == 1 else "≤"
    chance = "" if largest is None else f"; p {sign} {largest:.2g}, corrected for the number of layers"
    sentence = f"CV of FFN co-magnitude, {c.baseline} / {arm}, {where} at {at.text}: {', '.join(changes)}{chance}."
    sure = largest is not None and largest <= ALPHA
    sentence, terms = f"{sentence} {at.unread_note}".rstrip(), ("cv", "flattening")
    return Finding(arm, "Which layers were flattened?", answer, sure, sentence, None, terms)


def _budget(c: Comparison, arm: str) -> Finding | None:
    r = c.budgets.get(arm)
    if r is None:
        return None
    sure = r.verdict in ("conserved", "not conserved")  # that nothing is seen to move is an absence of evidence
    sides = (f"fewer in {arm}", f"more in {arm}")
    scale = None if r.ratio is None else Scale(r.ratio, r.low, r.high, 1.0, CONSERVED, level=95, sides=sides)
    terms = ("saturated_robust", "conservation", "centre")
    logs = [float(np.log(ratio)) for ratio in r.ratios.values() if ratio is not None]
    band = (float(np.log(CONSERVED[0])), float(np.log(CONSERVED[1])))
    is_open = r.verdict == "inconclusive" and len(logs) == len(r.ratios)
    outlook = pairs_to_decide(logs, outside=band, within=band) if is_open else None
    return Finding(arm, "Was the budget conserved?", r.verdict, sure, _counts(r, _when(c, arm)), scale, terms, outlook)


def _counts(r: Conservation, when: str) -> str:
    if r.budget_a is None:
        return r.sentence
    chance = ""
    if r.expected_a is not None and r.expected_b is not None:
        chance = f" (by chance {number(r.expected_a, 1)} → {number(r.expected_b, 1)})"
    ratio = "" if r.ratio is None else f": above chance {number(r.ratio, 2)} ×"
    within = "" if r.low is None else f", 95 % interval {low_to_high(r.low, r.high, 2)}"
    held = ""
    if r.layers_a is not None and r.layers_b is not None:
        held = f", held by {number(r.layers_a, 1)} → {number(r.layers_b, 1)} layers"
    where = ""
    if r.centre_shift is not None:
        where = f" The budget's centre shifts by {signed(r.centre_shift, 2)} of the depth"
        if r.centre_low is not None:
            where += f", 95 % interval {low_to_high(r.centre_low, r.centre_high, 2, plus=True)}"
        where += "."
    return (
        f"Saturated positions {number(r.budget_a, 1)} → {number(r.budget_b, 1)}{chance}{ratio}{within}{held}; "
        f"{_pairs(r.n)} at {when}.{where} {r.sentence}".rstrip()
    )


def _intended(c: Comparison, arm: str) -> Finding | None:
    """Count the delivered lines of `expect` of both arms; None where there are none."""
    lines = [e for e in c.expectations if e.arm in (c.baseline, arm)]
    if not lines:
        return None
    delivered, failed = (sum(e.verdict == word for e in lines) for word in ("delivered", "not delivered"))
    missed = f", {failed} not" if failed else ""
    decided = f"{delivered} of {len(lines)} delivered{missed}"
    unmeasured = all(e.verdict == "not measured" for e in lines)
    answer = decided if delivered or failed else "not measured" if unmeasured else f"none of {len(lines)} decided"
    when = {e.step: "" if e.step is None else f" at step {e.step}" for e in lines}
    listed = [
        f"{e.wanted}: {number(e.mean, 2)} ({e.holding} of {e.n} seeds{when[e.step]}), {e.verdict}"
        for e in lines[:LISTED]
    ]
    more = f"; and {len(lines) - LISTED} more" if len(lines) > LISTED else ""
    sure = delivered + failed == len(lines)
    needed = [seeds_to_agree(e.holding, e.n) for e in lines if e.verdict == "inconclusive"]
    known = [seeds for seeds in needed if seeds is not None]
    outlook = max(known) if known and len(known) == len(needed) else None
    sentence, question = f"{'; '.join(listed)}{more}.", "Did it organise as intended?"
    return Finding(arm, question, answer, sure, sentence, None, ("expect",), outlook)


def _when(c: Comparison, arm: str) -> str:
    """Return the step at which the layers of the pairs are compared, as text."""
    return common_step_of_pairs(arm, c.pairs).text


def _pairs(n: int) -> str:
    return f"{n} pair{'s' * (n != 1)}"


FINDINGS: tuple[Callable[[Comparison, str], Finding | None], ...] = (_loss, _roles, _concentration, _budget, _intended)
