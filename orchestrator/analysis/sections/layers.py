"""Build the tables of the layers: roles, saturation, budget, symmetry, multipliers, pathologies."""

from __future__ import annotations

from orchestrator.analysis.cells import CellResult
from orchestrator.analysis.common_step import CommonStep, common_step, common_step_of_pairs
from orchestrator.analysis.comparison import Comparison
from orchestrator.analysis.conservation import REGIONS, THRESHOLDS, Conservation
from orchestrator.analysis.flattening import mean_flattening
from orchestrator.analysis.formatting import grouped_notes, low_to_high, number, seed_list
from orchestrator.analysis.multipliers import agreement, in_order
from orchestrator.analysis.pairs import Pair
from orchestrator.analysis.sections.section import Roles, Section, TableCell
from orchestrator.analysis.statistics import mean_of_known
from orchestrator.analysis.symmetry import PAPER_SPREAD, Symmetry
from orchestrator.common.formatting import signed
from orchestrator.forensics.reading import LayerReport

BUDGET_ROWS = {  # name → its key in the glossary
    "a (by chance)": "saturated_robust_expected", "b (by chance)": "saturated_robust_expected",
    "excess b / a": "conservation", "95 % interval": "interval", "p": "conservation",
    "layers that hold it, a": "effective_layers", "in b": "effective_layers",
    "centre of a, 0…1": "centre", "centre of b": "centre", "shift, b − a": "centre", "its 95 % interval": "interval",
    "distance": "centre", "p, moved": "moved", "verdict": "conservation",
}  # fmt: skip
SIGNS = {1: "▲", 0: " ", -1: "▼"}  # multiplier above its cell's mean in every seed, neither, below it in every seed
WORDS_UP_TO = 2  # most seeds whose roles are written as words, not letters


def by_layer(c: Comparison, arms: list[str]) -> Section:
    """Return a row per layer of one arm, or of two side by side; means over the seeds."""
    at, paired = _common_step(c, arms), len(arms) == 2
    stacks = _layers_read(arms, at)
    words = max((len(stack) for stack in stacks), default=0) <= WORDS_UP_TO
    flat = mean_flattening(c.tables["flattening"], arms[1], at.step) if paired else {}
    rows: list[list[TableCell]] = []
    for index in range(max((len(layers) for stack in stacks for layers in stack), default=0)):
        seeds = [_layer(stack, index) for stack in stacks]  # per arm
        rows.append(
            [str(index), " → ".join(number(mean_of_known(layer.width for layer in own), 0) for own in seeds),
             *(Roles([layer.role for layer in own], words) for own in seeds),
             *(_written(own, "cv", 2) for own in seeds), *([number(flat.get(index), 2)] if paired else []),
             *(f"{_written(own, 'saturated_robust')} ({_written(own, 'saturated_robust_expected')})" for own in seeds)]
        )  # fmt: skip
    names, seeds_read = ["a", "b"] if paired else [""], seed_list(one.seed for one in at.read)
    columns = [
        "layer", "width\na → b" if paired else "width", *(f"roles {n}\nseed {seeds_read}" for n in names),
        *(f"CV\n{n}" for n in names), *(["CV\na / b"] if paired else []), *(f"satur.\n{n}" for n in names),
    ]  # fmt: skip
    notes = [
        "CV: of FFN co-magnitude (a / b: geometric mean); H/S or ·: a tie; –: no role",
        "satur.: FFN positions above the robust threshold (by chance)",
        *filter(None, [at.unread_note]),
    ]
    which = f"a = {arms[0]}, b = {arms[1]}" if paired else arms[0]
    return Section(f"Layers at {at.text} ({which})", columns, rows, notes, {"CV\na / b": "flattening"})


def flattening(c: Comparison, arm: str) -> Section:
    """Return each layer's CV and largest entry in both arms; means over the seeds."""
    at = _common_step(c, [c.baseline, arm])
    flat, stacks = mean_flattening(c.tables["flattening"], arm, at.step), _layers_read([c.baseline, arm], at)
    rows: list[list[TableCell]] = [
        [str(layer), *(_written(own, "cv", 3) for own in seeds), number(ratio, 2),
         *(_written(own, "max_abs", 3) for own in seeds)]
        for layer, ratio in flat.items()
        for seeds in [[_layer(stack, layer) for stack in stacks]]
    ]  # fmt: skip
    columns = ["layer", "CV\na", "CV\nb", "CV\na / b", "max |w|\na", "max |w|\nb"]
    notes = ["max |w|: the largest absolute entry of the layer's matrices", *filter(None, [at.unread_note])]
    title = f"Flattening at {at.text}: a = {c.baseline}, b = {arm}"
    return Section(title, columns, rows, notes, {"CV\na / b": "flattening"})


def role_shifts(c: Comparison, arm: str) -> Section:
    """Return the layers in which the arms' roles differ, the most different first."""
    shift = next((s for s in c.role_shifts if s.arm == arm), None)
    rows: list[list[TableCell]] = []
    notes = []
    if shift:
        for layer in sorted(shift.layers, key=lambda layer: -layer.distance):
            if layer.distance > 0:
                a, b = (Roles(roles, words=len(roles) <= WORDS_UP_TO) for roles in (layer.roles_a, layer.roles_b))
                rows.append([str(layer.layer), a, b, number(layer.distance, 2), number(layer.p, 2)])
        within = [overlap for overlap in (shift.within_a, shift.within_b) if overlap]
        beside = "".join(f"; two seeds of {name} on {number(overlap.same, 1)}"
                         for name, overlap in zip((c.baseline, arm), within, strict=False))  # fmt: skip
        notes = [
            f"At one seed the arms agree on the state of {number(shift.across.same, 1)} of {len(shift.layers)} layers "
            f"on average (by chance on {number(shift.across.expected, 1)}){beside}.",
            *filter(None, [shift.sentence]),
            f"All layers together: p = {number(shift.p, 3)} ({len(shift.seeds)} pairs cannot give less than "
            f"{number(shift.smallest_p, 3)}). The p of each layer is corrected for the number of layers.",
        ]
    title = f"Layers whose role differs at {_common_step(c, [c.baseline, arm]).text}: a = {c.baseline}, b = {arm}"
    return Section(title, ["layer", "roles a", "roles b", "distance", "p"], rows, notes, {"p": "role_shift"})


def persistence(c: Comparison) -> Section:
    """Count role changes from reading to reading, observed and by chance."""
    rows: list[list[TableCell]] = [
        [t.arm, str(t.layers), str(t.changed), number(t.changed_expected, 1), number(t.kappa, 2)] for t in c.transitions
    ]
    columns = ["arm", "layers × intervals", "changed", "by chance", "κ"]
    return Section("Persistence of roles between successive readings", columns, rows)


def budgets(c: Comparison, arm: str) -> Section:
    """Return the specialist budget and the count by chance, a column per threshold."""
    found = [r for r in c.conservation if r.arm == arm]
    columns = [
        [
            *(f"{number(b, 0)} ({number(e, 0)})" for b, e in ((r.budget_a, r.expected_a), (r.budget_b, r.expected_b))),
            number(r.ratio, 2), low_to_high(r.low, r.high, 2), number(r.p, 3), number(r.layers_a, 1),
            number(r.layers_b, 1), number(r.centre_a, 2),
            number(r.centre_b, 2), signed(r.centre_shift, 2), low_to_high(r.centre_low, r.centre_high, 2, plus=True),
            number(r.distance, 3), number(r.moved_p, 3), r.verdict,
        ]
        for r in found
    ]  # fmt: skip
    notes = [
        "Positions above: the robust threshold; the untrained model's threshold (fixed); the layer's own mean + 3 std.",
        "Excess: positions beyond those by chance. Middle, late: those above the robust threshold in these thirds.",
        *grouped_notes(((_budget_name(r), r.sentence) for r in found), join=", "),
    ]
    at = _common_step(c, [c.baseline, arm])
    when = "" if at.step is None else f" at {at.text}"
    title = f"Specialist budget: saturated FFN positions{when}, mean over seeds"
    rows = list(zip(BUDGET_ROWS, *columns, strict=True))
    return Section(title, ["", *map(_budget_name, found)], rows, notes, BUDGET_ROWS)


def _budget_name(r: Conservation) -> str:
    return THRESHOLDS[r.reference] if r.region == REGIONS[0] else r.region


def spreads(c: Comparison) -> Section:
    """Return the spread of attention's share of the energy over the layers of every arm."""
    paper = ", ".join(f"{name} {std:g}" for name, std in PAPER_SPREAD.items())
    return _spreads(c, c.symmetry, "of the energy", f"The paper has for std: {paper}.")


def write_spreads(c: Comparison) -> Section:
    """Return the spread of attention's share of what both branches write over the layers of every arm."""
    note = "Energy also differs where weights were only scaled or decayed; what is written does not."
    return _spreads(c, c.write_symmetry, "of what both branches write", note)


def _spreads(c: Comparison, symmetry: list[Symmetry], share: str, note: str) -> Section:
    rows: list[list[TableCell]] = []
    sentences: list[tuple[str, str]] = []
    for r in symmetry:
        sentences.append((r.arm, r.sentence))
        if r.n != symmetry[0].n or r.a != symmetry[0].a:
            own = f"compared over {r.n} pair{'s' * (r.n != 1)}, in which {c.baseline} has {number(r.a, 3)}."
            sentences.append((r.arm, own))
        if not rows:
            rows.append([c.baseline, number(r.a, 3), number(r.range_a, 2), "", "", str(r.n), ""])
        delta = [signed(r.delta, 3), low_to_high(r.low, r.high, 3, plus=True)]
        rows.append([r.arm, number(r.b, 3), number(r.range_b, 2), *delta, str(r.n), number(r.p, 3)])
    when = ", ".join(dict.fromkeys(_common_step(c, [c.baseline, r.arm]).text for r in symmetry))
    return Section(
        f"Symmetry: spread of attention's share {share} over the layers at {when}",
        ["arm", "std", "range", f"Δ std to {c.baseline}", "95 % interval", "n", "p"],
        rows,
        [note, *grouped_notes(sentences, join=", ")],
        {"p": "p_spread", f"Δ std to {c.baseline}": "delta"},
    )


def damages(c: Comparison, arm: str) -> Section:
    """Return what deleting each layer costs in both arms beside its roles there, and whether that differs."""
    found = next((shift for shift in c.damage if shift.arm == arm), None)
    if found is None:
        return Section("", [], [])
    compared = [pair for pair in c.pairs if pair.arm == arm and pair.seed in found.seeds]
    stacks = [[pair.cells[side].damages[found.step]["layers"] for pair in compared] for side in (0, 1)]
    rows: list[list[TableCell]] = []
    for of in found.layers:
        roles = ([layers[of.layer]["role"] for layers in of_arm] for of_arm in stacks)
        rows.append(
            [str(of.layer), *(Roles(of_arm, words=False) for of_arm in roles), number(of.a, 3), number(of.b, 3),
             signed(of.delta, 3), low_to_high(of.low, of.high, 3, plus=True), number(of.p, 3)]
        )  # fmt: skip
    title = f"Damage of deleting each layer at step {found.step}, nats/token: a = {c.baseline}, b = {arm}"
    over = f"{len(found.seeds)} pair{'s' * (len(found.seeds) != 1)}"
    note = f"Means over {over} and over the domains; p is corrected for the {len(rows)} layers."
    columns = ["layer", "roles a", "roles b", "a", "b", "Δ = b − a", "95 % interval", "p"]
    left = f"Seeds left out, not intervened on alike: {', '.join(map(str, found.left_out))}." if found.left_out else ""
    terms = {"a": "damage", "b": "damage", "p": "p_layers"}
    return Section(title, columns, rows, [note, *filter(None, [left])], terms)


def multipliers(c: Comparison, arm: str) -> list[Section]:
    """Return a table per channel of the arm's sidecar: each layer's multipliers, flattening and saturation."""
    at = _common_step(c, [c.baseline, arm])
    flat, stacks = mean_flattening(c.tables["flattening"], arm, at.step), _layers_read([c.baseline, arm], at)
    found = []
    for channel, a in agreement(c.cells_of(arm)).items():
        kinds = list(dict.fromkeys(a.kinds))
        written = {
            (layer, kind): f"{mean:.2f}{SIGNS[int(sign)]}"
            for layer, kind, mean, sign in zip(a.layers, a.kinds, a.mean, a.sign, strict=True)
        }
        rows: list[list[TableCell]] = []
        for layer in in_order(a.layers):
            read = [[] if layer is None else _layer(stack, layer) for stack in stacks]
            saturated = " → ".join(_written(own, "saturated_robust") for own in read)
            values = [written.get((layer, kind), "–") for kind in kinds]
            flattening = number(flat.get(layer) if layer is not None else None, 2)
            rows.append(["–" if layer is None else str(layer), *values, flattening, saturated])
        more, less = int((a.sign > 0).sum()), int((a.sign < 0).sum())
        notes = [
            "Geometric means over the run and the seeds; ▲ (▼): above (below) the cell's own mean in every seed.",
            f"{a.agreeing} of {len(a.units)} values agree in all {a.seeds} seeds ({more} ▲, {less} ▼); "
            f"coin tosses would give {a.by_chance:.1f}.",
        ]
        if {"q", "k"} <= set(kinds):
            notes.append("q and k share their evidence, and so do v and o, so their values are not independent.")
        title = f"Sidecar of {arm}: multipliers of {channel}"
        terms = dict.fromkeys(kinds, "sidecar") | {"CV\na / b": "flattening"}
        found.append(Section(title, ["layer", *kinds, "CV\na / b", "satur.\na → b"], rows, notes, terms))
    return found


def pathologies(c: Comparison) -> Section:
    """List the tensors out of proportion to their peers, at their worst reading, the largest ratio first."""
    worst: dict[tuple[str, str], tuple[float, int, str, str]] = {}
    for cell in c.experiment.cells:
        for step, reading in cell.readings.items():
            for found in reading.pathology:
                key, now = (cell.label, found.tensor), (found.ratio, step, found.severity, found.blemish)
                worst[key] = max(worst.get(key, now), now)
    rows: list[list[TableCell]] = [
        [label, tensor, blemish or f"{ratio:.1f}", str(step), severity]
        for (label, tensor), (ratio, step, severity, blemish) in sorted(worst.items(), key=lambda item: -item[1][0])
    ]
    return Section("Tensors out of proportion", ["cell", "tensor", "× its peers", "step", "severity"], rows)


def _common_step(c: Comparison, arms: list[str]) -> CommonStep[Pair] | CommonStep[CellResult]:
    """Return the common step of the complete pairs of two arms, or of the cells of one."""
    return common_step_of_pairs(arms[1], c.pairs) if len(arms) == 2 else common_step(c.cells_of(arms[0]))


def _layers_read(arms: list[str], at: CommonStep[Pair] | CommonStep[CellResult]) -> list[list[list[LayerReport]]]:
    """Return the layer reports at the common step, per arm and seed."""
    if at.step is None:
        return [[] for _ in arms]
    return [[one.cells[side].readings[at.step].layers for one in at.read] for side in range(len(arms))]


def _layer(stack: list[list[LayerReport]], index: int) -> list[LayerReport]:
    """Return one layer's report of every seed that has the layer."""
    return [layers[index] for layers in stack if index < len(layers)]


def _written(seeds: list[LayerReport], measure: str, digits: int = 0) -> str:
    """Write the mean of one layer's measure over the seeds that have it."""
    return number(mean_of_known(layer.measures.get(measure) for layer in seeds), digits)
