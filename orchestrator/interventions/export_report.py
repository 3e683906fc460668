"""The page of an export in the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Group
from rich.text import Text

from orchestrator.common.formatting import page, plain_table, ranges
from orchestrator.interventions.advice_report import interval
from orchestrator.interventions.export import TOLERANCE, keeps_its_promise


def report(result: Mapping[str, Any]) -> Group:
    """The directory, then parameters and losses: before, in memory without the layers, and of what was written."""
    title = Text(result["directory"], "bold", overflow="fold")
    kept = result["layers"] - len(result["dropped"])
    title.append(f"\n{result['class']} · {result['dtype']} · {kept} of {result['layers']} layers", "not bold dim")
    if result["dropped"]:
        title.append(f", without {ranges(result['dropped'])}", "not bold dim")
    table = plain_table(["", "before", "promised", "exported"], left=[""])
    parameters = result["parameters"]
    table.add_row("parameters", f"{parameters['before']:,}", "", f"{parameters['exported']:,}")
    for domain, of in result["loss"].items():
        table.add_row(f"loss, {domain}", *(f"{of[name]:.4f}" for name in ("before", "promised", "exported")))
    cost = [Text("\n".join(_cost(result)))] if result["dropped"] else []
    return page(title, table, *cost, _verdict(result))


def _cost(result: Mapping[str, Any]) -> Iterator[str]:
    """A line per domain: the measured cost of leaving the layers out, beside the predicted one."""
    prediction = result["prediction"] or {"cost": {}}
    for domain, rise in result["rise"].items():
        measured, said = rise["mean"], f"measured {interval(rise)}"
        if of := prediction["cost"].get(domain):
            said = f"predicted {interval(of)}, {said}"
            told = not (_holds_0(of) and _holds_0(rise))
            if told and of["mean"] and of["mean"] > 0 and measured > 0:
                said += f", {measured / of['mean']:.1f} times as much"
        yield f"{domain}: {said}"
    for domain in (domain for domain in prediction["cost"] if domain not in result["rise"]):  # of another text
        yield f"{domain}: predicted {interval(prediction['cost'][domain])}"
    if prediction["cost"]:
        other = " on this very text: another may cost more" if prediction["same_text"] else ", on other text"
        yield f"In nats per token, with 95 % intervals over documents; predicted is the {prediction['how']}{other}."


def _holds_0(of: Mapping[str, float | None]) -> bool:
    return of["low"] is None or of["high"] is None or of["low"] <= 0 <= of["high"]


def _verdict(result: Mapping[str, Any]) -> Text:
    largest = max(abs(of["promised"] - of["exported"]) for of in result["loss"].values())
    if keeps_its_promise(result):
        return Text("Losses in nats per token; promised: of the model in memory, with the layers left out.", "dim")
    return Text(
        f"The exported model's loss differs from the promised one by {largest:.2g} nats per token, more than "
        f"{TOLERANCE:g}: do not use {result['directory']}.",
        "red",
    )
