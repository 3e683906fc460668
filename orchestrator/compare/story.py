"""What was found, in a sentence each: which arm won, which layers changed role, whether the budget was conserved."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from orchestrator.compare.comparison import Comparison
from orchestrator.compare.conservation import CONSERVED, REFERENCES, Conservation
from orchestrator.compare.flattening import mean_flattening, newest
from orchestrator.compare.migration import LayerShift, state
from orchestrator.compare.numbers import number, signed, span
from orchestrator.compare.pairs import PRIMARY
from orchestrator.compare.statistics import ALPHA, EQUIVALENCE, PairedResult

FLATTENED = 2.0  # a CV this many times larger in one arm is told
TOLD = 4  # layers or lines; the tables have all


@dataclass(frozen=True)
class Scale:
    """An estimate with its interval, beside the value that says "no difference" and the band that counts as none."""

    value: float
    low: float | None
    high: float | None
    none: float
    band: tuple[float, float]
    level: int  # of the interval, per cent


@dataclass(frozen=True)
class Finding:
    """The answer to one question on one arm against the baseline."""

    arm: str
    question: str
    answer: str  # a verdict, as short as it can be said
    sure: bool  # whether the data decide it
    sentence: str  # the figures behind it
    scale: Scale | None = None


def findings(c: Comparison, arm: str) -> list[Finding]:
    """What a reader wants to know first of `arm`, in the order in which it is asked."""
    told = [_loss(c, arm), _roles(c, arm), _concentration(c, arm), _budget(c, arm), _intended(c, arm)]
    return [finding for finding in told if finding is not None]


def _loss(c: Comparison, arm: str) -> Finding | None:
    r = next((r for r in c.statistics if r.arm == arm and (r.metric, r.domain) == PRIMARY[0]), None)
    if r is None:
        return None
    answers = {
        "better": f"{arm} is better",
        "worse": f"{c.baseline} is better",
        "equivalent": "equivalent within 1\u00a0%",
    }
    margin = EQUIVALENCE * abs(r.a)
    scale = Scale(r.delta, r.low, r.high, 0.0, (-margin, margin), level=95)
    return Finding(arm, "Which arm won?", answers.get(r.verdict, r.verdict), r.verdict in answers, _delta(r), scale)


def _delta(r: PairedResult) -> str:
    share = f" ({signed(100 * r.delta / r.a, 1)} %)" if r.a else ""
    within = f", 95 % interval {span(r.low, r.high, 4, plus=True)}" if r.low is not None else ""
    return (
        f"Test loss {number(r.a, 4)} → {number(r.b, 4)}: Δ {signed(r.delta, 4)} nats/token{share}{within}; "
        f"{_pairs(r.n)}{'' if r.p_adjusted is None else f', p = {r.p_adjusted:.2g}'}."
    )


def _roles(c: Comparison, arm: str) -> Finding | None:
    shift = next((s for s in c.role_shifts if s.arm == arm), None)
    if shift is None:
        return None
    sure = shift.p is not None and shift.p <= ALPHA
    differ = len(shift.layers) - shift.across.same
    within = [1.0 - side.same / len(shift.layers) for side in (shift.within_a, shift.within_b) if side]
    beside = f", between two seeds of one arm {len(shift.layers) * sum(within) / len(within):.1f}" if within else ""
    sentence = f"{differ:.3g} of {len(shift.layers)} layers differ between the arms at one seed{beside}"
    sentence += "." if shift.p is None else f"; {_pairs(len(shift.seeds))}, p = {shift.p:.2g}."
    alone = [layer for layer in shift.layers if layer.p is not None and layer.p <= ALPHA]
    told = alone or [layer for layer in shift.layers if unanimous(layer)]
    if told:
        which = "By themselves" if alone else "In every seed" if len(shift.seeds) > 1 else "There"
        listed = ", ".join(map(_moved, sorted(told, key=lambda layer: -layer.distance)[:TOLD]))
        more = f" and {len(told) - TOLD} more" if len(told) > TOLD else ""
        sentence += f" {which}: {listed}{more}."
    answer = "roles moved" if sure else "inconclusive"
    return Finding(arm, "Which layers changed role?", answer, sure, sentence)


def unanimous(layer: LayerShift) -> bool:
    """Whether the layer has one state in every seed of one arm and another one in every seed of the other."""
    a, b = set(map(state, layer.roles_a)), set(map(state, layer.roles_b))
    return len(a) == len(b) == 1 and a != b


def _moved(layer: LayerShift) -> str:
    a, b = (Counter(map(state, roles)).most_common(1)[0][0] for roles in (layer.roles_a, layer.roles_b))
    return f"L{layer.layer} {a} → {b}"


def _concentration(c: Comparison, arm: str) -> Finding | None:
    """Layers whose CV at least halved or doubled in every seed; none where there are none."""
    rows = newest(c.tables["flattening"], arm)
    by_layer = rows.groupby("layer")
    low, high = by_layer["flattening"].min(), by_layer["flattening"].max()
    flat = [int(layer) for layer in low.index[low >= FLATTENED]]
    raised = [int(layer) for layer in high.index[high <= 1 / FLATTENED]]
    if not flat and not raised:
        return None
    mean, seeds = mean_flattening(c.tables["flattening"], arm), rows["seed"].nunique()
    told = []
    for i in sorted([*flat, *raised]):
        a, b = (by_layer[side].mean().get(i) for side in ("saturated_a", "saturated_b"))
        told.append(f"L{i} {mean[i]:.{1 if mean[i] >= 1 else 2}f} × ({number(a, 0)} → {number(b, 0)} saturated)")
    listed = {word: ", ".join(f"L{i}" for i in layers) for word, layers in (("flattened", flat), ("raised", raised))}
    answer = "; ".join(f"{layers} {word}" for word, layers in listed.items() if layers)
    where = f"in each of {seeds} seeds" if seeds > 1 else "in the one seed"
    sentence = f"CV of FFN co-magnitude, {c.baseline} over {arm}, {where}: {', '.join(told)}."
    return Finding(arm, "Which layers were flattened?", answer, seeds > 1, sentence)


def _budget(c: Comparison, arm: str) -> Finding | None:
    r = next((r for r in c.conservation if r.arm == arm and r.reference == REFERENCES[0]), None)
    if r is None:
        return None
    sure = r.verdict in ("conserved", "not conserved")
    scale = None if r.ratio is None else Scale(r.ratio, r.low, r.high, 1.0, CONSERVED, level=90)
    return Finding(arm, "Was the budget conserved?", r.verdict, sure, _counts(r), scale)


def _counts(r: Conservation) -> str:
    if r.budget_a is None:
        return r.sentence
    chance = ""
    if r.expected_a is not None and r.expected_b is not None:
        chance = f" (by chance {number(r.expected_a, 1)} → {number(r.expected_b, 1)})"
    ratio = "" if r.ratio is None else f": ratio {number(r.ratio, 2)}"
    within = "" if r.low is None else f", 90 % interval {span(r.low, r.high, 2)}"
    beside = "" if r.chance_ratio is None else f", {number(r.chance_ratio, 2)} by chance"
    where = ""
    if r.centre_a is not None and r.centre_b is not None:
        where = f" Its centre lies at {number(r.centre_a, 2)} → {number(r.centre_b, 2)} of the depth."
    return (
        f"Saturated positions {number(r.budget_a, 1)} → {number(r.budget_b, 1)}{chance}{ratio}{within}{beside}; "
        f"{_pairs(r.n)}.{where} {r.sentence}".rstrip()
    )


def _intended(c: Comparison, arm: str) -> Finding | None:
    """Of the lines for both arms of the pair; none where nothing was stated."""
    lines = [e for e in c.expectations if e.arm in (c.baseline, arm)]
    if not lines:
        return None
    delivered, failed = (sum(e.verdict == word for e in lines) for word in ("delivered", "not delivered"))
    missed = f", {failed} not" if failed else ""
    answer = f"{delivered} of {len(lines)} delivered{missed}" if delivered or failed else lines[0].verdict
    told = [f"{e.wanted}: {number(e.mean, 2)} ({e.holding} of {e.n} seeds), {e.verdict}" for e in lines[:TOLD]]
    more = f"; and {len(lines) - TOLD} more" if len(lines) > TOLD else ""
    sure = delivered + failed == len(lines)
    return Finding(arm, "Did it organise as intended?", answer, sure, f"{'; '.join(told)}{more}.")


def _pairs(n: int) -> str:
    return f"{n} pair{'s' * (n != 1)}"
