"""The terminal page of one reading: headline, table of layers and summary."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from rich.console import Group
from rich.table import Table
from rich.text import Text

from orchestrator.common.formatting import (
    Column,
    FittedTable,
    bar,
    beside,
    big,
    counted,
    dash,
    labelled,
    number,
    page,
    ranges,
)
from orchestrator.forensics.architecture.holdings import USUAL
from orchestrator.forensics.measures.change import Changes
from orchestrator.forensics.reading import LayerReport, Reading
from orchestrator.forensics.render.change import OF_ADAPTER, change_lines
from orchestrator.forensics.render.experts import EXPERTS
from orchestrator.forensics.render.missing import missing, substitutes
from orchestrator.forensics.roles.palette import colour, letter
from orchestrator.forensics.roles.routing import ROLES, Role

SHOWN = 4  # findings and super weights listed; the others are counted
SEVERITIES = {"warn": "yellow", "critical": "bold red"}
COUNTS = {"saturated_robust": "robust", "saturated": "mean + 3 std", "saturated_fixed": "above step 0's threshold"}
SATURATED = "positions above median + 3 robust std / by chance"
CV = "spread of FFN co-magnitude"
ATTENTION = "attention's share of energy"
MOMENTUM = "momentum_alignment.down"
RIVALS = {"calibrated": "paper", "paper": "calibrated"}  # the scoring that is not shown
WORDS = {  # evidence as it is printed, where the measure's own name is long
    "effective_rank.o_fraction": "rank o",
    "effective_rank.down_fraction": "rank down",
    MOMENTUM: "m·w down",
    "saturated_robust_fraction": "saturated",
    "post_norm_damped_fraction": "damped γ",
    "gamma_concentration": "γ concentration",
    "depletion_fraction": "depletion",
    "depleted": "depletion",
    "gain_cv": "gain cv",
    "gain_saturated": "loud positions",
    "loudest_gain": "loudest position",
    "ffn_cluster_evidence": "FFN kinds",
    "post_norm_concentration": "γ concentration",
    "super_weight_ratio": "super weight",
    "ffn_cluster_entropy": "FFN clusters",
    "unique_roles": "FFN kinds",
    "synapse_mediator": "mediator",
    "adjacent_alignment": "alignment",
}


def report(reading: Reading, seconds: float, parameters: int, change: Changes | None = None) -> Group:
    """The page of one reading. `parameters`: entries of the matrices that were read; `change`: what an adapter adds."""
    heading = Text(reading.source, "bold", overflow="fold")
    heading.append(
        f"\n{about(reading)} · {big(parameters)} parameters in the layers' matrices · read in {seconds:.1f} s",
        "not bold dim",
    )
    said = Group(headline(reading), *heads(reading))
    table = FittedTable(reading.layers, columns(reading))
    mixtures = [layer for layer in reading.layers if layer.experts]
    tables = [table, FittedTable(mixtures, EXPERTS)] if mixtures else [table]
    return page(heading, said, *tables, summary(reading, change))


def about(reading: Reading) -> str:
    """Family, what was chosen, step and depth: `mistral (layout of llama) · ema · step 1,000 · 11 layers`."""
    options = reading.options
    parts = [reading.family_and_layout, *filter(None, [options.weights])]
    if options.base is not None:
        parts.append(f"{'change' if options.delta else 'adapter'} on {options.base}")
    if reading.step is not None:
        parts.append(f"step {reading.step:,}")
    return " · ".join([*parts, counted(len(reading.layers), "layer")])


def headline(reading: Reading) -> Text:
    """A sentence that names the layers with a role."""
    layers = reading.layers
    named = [layer for layer in layers if leads(layer.role)]
    if reading.scoring == "paper":
        sentence = f"{len(named)} of {len(layers)} layers have a role by the paper's rule"
        return Text(sentence, "bold").append("; of an untrained model's layers some 60 % would.", "not bold")
    if not named:
        text = Text(f"{nothing(reading)[0].upper()}{nothing(reading)[1:]}.", "bold")
        by_paper = sum(leads(layer.role_paper) for layer in layers)
        rival = f" The paper's rule would name {by_paper} of {len(layers)}."
        return text.append(rival if len(layers) > 1 else "", "not bold dim")
    verb = "has" if len(named) == 1 else "have"
    text = Text(f"{len(named)} of {len(layers)} layers {verb} a role above chance: ", "bold")
    spans = [
        Text.assemble((role, f"not bold {colour(role)}"), (f" {ranges(indices, 'L')}", "not bold"))
        for role in ROLES
        if (indices := [layer.layer for layer in named if layer.role == role])
    ]
    return text.append(Text(" · ").join(spans))


def nothing(reading: Reading) -> str:
    """The phrase for a reading in which no layer has a role."""
    if len(reading.layers) == 1:
        return "a single layer has no peers to differ from"
    return "no role leads anywhere" if reading.scoring == "paper" else "no layer has a role above chance"


def columns(reading: Reading) -> list[Column]:
    """The table's columns; those of which no layer has the measure are left out."""
    layers = reading.layers
    largest = max((layer.measures["cv"] or 0.0 for layer in layers), default=0.0)
    known = {key for layer in layers for key, value in layer.measures.items() if value is not None}
    notable = [layer for layer in layers if is_notable(layer)]
    tie = "" if all(leads(layer.role) for layer in notable) else "two letters are a tie"
    rival = {"calibrated": "by the paper's rule, first letters", "paper": "above chance, first letters"}
    table = [
        Column("", lambda layer: str(layer.layer), 99),
        Column("holds", lambda layer: holds_text(layer.holds), 98, False),
        Column("role", role_text, 99, False, tie),
        Column("margin", lambda layer: number(layer.margin, ".2f") if is_notable(layer) else dash(), 96),
        Column("cv", lambda layer: bar(layer.measures["cv"], largest, ".2f"), 98, False, CV),
        Column("saturated", lambda layer: beside(layer.measures, "saturated_robust"), 97, True, SATURATED),
        Column("rank o", _cell("effective_rank.o_fraction", ".0%"), 90),
        Column("att.", _cell("attention_share", ".2f"), 92, True, ATTENTION),
        Column("in → out", _composition, 89, True, "composition with the layers below → above"),
        Column("write", _write, 94, True, "what the layer adds / what it reads"),
        Column("copy", _cell("copy_density", ".1f"), 93, True, "attention to copies / by chance"),
        Column("sink", _cell("sink_mass", ".0%"), 86, True, "attention to the first position"),
        Column("m·w", _cell(MOMENTUM, "+.2f"), 91, True, "momentum along the weight of down, + grows it"),
        Column("other", lambda layer: _other(layer, reading.scoring), 93, False, rival[reading.scoring]),
        Column("evidence", _evidence, 95, False),
    ]
    has = {
        "holds": any(layer.holds not in ([], USUAL) for layer in layers),
        "cv": "cv" in known,
        "saturated": "saturated_robust" in known,
        "rank o": "effective_rank.o_fraction" in known,
        "att.": "attention_share" in known,
        "in → out": "sink_mean" in known,
        "write": "total_write" in known,
        "copy": "copy_density" in known,
        "sink": "sink_mass" in known,
        "m·w": MOMENTUM in known,
        "other": any(differs(layer, reading.scoring) for layer in layers),
        "evidence": bool(notable),
    }
    return [column for column in table if has.get(column.name, True)]


def summary(reading: Reading, change: Changes | None = None) -> Table:
    """Totals, and the conditions of the reading."""
    rules = {"above chance": "calibrated", "the paper's rule": "paper"}
    low, high = (f"{extreme(layer.coverage for layer in reading.layers):.0%}" for extreme in (min, max))
    coverage = low if low == high else f"{low} to {high}"
    return labelled(
        {
            "roles": [Text.assemble((f"{rule}: ", "dim"), counts(reading, key)) for rule, key in rules.items()],
            "saturated": totals(reading.totals),
            "super weights": [] if "super_weight_ratio" in reading.missing else [_super_weights(reading.layers)],
            "pathology": pathology(reading),
            "change": [] if change is None else change_lines(change, OF_ADAPTER),
            "assumed": assumed(reading),
            "tokens": ran(reading),
            "missing": missing(reading),
            "substitutes": substitutes(reading),
            "coverage": [Text(f"roles rest on {coverage} of the routed features", "dim")],
        }
    )


def counts(reading: Reading, scoring: str) -> Text:
    """Number of layers with each role under a scoring."""
    given = [layer.scorings[scoring].role for layer in reading.layers]
    roles = [Text.assemble((role, colour(role)), f" {given.count(role)}") for role in ROLES if role in given]
    none = Text(f"none {sum(not leads(role) for role in given)}", "dim")
    return Text(" · ").join([*roles, none])


def totals(total: Mapping[str, float | None]) -> list[Text]:
    """The specialist budget under each threshold, with the count by chance, on one line; none where it is not known."""
    known = {name: beside(total, key) for key, name in COUNTS.items() if total[key] is not None}
    parts = [Text.assemble(count, (f" {name}", "dim")) for name, count in known.items()]
    return [Text(" · ", "dim").join(parts)] if parts else []


def pathology(reading: Reading) -> list[Text]:
    """One line per tensor out of proportion, worst first."""
    if not reading.pathology:
        return [Text("none: no tensor has ten times its peers' spectral norm", "green")]
    lines = [Text(f"{f.severity}: {f.text}", SEVERITIES[f.severity]) for f in reading.pathology[:SHOWN]]
    left = len(reading.pathology) - SHOWN
    return [*lines, Text(f"and {left} more", "dim")] if left > 0 else lines


def heads(reading: Reading) -> list[Text]:
    """One line per assumption about heads that nothing declares: measures and roles of attention hang on them."""
    return [Text(sentence, "yellow") for sentence in reading.heads_assumed]


def assumed(reading: Reading) -> list[Text]:
    """One line per other assumption about the model's layout."""
    return [Text(sentence, "yellow") for sentence in reading.assumed]


def ran(reading: Reading) -> list[Text]:
    """One line for each way in which tokens were run."""
    ways = {
        "tokens were run through the model": reading.options.tokens,
        "tokens were run backwards: --json and --csv hold the gradient alignments": reading.options.gradients,
    }
    return [Text(f"{count:,} {way}", "dim") for way, count in ways.items() if count is not None]


def leads(role: str) -> bool:
    """True for one role, False for a tie such as `hub/specialist` and for none."""
    return role in ROLES


def settled(role: str) -> str:
    """The role; empty for a tie and for none."""
    return role if leads(role) else ""


def holds_text(holds: Sequence[str]) -> Text:
    """The parts of a layer in one text, `state-space, FFN`; dim where they are the usual."""
    return Text(", ".join(holds), "dim" if list(holds) == USUAL else "")


def role_text(layer: LayerReport) -> Text:
    """The role in its colour; the two letters of a tie with evidence; a dash for anything else."""
    return named_role(layer.role) if is_notable(layer) else dash()


def is_notable(layer: LayerReport | Role) -> bool:
    """True for a role, and for a tie with evidence."""
    return leads(layer.role) or ("/" in layer.role and bool(layer.evidence))


def shown(layer: LayerReport | Role) -> str:
    """The role, or the tie, that is drawn; empty where there is none, or a tie without evidence."""
    return layer.role if is_notable(layer) else ""


def named_role(role: str) -> Text:
    """`specialist` as it is, `hub/specialist` as `H/S`, in the roles' colours."""
    return Text(role, colour(role)) if leads(role) else letters(role)


def letters(role: str, style: str = "") -> Text:
    """The letter of a role, or the two of a tie, in the roles' colours."""
    return Text("/").join(Text(letter(part), f"{style} {colour(part)}") for part in role.split("/"))


def differs(layer: LayerReport, scoring: str) -> bool:
    """True where the other scoring gives another role, not only another tie."""
    return settled(layer.role) != settled(layer.scorings[RIVALS[scoring]].role)


def arrow(values: Iterable[float | None], form: str) -> Text:
    """Numbers with an arrow between them."""
    return Text(" → ", "dim").join(Text.assemble(number(value, form)) for value in values)


def _cell(measure: str, form: str) -> Callable[[LayerReport], Text | str]:
    """The cells of a column that shows a measure."""
    return lambda layer: number(layer.measures[measure], form)


def written(value: float | None) -> Text | str:
    """A relative write in two digits: a mean over few tokens, some with a small stream, knows no more."""
    return dash() if value is None else f"{value:.0%}" if value < 1 else f"{float(f'{value:.2g}'):,g}×"


def _write(layer: LayerReport) -> Text | str:
    return written(layer.measures["total_write"])


def _composition(layer: LayerReport) -> Text:
    return arrow((layer.measures["sink_mean"], layer.measures["source_mean"]), ".2f")


def _other(layer: LayerReport, scoring: str) -> Text | str:
    """The role under the other scoring where it differs, in letters."""
    return letters(layer.scorings[RIVALS[scoring]].role, "dim") if differs(layer, scoring) else ""


def _evidence(layer: LayerReport) -> Text:
    """The two features with the largest votes; without any, the role leads because the others are lower."""
    if leads(layer.role) and not layer.evidence:
        return Text("(the others are lower)", "dim")
    signs = {"+": "+", "-": "−"}
    words = [signs[name[0]] + WORDS.get(name[1:], name[1:].replace("_", " ")) for name in layer.evidence[:2]]
    return Text(" ".join(words), "dim")


def _super_weights(layers: Sequence[LayerReport]) -> Text:
    ratios = {layer.layer: layer.measures["super_weight_ratio"] or 0.0 for layer in layers}
    found = [(layer.layer, weight) for layer in layers if (weight := layer.super_weight) is not None]
    found.sort(key=lambda entry: -ratios[entry[0]])
    places = [f"layer {i} down[{weight.row}, {weight.position}] ×{ratios[i]:.1f}" for i, weight in found[:SHOWN]]
    if len(found) > SHOWN:
        places.append(f"and {len(found) - SHOWN} more")
    return Text(" · ".join(places)) if places else Text("none above chance", "dim")
