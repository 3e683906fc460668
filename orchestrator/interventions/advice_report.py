"""Advice in words, and its section of the page in the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Group
from rich.text import Text

from orchestrator.common.formatting import counted, labelled, ranges, signed
from orchestrator.interventions.advice import CHEAP, DEAR, LOUD
from orchestrator.interventions.measured import Cost

NAMES = {
    "delete": "delete",
    "skip_gate": "skip-gates",
    "router": "routers",
    "pattern": "patterns",
    "extend": "extend",
    "widen": "widen",
}
# Kind and edit → what costs, and how its cost compares with the median.
REASONS = {
    ("skip_gate", "delete"): ("deletion", f"under {CHEAP:g} of the median{{}}"),
    ("router", "delete_attention"): ("attention's deletion", f"over {DEAR:g} times the median{{}}"),
    ("pattern", "delete"): ("deletion", "over the median{}, in few tokens"),
    ("extend", "repeat"): ("a second run", f"under 0 or else under {CHEAP:g} of the median{{}}"),
    ("widen", "delete_ffn"): ("the FFN's deletion", f"per parameter over {DEAR:g} times the median{{}}"),
    ("widen", "zero_saturated"): ("zeroing saturated positions", f"over {LOUD:g} times as many random ones"),
}
NONE = {  # what is said where no layer is proposed
    ("skip_gate", "delete"): "no layer's deletion surely costs less than half the median{}",
    ("router", "delete_attention"): "no deletion of attention surely costs more than twice the median{}",
    ("pattern", "delete"): "no layer's deletion surely costs more than the median{} in few tokens",
    ("extend", "repeat"): "no layer surely gains by a second run, or loses less than half the median{}",
    ("widen", "delete_ffn"): "no FFN's deletion surely costs, per parameter, more than twice the median{}",
    (
        "widen",
        "zero_saturated",
    ): "no zeroing of saturated positions surely costs twice that of as many random ones",
}
RANKS = {
    "skip_gate": "in the third whose deletion costs least",
    "router": "in the third whose attention's deletion costs most",
    "pattern": "in the third whose damage sits in the fewest tokens",
}
ONLY_ANEW = {  # the keys with which a model is trained so, since no command does it to one that is trained
    "extend": "more model.layers",
    "widen": "a larger entry of width.widths (width=explicit)",
}


def advice_section(advice: Mapping[str, Any], unit: str) -> Group:
    """A line for each piece of advice, and the edits that would give more."""
    lines: dict[str, list[Text]] = {name: [] for name in NAMES.values()}
    bar = "" if advice["bar"] is None else f"{advice['bar']:g} {unit}"
    for line in advice["lines"]:
        lines[NAMES[line["kind"]]].append(_deletion(line, bar) if line["kind"] == "delete" else Text(sentence(line)))
    deletions = [line for line in advice["lines"] if line["kind"] == "delete"]
    if bar and deletions and not any(line["under_bar"] for line in deletions):
        lines["delete"].insert(0, Text(f"None is predicted to cost {bar} or less in every text, by the upper end."))
    missing = [Text(lacking(edit, kinds), "dim") for edit, kinds in advice["missing"].items()]
    return Group(Text("Advice", "bold"), labelled(lines | {"not told": missing}))


def applied(advice: Mapping[str, Any]) -> str:
    """The command that deletes the most layers whose upper end is under the bar, else the fewest; empty without one."""
    lines = [line for line in advice["lines"] if line["kind"] == "delete" and line["command"]]
    best = next((line for line in lines if line.get("largest")), None) or next(iter(lines), None)
    return "" if best is None else f"To delete {ranges(best['layers'], 'L')}: {best['command']}"


def _deletion(line: Mapping[str, Any], bar: str) -> Text:
    text = Text(f"{counted(len(line['layers']), 'layer')}: {ranges(line['layers'], 'L')}")
    if line.get("by") == "relative write":
        text.append(", of least relative write")
    text.append(f"  {costs(line['predicted'])} ({line['how']})")
    if line.get("largest"):
        text.append(f"  the most whose upper end is under {bar}", "bold")
    if line.get("interaction") is not None:
        text.append(f"; blocks cost {line['interaction']:.1f} times the sum of their layers")
    return text


def sentence(line: Mapping[str, Any]) -> str:
    """A piece of advice with its evidence, and what the paper would say."""
    key, median = (line["kind"], line["edit"]), f" ({_range(line['median'].values())})"
    if not line["layers"]:
        said = f"none: {NONE[key].format(median)}"
    else:
        what, bar = REASONS[key][0], REASONS[key][1].format(median)
        means = (of["mean"] for layer in line["evidence"] for of in layer["damage"][line["edit"]].values())
        roles = sorted({of["role"] for of in line["evidence"]} - {"none"})
        held = f" ({', '.join(roles)})" if roles else ""
        said = f"{ranges(line['layers'], 'L')}{held}: {what} costs {_range(means)}, {bar}"
    if line["predicted"]:
        said += f"; all together {costs(line['predicted'])} ({line['how']})"
    anew = ONLY_ANEW.get(line["kind"]) if line["layers"] else None
    how = "" if anew is None else f"No command does it to this model: train one with {anew}."
    return " ".join(filter(None, (f"{said}.", how, _paper(line))))


def _range(values: Iterable[float | None]) -> str:
    """The least and the most of them: `+0.430 to +3.200`."""
    known = sorted(value for value in values if value is not None)
    ends = list(dict.fromkeys(signed(value, 3) for value in (known[0], known[-1])))
    return " to ".join(ends)


def _paper(line: Mapping[str, Any]) -> str:
    if (paper := line["paper"]) is None:
        return ""
    if not paper["layers"]:
        return f"The paper puts them at {paper['role']}s, of which there are none."
    agree = ranges(paper["agree"], "L") or "none"
    return (
        f"The paper puts them at {paper['role']}s: {ranges(paper['layers'], 'L')}; "
        f"of these {agree} {'are' if len(paper['agree']) > 1 else 'is'} {RANKS[line['kind']]}."
    )


def costs(cost: Cost) -> str:
    """A damage in every domain: `+0.210 code, +0.340 prose`."""
    return ", ".join(f"{signed(of['mean'], 3)} {domain}" for domain, of in cost.items())


def interval(of: Mapping[str, float | None]) -> str:
    """A damage with its interval: `+0.340 (+0.290 to +0.400)`."""
    ends = "" if of["low"] is None or of["high"] is None else f" ({signed(of['low'], 3)} to {signed(of['high'], 3)})"
    return f"{signed(of['mean'], 3)}{ends}"


def lacking(edit: str, kinds: list[str]) -> str:
    """The sentence that says which edits another kind of advice needs."""
    return f"{', '.join(NAMES[kind] for kind in dict.fromkeys(kinds))}: add {edit} to --edits."
