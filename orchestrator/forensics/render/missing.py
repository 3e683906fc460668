"""The measures that no layer of a reading has, by what they need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.text import Text

from orchestrator.forensics.architecture.holdings import USUAL
from orchestrator.forensics.measures.entry import NEEDS
from orchestrator.forensics.measures.table import MEASURES
from orchestrator.forensics.reading import Reading

CURES = {"A": ", see --probe", "G": ", see --gradients", "O": ", see --optimizer"}  # the option that supplies a need
COMPARING = (  # measures that need other layers with the same branch
    "coupling",
    "head_composition_top",
    "source_mean",
    "sink_mean",
    "synapse_mediator",
)
BRANCHES = {"attention": "a layer of full attention", "ffn": "a layer with one FFN"}  # in the order of USUAL


def missing(reading: Reading) -> list[Text]:
    """The missing measures by what they need."""
    needs = {key.split(".")[0]: NEEDS[entry.needs] + CURES.get(entry.needs, "") for key, entry in MEASURES.items()}
    if reading.options.unprobed:
        needs |= dict.fromkeys(_needing("AG"), f"a model that can be run: {reading.options.unprobed.rstrip('.')}")
    elif reading.options.probed:
        needs |= dict.fromkeys(_needing("A"), "a model whose branches the probe can follow")
    elif "total_write" not in reading.missing:  # the stream of random tokens has been followed
        needs["write_share"] = "branches that write"
    zeros = reading.options.delta or any(finding.blemish for finding in reading.pathology)
    if zeros:
        needs |= dict.fromkeys(_needing("WL"), "matrices that are not all zeros")
    if "head_evenness" not in reading.missing or zeros:
        needs |= dict.fromkeys(_needing("H"), "heads that read and write")  # their number is known
    if sum("attention" in layer.holds for layer in reading.layers) == 1:
        needs |= dict.fromkeys(set(_needing("H")) & set(COMPARING), "a second layer of full attention")
    if len(reading.layers) == 1:
        needs |= dict.fromkeys(COMPARING, "a second layer")
    if all(layer.holds and not set(USUAL) & set(layer.holds) for layer in reading.layers):
        needs |= dict.fromkeys(_needing("W"), "a layer of full attention or with one FFN")
    needs |= {key.split(".")[0]: of for key, entry in MEASURES.items() if (of := _branches(entry.branches, reading))}
    # an expected count goes with its count
    return _by_reason({name: needs[name] for name in reading.missing if not name.endswith("_expected")}, "needs")


def substitutes(reading: Reading) -> list[Text]:
    """The measures that were read from another thing than the first choice of their definition, and that thing."""
    return _by_reason(reading.substitutes, "read from")


def _by_reason(reasons: Mapping[str, str], verb: str) -> list[Text]:
    """A line per reason: the measures that share it, and the reason."""
    measures: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        measures.setdefault(reason, []).append(name.replace("_", " "))
    return [Text(f"{', '.join(names)}: {verb} {reason}", "dim") for reason, names in measures.items()]


def _needing(needs: str) -> list[str]:
    """Names of the measures with one of these needs; all of `effective_rank.*` are one."""
    return [key.split(".")[0] for key, measure in MEASURES.items() if measure.needs in needs]


def _branches(branches: Sequence[str], reading: Reading) -> str:
    """The branches that a measure needs and no layer has, in words; empty where one has them all."""
    names = {branch: USUAL[list(BRANCHES).index(branch)] for branch in branches}
    if any(not layer.holds or set(names.values()) <= set(layer.holds) for layer in reading.layers):
        return ""
    held = {part for layer in reading.layers for part in layer.holds}
    lacking = [BRANCHES[branch] for branch, name in names.items() if name not in held]
    return " and ".join(lacking) or "a layer with attention and one FFN"
