"""What one reading looks like in a terminal: the headline, the layers, and what they add up to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

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
    ranges,
)
from orchestrator.forensics.measures.table import MEASURES, NEEDS
from orchestrator.forensics.reading import LayerReport, Reading
from orchestrator.forensics.roles.palette import colour, letter
from orchestrator.forensics.roles.routing import ROLES

SHOWN = 4  # findings and super weights listed; the others are counted
SEVERITIES = {"warn": "yellow", "critical": "bold red"}
COUNTS = {"saturated_robust": "robust", "saturated": "mean + 3 std", "saturated_fixed": "above step 0's threshold"}
SATURATED = "positions above median + 3 robust std / by chance"
ATTENTION = "attention's share of energy"
RIVALS = {"calibrated": "paper", "paper": "calibrated"}  # the scoring that is not shown
CURES = {"A": ", see --probe", "O": ", see --optimizer"}  # the option that supplies a need
COMPARING = ("coupling", "source_mean", "sink_mean", "synapse_mediator")  # measures of a layer among others
WORDS = {  # evidence as it is printed, where the measure's own name is long
    "effective_rank.o_fraction": "rank o",
    "effective_rank.down_fraction": "rank down",
    "momentum_alignment.down": "m·w down",
    "saturated_robust_fraction": "saturated",
    "post_norm_damped_fraction": "damped γ",
    "gamma_concentration": "γ concentration",
    "depletion_fraction": "depletion",
    "super_weight_ratio": "super weight",
    "ffn_cluster_entropy": "FFN clusters",
    "unique_roles": "FFN kinds",
    "synapse_mediator": "mediator",
    "adjacent_alignment": "alignment",
}


def report(reading: Reading, seconds: float, parameters: int) -> Group:
    """The page of one reading. `parameters`: entries of the matrices that were read."""
    layers = reading.layers
    step = "" if reading.step is None else f" · step {reading.step:,}"
    depth = counted(len(layers), "layer")
    about = f"{reading.family}{step} · {depth} · {big(parameters)} parameters read in {seconds:.1f} s"
    return Group(
        Text(reading.source, "bold", overflow="fold"),
        Text(about, "dim"),
        Text(),
        headline(reading),
        Text(),
        FittedTable(layers, columns(reading)),
        Text(),
        summary(reading),
    )


def headline(reading: Reading) -> Text:
    """Which layers have a role, in one sentence."""
    layers = reading.layers
    named = [layer for layer in layers if has_role(layer)]
    by_paper = sum("/" not in layer.role_paper for layer in layers)
    if reading.scoring == "paper":
        sentence = f"{len(named)} of {len(layers)} layers have a role by the paper's rule"
        return Text(sentence, "bold").append("; of an untrained model's layers some 60 % would.", "not bold")
    if not named:
        text = Text(f"{nothing(reading)[0].upper()}{nothing(reading)[1:]}.", "bold")
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

    def measure(layer: LayerReport, key: str) -> float | None:
        value: float | None = layer.measures[key]
        return value

    largest = max((measure(layer, "cv") or 0.0 for layer in layers), default=0.0)
    known = {key for layer in layers for key, value in layer.measures.items() if value is not None}
    tie = "" if all(map(has_role, filter(is_notable, layers))) else "two letters are a tie"
    rival = {"calibrated": "by the paper's rule, first letters", "paper": "above chance, first letters"}
    found = [
        Column("", lambda layer: str(layer.layer), 99),
        Column("role", role_text, 99, False, tie),
        Column("margin", lambda layer: number(layer.margin, ".2f") if is_notable(layer) else dash(), 96),
        Column("cv", lambda layer: bar(measure(layer, "cv"), largest, ".2f"), 98, False, "spread of FFN co-magnitude"),
        Column("saturated", _saturated, 97, True, SATURATED),
        Column("rank o", lambda layer: number(measure(layer, "effective_rank.o_fraction"), ".0%"), 90),
        Column("att.", lambda layer: number(measure(layer, "attention_share"), ".2f"), 92, True, ATTENTION),
    ]
    if "sink_mean" in known:
        found.append(Column("in → out", _composition, 89, True, "composition with the layers below → above"))
    if "adjacent_alignment" in known:
        found.append(Column("write", partial(_share, "total_write"), 94, True, "what the layer adds / what it reads"))
        found.append(Column("copy", partial(_times, "copy_density"), 93, True, "attention to copies / by chance"))
        found.append(Column("sink", partial(_share, "sink_mass"), 86, True, "attention to the first position"))
    if "momentum_alignment.down" in known:
        found.append(Column("m·w", _momentum, 91, True, "momentum along the weight of down, + grows it"))
    if any(differs(layer, reading.scoring) for layer in layers):
        found.append(Column("other", lambda layer: _other(layer, reading.scoring), 93, False, rival[reading.scoring]))
    if any(map(is_notable, layers)):
        found.append(Column("evidence", _evidence, 95, False))
    return found


def summary(reading: Reading) -> Table:
    """Totals, and how the reading was made."""
    rules = {"above chance": "calibrated", "the paper's rule": "paper"}
    return labelled(
        {
            "roles": [Text.assemble((f"{rule}: ", "dim"), counts(reading, key)) for rule, key in rules.items()],
            "saturated": [totals(reading.totals)],
            "super weights": [_super_weights(reading.layers)],
            "pathology": pathology(reading),
            "assumed": [Text(sentence, "yellow") for sentence in reading.assumed],
            "probe": probe(reading),
            "missing": [Text(line, "dim") for line in missing(reading)],
            "read from": [
                Text(f"{name.replace('_', ' ')}: {what}", "dim") for name, what in reading.substitutes.items()
            ],
            "coverage": [Text(f"roles rest on {_coverage(reading.layers)} of the routed features", "dim")],
        }
    )


def counts(reading: Reading, scoring: str) -> Text:
    """Number of layers with each role under a scoring."""
    given = [layer.scorings[scoring].role for layer in reading.layers]
    counted = [Text.assemble((role, colour(role)), f" {given.count(role)}") for role in ROLES if role in given]
    none = Text(f"none {sum(not leads(role) for role in given)}", "dim")
    return Text(" · ").join([*counted, none])


def totals(total: Mapping[str, float | None]) -> Text:
    """The specialist budget under each threshold, with the count by chance."""
    found = [
        Text.assemble(beside(total, key), (f" {name}", "dim")) for key, name in COUNTS.items() if total[key] is not None
    ]
    return Text(" · ", "dim").join(found)


def pathology(reading: Reading) -> list[Text]:
    """One line per tensor out of proportion, worst first."""
    found = reading.pathology
    if not found:
        return [Text("none: no tensor has ten times its peers' spectral norm", "green")]
    lines = [
        Text(f"{f.severity}: {f.tensor} has {f.ratio:.1f}× its peers' spectral norm", SEVERITIES[f.severity])
        for f in found[:SHOWN]
    ]
    return lines + ([Text(f"and {len(found) - SHOWN} more", "dim")] if len(found) > SHOWN else [])


def probe(reading: Reading) -> list[Text]:
    """Number of tokens run through the model; empty without a probe."""
    tokens = reading.options.tokens
    return [] if tokens is None else [Text(f"{tokens:,} tokens were run through the model", "dim")]


def missing(reading: Reading) -> list[str]:
    """The missing measures by what they need."""
    needs = {key.split(".")[0]: NEEDS[entry.needs] + CURES.get(entry.needs, "") for key, entry in MEASURES.items()}
    if reading.options.probed:
        seen = [key for key, measure in MEASURES.items() if measure.needs == "A"]
        needs |= dict.fromkeys(seen, "a model whose branches the probe can follow")
    if len(reading.layers) == 1:
        needs |= dict.fromkeys(COMPARING, "a second layer")
    reasons: dict[str, list[str]] = {}
    for name in reading.missing:
        if not name.endswith("_expected"):  # goes with its count
            reasons.setdefault(needs[name], []).append(spoken(name))
    return [f"{', '.join(names)}: needs {why}" for why, names in reasons.items()]


def leads(role: str) -> bool:
    """True for one role, False for a tie such as `hub/specialist`."""
    return "/" not in role


def has_role(layer: LayerReport) -> bool:
    """True where one role leads."""
    return leads(layer.role)


def settled(role: str) -> str:
    """The role; empty for a tie."""
    return role if leads(role) else ""


def role_text(layer: LayerReport) -> Text:
    """The role in its colour; the two letters of a tie with evidence; a dash for one without."""
    return named_role(layer.role) if is_notable(layer) else dash()


def is_notable(layer: LayerReport) -> bool:
    """True for a role, and for a tie with evidence."""
    return has_role(layer) or bool(layer.evidence)


def named_role(role: str) -> Text:
    """`specialist` as it is, `hub/specialist` as `H/S`, in the roles' colours."""
    if leads(role):
        return Text(role, colour(role))
    return Text("/").join(Text(letter(part), colour(part)) for part in role.split("/"))


def spoken(name: str) -> str:
    """A measure's name in words."""
    return name.replace("_", " ")


def differs(layer: LayerReport, scoring: str) -> bool:
    """True where the other scoring gives another role, not only another tie."""
    return settled(layer.role) != settled(layer.scorings[RIVALS[scoring]].role)


def _saturated(layer: LayerReport) -> Text:
    return beside(layer.measures, "saturated_robust")


def _share(key: str, layer: LayerReport) -> Text | str:
    return number(layer.measures[key], ".0%")


def _times(key: str, layer: LayerReport) -> Text | str:
    return number(layer.measures[key], ".1f")


def _momentum(layer: LayerReport) -> Text | str:
    return number(layer.measures["momentum_alignment.down"], "+.2f")


def _other(layer: LayerReport, scoring: str) -> Text | str:
    """The role under the other scoring, in letters."""
    if not differs(layer, scoring):
        return ""
    parts = layer.scorings[RIVALS[scoring]].role.split("/")
    return Text("/").join(Text(letter(part), f"dim {colour(part)}") for part in parts)


def _evidence(layer: LayerReport) -> Text:
    """The two features with the largest votes; without any, the role leads because the others are lower."""
    if has_role(layer) and not layer.evidence:
        return Text("(the others are lower)", "dim")
    signs = {"+": "+", "-": "−"}
    words = [signs[name[0]] + WORDS.get(name[1:], spoken(name[1:])) for name in layer.evidence[:2]]
    return Text(" ".join(words), "dim")


def _composition(layer: LayerReport) -> Text:
    sink, source = layer.measures["sink_mean"], layer.measures["source_mean"]
    return Text(" → ", "dim").join(Text.assemble(number(value, ".2f")) for value in (sink, source))


def _super_weights(layers: Sequence[LayerReport]) -> Text:
    found = [
        (ratio, layer.layer, weight)
        for layer in layers
        if (weight := layer.super_weight) is not None and (ratio := layer.measures["super_weight_ratio"]) is not None
    ]
    found.sort(key=lambda entry: -entry[0])
    if not found:
        return Text("none above chance", "dim")
    places = [
        f"layer {layer} down[{weight.row}, {weight.position}] ×{ratio:.1f}" for ratio, layer, weight in found[:SHOWN]
    ]
    return Text(" · ".join(places) + (f" · and {len(found) - SHOWN} more" if len(found) > SHOWN else ""))


def _coverage(layers: Sequence[LayerReport]) -> str:
    low, high = (f"{extreme(layer.coverage for layer in layers):.0%}" for extreme in (min, max))
    return low if low == high else f"{low} to {high}"
