"""Tables of what happened inside the layers: roles, saturation, budget, symmetry, multipliers."""

from __future__ import annotations

from typing import Any

from orchestrator.analysis.cells import CellResult
from orchestrator.analysis.comparison import Comparison
from orchestrator.analysis.conservation import THRESHOLDS
from orchestrator.analysis.endings import Ending, ending_of_cells, ending_of_pairs
from orchestrator.analysis.flattening import mean_flattening
from orchestrator.analysis.multipliers import agreement
from orchestrator.analysis.pairs import Pair
from orchestrator.analysis.sections.section import Cell, Roles, Section
from orchestrator.analysis.statistics import mean_of_known
from orchestrator.analysis.symmetry import PAPER_SPREAD
from orchestrator.analysis.wording import listed, number, signed, span

BUDGET_TERMS = {  # of its rows
    "a (by chance)": "saturated_robust_expected", "b (by chance)": "saturated_robust_expected",
    "ratio b / a": "conservation", "90 % interval": "conservation", "ratio by chance": "conservation",
    "centre of a, 0…1": "centre", "centre of b": "centre", "shift, b − a": "centre", "95 % interval": "interval",
    "distance": "centre", "verdict": "conservation",
}  # fmt: skip
MARKS = {1: "▲", 0: " ", -1: "▼"}  # a multiplier above its cell's mean, either, below it in every seed
WORDS_UP_TO = 2  # seeds whose roles are written as words; more are letters


def layers(c: Comparison, arms: list[str]) -> Section:
    """Layer by layer, means over the seeds shown; with two arms side by side and their `flattening`."""
    end = _ending(c, arms)
    stacks = _last_layers(arms, end)  # per arm, per seed: the layers of its reading
    depth = max((len(layers) for stack in stacks for layers in stack), default=0)
    words = max((len(stack) for stack in stacks), default=0) <= WORDS_UP_TO
    names = ["a", "b"] if len(arms) == 2 else [""]
    flat = mean_flattening(c.tables["flattening"], arms[1], end.step) if len(arms) == 2 else {}
    rows: list[list[Cell]] = []
    for index in range(depth):
        at = [[layers[index] for layers in stack if index < len(layers)] for stack in stacks]
        width = " → ".join(number(mean_of_known(layer["width"] for layer in seeds), 0) for seeds in at)
        cv = [_mean(seeds, "cv") for seeds in at]
        paired = [number(flat.get(index), 2)] if len(arms) == 2 else []
        rows.append(
            [str(index), width, *(Roles([layer["role"] for layer in seeds], words) for seeds in at),
             *(number(v, 2) for v in cv), *paired, *(_saturated(seeds) for seeds in at)]
        )  # fmt: skip
    who = f"a = {arms[0]}, b = {arms[1]}" if len(arms) == 2 else arms[0]
    seeds = listed(one.seed for one in end.read)
    columns = [
        "layer", "width\na → b" if len(arms) == 2 else "width", *(f"roles {n}\nseed {seeds}" for n in names),
        *(f"CV\n{n}" for n in names), *(["CV\na / b"] if len(arms) == 2 else []), *(f"satur.\n{n}" for n in names),
    ]  # fmt: skip
    legend = [
        "CV: of FFN co-magnitude (a / b: geometric mean) · H/S or ·: a tie",
        "satur.: positions over the robust threshold (by chance)",
    ]
    notes = [*legend, *filter(None, [end.without])]
    return Section(f"Layers at {end.when} ({who})", columns, rows, notes, {"CV\na / b": "flattening"})


def shifts(c: Comparison, arm: str) -> Section:
    """The layers in which the arms' roles differ, most different first."""
    shift = next((s for s in c.role_shifts if s.arm == arm), None)
    when = _ending(c, [c.baseline, arm]).when
    rows: list[list[Cell]] = []
    for layer in sorted(shift.layers, key=lambda x: -x.distance) if shift else []:
        if layer.distance > 0:
            a, b = (Roles(roles, words=len(roles) <= WORDS_UP_TO) for roles in (layer.roles_a, layer.roles_b))
            rows.append([str(layer.layer), a, b, number(layer.distance, 2), number(layer.p, 2)])
    notes = []
    if shift:
        across, depth = shift.across, len(shift.layers)
        within = [x for x in (shift.within_a, shift.within_b) if x]
        beside = "".join(f", between two seeds of {name} {number(x.same, 1)}"
                         for name, x in zip((c.baseline, arm), within, strict=False))  # fmt: skip
        notes.append(
            f"On average {number(across.same, 1)} of {depth} layers have one state in both arms at one seed "
            f"({number(across.expected, 1)} if roles were dealt at random){beside}."
        )
        notes += filter(None, [shift.sentence])
        notes.append(f"All layers together: p = {number(shift.p, 3)}; {len(shift.seeds)} pairs cannot give less than "
                     f"{number(shift.smallest_p, 3)}. p of a layer is corrected for their number.")  # fmt: skip
    return Section(
        f"Layers whose role differs at {when}: a = {c.baseline}, b = {arm}",
        ["layer", "roles a", "roles b", "distance", "p"],
        rows,
        notes,
        {"p": "role_shift"},
    )


def persistence(c: Comparison) -> Section:
    """How steady roles are from reading to reading, beside roles dealt at random."""
    rows: list[list[Cell]] = [
        [t.arm, str(t.layers), str(t.changed), number(t.changed_expected, 1), number(t.kappa, 2)] for t in c.transitions
    ]
    unjudged = dict.fromkeys(r.sentence for r in c.coincidences if not any(one.intervals for one in c.coincidences))
    notes = [f"Whether layers change roles where the loss drops cannot be said: {sentence}" for sentence in unjudged]
    return Section(
        "How steady roles are between successive readings",
        ["arm", "layers × intervals", "changed", "if dealt at random", "κ"], rows, notes,
    )  # fmt: skip


def coincidences(c: Comparison) -> Section:
    """Whether layers change roles in the intervals in which the loss drops, arm by arm and domain by domain."""
    rows: list[list[Cell]] = []
    said: dict[str, list[str]] = {}  # sentence → what it is said of
    for r in (one for one in c.coincidences if one.intervals):
        counts = [str(r.intervals), str(r.drops), str(r.transitions), str(r.together)]
        rows.append([r.arm, c.name_of(r.domain), *counts, number(r.expected, 1), number(r.p, 3)])
        if r.sentence:
            said.setdefault(r.sentence, []).append(f"{r.arm}, {c.name_of(r.domain)}")
    notes = [
        sentence if len(names) == len(rows) else f"{'; '.join(names)}: {sentence}" for sentence, names in said.items()
    ]
    if (tests := sum(r.p is not None for r in c.coincidences)) > 1:
        notes.append(f"{tests} tests, none corrected for the others.")
    columns = ["arm", "domain", "intervals", "drops", "transitions", "together", "by chance", "p"]
    terms = {"p": "p_coincidence", "domain": "coincidence", "transitions": "transition", "by chance": "coincidence"}
    return Section("Do layers change roles where the loss drops?", columns, rows, notes, terms)


def budgets(c: Comparison, arm: str) -> Section:
    """The specialist budget, one column per reference, beside what chance gives."""
    columns, said = [""], dict[str, list[str]]()  # sentence → the counts it holds for
    rows: list[list[Cell]] = [
        [name]
        for name in ("a (by chance)", "b (by chance)", "ratio b / a", "90 % interval", "ratio by chance",
                     "centre of a, 0…1", "centre of b", "shift, b − a",
                     "95 % interval", "distance", "verdict")
    ]  # fmt: skip
    for r in c.conservation:
        if r.arm != arm:
            continue
        columns.append(THRESHOLDS[r.reference])
        beside = [(r.budget_a, r.expected_a), (r.budget_b, r.expected_b)]
        values = [
            *(f"{number(b, 0)} ({number(e, 0)})" for b, e in beside), number(r.ratio, 2), span(r.low, r.high, 2),
            number(r.chance_ratio, 2), number(r.centre_a, 2), number(r.centre_b, 2), signed(r.centre_shift, 2),
            span(r.centre_low, r.centre_high, 2, plus=True), number(r.distance, 3), r.verdict,
        ]  # fmt: skip
        for row, value in zip(rows, values, strict=True):
            row.append(value)
        if r.sentence:
            said.setdefault(r.sentence, []).append(THRESHOLDS[r.reference])
    legend = "Counted over the robust threshold, the untrained model's (fixed), the layer's own mean + 3 std."
    notes = [f"{', '.join(counts)}: {sentence}" for sentence, counts in said.items()]
    when = _ending(c, [c.baseline, arm])
    at = "" if when.step is None else f" at {when.when}"
    title = f"Specialist budget: saturated FFN positions of the whole stack{at}, mean over seeds"
    return Section(title, columns, rows, [legend, *notes], BUDGET_TERMS)


def spreads(c: Comparison) -> Section:
    """How far the layers of every arm part from each other."""
    rows: list[list[Cell]] = []
    said: dict[str, list[str]] = {}  # sentence → the arms it holds for
    for r in c.symmetry:
        if r.sentence:
            said.setdefault(r.sentence, []).append(r.arm)
        if r.n != c.symmetry[0].n or r.a != c.symmetry[0].a:
            alone = f"{r.n} pair{'s' * (r.n != 1)} alone, where {c.baseline} has {number(r.a, 3)}."
            said.setdefault(alone, []).append(r.arm)
        if not rows:
            rows.append([c.baseline, number(r.a, 3), number(r.range_a, 2), "", "", str(r.n), ""])
        delta = [signed(r.delta, 3), span(r.low, r.high, 3, plus=True)]
        rows.append([r.arm, number(r.b, 3), number(r.range_b, 2), *delta, str(r.n), number(r.p, 3)])
    when = ", ".join(dict.fromkeys(_ending(c, [c.baseline, r.arm]).when for r in c.symmetry))
    notes = [f"{', '.join(arms)}: {sentence}" for sentence, arms in said.items()]
    return Section(
        f"Symmetry: spread of attention's share of the energy over the layers at {when}",
        ["arm", "std", "range", f"Δ std to {c.baseline}", "95 % interval", "n", "p"],
        rows,
        [f"Beside it: {', '.join(f'{name} {std:g}' for name, std in PAPER_SPREAD.items())}.", *notes],
        {"p": "p_alone", f"Δ std to {c.baseline}": "delta"},
    )


def multipliers(c: Comparison, arm: str) -> list[Section]:
    """Per channel of the arm's sidecar: multipliers, where the seeds agree, and what became of the layer."""
    found = []
    end = _ending(c, [c.baseline, arm])
    flat, stacks = (
        mean_flattening(c.tables["flattening"], arm, end.step),
        _last_layers([c.baseline, arm], end),
    )
    for channel, a in agreement(c.cells_of(arm)).items():
        kinds = list(dict.fromkeys(a.kinds))
        at = {(layer, kind): i for i, (layer, kind) in enumerate(zip(a.layers, a.kinds, strict=True))}
        rows: list[list[Cell]] = []
        for layer in sorted(set(a.layers)):
            marks = [
                "–" if (i := at.get((layer, kind))) is None else f"{a.mean[i]:.2f}{MARKS[int(a.sign[i])]}"
                for kind in kinds
            ]
            counts = [_mean([layers[layer] for layers in stack if layer < len(layers)], "saturated_robust")
                      for stack in stacks]  # fmt: skip
            rows.append([str(layer), *marks, number(flat.get(layer), 2), " → ".join(number(n, 0) for n in counts)])
        more, less = int((a.sign > 0).sum()), int((a.sign < 0).sum())
        notes = [
            "Geometric means over the run and the seeds; ▲ above the cell's own mean in every seed, ▼ below it.",
            f"Of {len(a.units)} values {a.agreeing} agree in all {a.seeds} seeds ({more} ▲, {less} ▼); "
            f"tossed coins would in {a.by_chance:.1f}.",
        ]
        if {"q", "k"} <= set(kinds):
            notes.append("q and k share their evidence, and so do v and o: they are fewer coins than values.")
        title = f"Sidecar of {arm}: multipliers of {channel}"
        terms = dict.fromkeys(kinds, "sidecar") | {"CV\na / b": "flattening"}
        found.append(Section(title, ["layer", *kinds, "CV\na / b", "satur.\na → b"], rows, notes, terms))
    return found


def pathologies(c: Comparison) -> Section:
    """Tensors out of proportion to their peers at any reading, worst first; each cell's worst reading of each."""
    worst: dict[tuple[str, str], tuple[float, int, str]] = {}
    for cell in c.experiment.cells:
        for step, reading in cell.readings.items():
            for found in reading["pathology"]:
                key, now = (cell.label, found["tensor"]), (found["ratio"], step, found["severity"])
                worst[key] = max(worst.get(key, now), now)
    rows: list[list[Cell]] = [
        [label, tensor, f"{ratio:.1f}", str(step), severity]
        for (label, tensor), (ratio, step, severity) in sorted(worst.items(), key=lambda item: -item[1][0])
    ]
    return Section("Tensors out of proportion", ["cell", "tensor", "× its peers", "step", "severity"], rows)


def _ending(c: Comparison, arms: list[str]) -> Ending[Pair] | Ending[CellResult]:
    """Of the complete pairs of two arms, or of the cells of one."""
    return ending_of_pairs(arms[1], c.pairs) if len(arms) == 2 else ending_of_cells(c.cells_of(arms[0]))


def _last_layers(arms: list[str], end: Ending[Pair] | Ending[CellResult]) -> list[list[list[dict[str, Any]]]]:
    """Per arm and seed, the layers of its reading at the ending's step."""
    if end.step is None:
        return [[] for _ in arms]
    cells = [(one.a, one.b) if isinstance(one, Pair) else (one,) for one in end.read]
    return [[own[side].readings[end.step]["layers"] for own in cells] for side in range(len(arms))]


def _saturated(seeds: list[dict[str, Any]]) -> str:
    """Mean robust count, and the count by chance in parentheses."""
    count, chance = (_mean(seeds, measure) for measure in ("saturated_robust", "saturated_robust_expected"))
    return f"{number(count, 0)} ({number(chance, 0)})"


def _mean(seeds: list[dict[str, Any]], measure: str) -> float | None:
    """Of one layer, over those of the seeds that have the measure."""
    return mean_of_known(layer["measures"].get(measure) for layer in seeds)
