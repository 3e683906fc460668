"""Advice: what the damage of a model's layers says of changing it, and the predicted cost of that (SCIENCE §9.2)."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from orchestrator.common.formatting import ranges
from orchestrator.interventions.measured import SUM, WHOLE, Cost, Measured, known, measured_edits

NATS = "nats/token"  # the unit of damage of a model that predicts the next token
SHARES = (0.1, 0.2, 0.3)  # of the layers, that are proposed for deletion
CHEAP, DEAR = 0.5, 2.0  # a layer's damage over the median of all: below, and above
LOUD = 2.0  # the damage of zeroing saturated positions over that of as many random ones
BAR = 0.1  # the most that a pruned model may lose in a domain, at the upper end: perplexity grows by a tenth

Result = Mapping[str, Any]  # of `intervene`


@dataclass(frozen=True)
class Rule:
    """One kind of advice.

    `edits`: those that it needs, the one that it is about first. `holds` [layers]: True for the layers. `role`: that of
    the layers at which the paper puts it, if any; `strength` [layers] ranks them then. `predicts`: following the advice
    costs the sum of the edit's damages, in these words. `by_token`: it needs losses of tokens,
    which an encoder has not.
    """

    kind: str
    edits: tuple[str, ...]
    holds: Callable[[Result], np.ndarray]
    role: str | None = None
    strength: Callable[[Result], np.ndarray] | None = None
    predicts: str | None = None
    by_token: bool = False


def cheap(result: Result, edit: str) -> np.ndarray:
    """True [layers] where in every domain the upper end lies under half of the median damage."""
    of = Measured(result, edit)
    return np.all(of.high < CHEAP * of.typical, axis=1)


def dear(result: Result, edit: str) -> np.ndarray:
    """True [layers] where in every domain the lower end lies above twice the median damage."""
    of = Measured(result, edit)
    return np.all(of.low > DEAR * of.typical, axis=1)


def concentrated(result: Result) -> np.ndarray:
    """True [layers] where in every domain deletion costs more than the median, with breadth in the lowest third."""
    of = Measured(result, "delete")
    narrow = of.breadth <= np.nanquantile(of.breadth, 1 / 3, axis=0)
    return np.all((of.low > of.typical) & narrow, axis=1)


def repeatable(result: Result) -> np.ndarray:
    """True [layers] where a second run gains in every domain; where no layer's does, where it is cheap."""
    gains = np.all(Measured(result, "repeat").high < 0, axis=1)
    return gains if gains.any() else cheap(result, "repeat")


def packed(result: Result) -> np.ndarray:
    """True [layers] where in every domain the FFN's damage per parameter has its lower end above twice the median."""
    of = Measured(result, "delete_ffn")
    size = np.array([[layer["ffn_parameters"] or np.nan] for layer in result["layers"]])
    if np.isnan(size).all():
        return np.zeros(len(size), dtype=bool)
    return np.all(of.low / size > DEAR * np.fmax(np.nanmedian(of.mean / size, axis=0), 0), axis=1)


def loud(result: Result) -> np.ndarray:
    """True [layers] where in every domain saturated positions cost more than twice as many random ones, end to end."""
    saturated, random = (Measured(result, edit) for edit in ("zero_saturated", "zero_random"))
    return np.all(saturated.low > LOUD * np.fmax(random.high, 0), axis=1)


RULES = (
    Rule("skip_gate", ("delete",), lambda of: cheap(of, "delete"), "passthrough",
         lambda of: -Measured(of, "delete").cost, SUM),
    Rule("router", ("delete_attention",), lambda of: dear(of, "delete_attention"), "hub",
         lambda of: Measured(of, "delete_attention").cost),
    Rule("pattern", ("delete",), concentrated, "specialist", lambda of: -Measured(of, "delete").breadth.mean(1),
         by_token=True),
    Rule("extend", ("repeat",), repeatable, predicts="sum of single repeats"),
    Rule("widen", ("delete_ffn",), packed),
    Rule("widen", ("zero_saturated", "zero_random"), loud),
)  # fmt: skip


def advise(result: Result, words: Sequence[str] = ()) -> dict[str, Any]:
    """The advice that a result of `intervene` gives, as plain JSON values.

    `words`: what the command of a deletion ends with, such as the options that name the text. `missing`: edit → the
    kinds of advice that it would give.
    """
    edits, is_encoder = measured_edits(result), result["unit"] != NATS
    lines = [*_deletions(result, words)] if "delete" in edits else []
    lines += [_block(result, count, words) for count in range(1, len(result["layers"])) if f"delete_{count}" in edits]
    missing: dict[str, list[str]] = {} if "delete" in edits else {"delete": ["delete"]}
    for rule in RULES:
        if rule.by_token and is_encoder:
            continue
        if lacking := [edit for edit in rule.edits if edit not in edits]:
            missing.setdefault(",".join(lacking), []).append(rule.kind)
        else:
            lines.append(_line(rule, result))
    return {"bar": None if is_encoder else BAR, "lines": lines, "missing": missing}


def _deletions(result: Result, words: Sequence[str]) -> Iterator[dict[str, Any]]:
    """A line for each number of layers, by least damage and, where those are others, by least relative write.

    `largest` is True in the last of those whose upper end stays under the bar in every domain.
    """
    of, depth = Measured(result, "delete"), len(result["layers"])
    writes = [layer["relative_write"] for layer in result["layers"]]
    ranks = {"damage": of.cost, "relative write": np.array([np.inf if x is None else x for x in writes])}
    counts = dict.fromkeys(max(1, round(share * depth)) for share in SHARES)
    lines: list[dict[str, Any]] = []
    for count in (count for count in counts if count < depth):
        for by, rank in ranks.items():
            layers = sorted(np.argsort(rank, kind="stable")[:count].tolist())
            if all(line["layers"] != layers for line in lines):
                lines.append(_deletion(result, "delete", layers, of.total(layers), SUM, words) | {"by": by})
    largest = max((line["layers"] for line in lines if line["under_bar"]), key=len, default=None)
    yield from (line | {"largest": line["layers"] == largest} for line in lines)


def _block(result: Result, count: int, words: Sequence[str]) -> dict[str, Any]:
    """The line of the `count` consecutive layers that cost least.

    `interaction`: the median over blocks of their damage over the sum of their layers'; None where that is not known.
    """
    edit = f"delete_{count}"
    of = Measured(result, edit)
    first = int(np.nanargmin(of.cost))
    singles = Measured(result, "delete").cost
    sums = np.array([singles[start : start + count].sum() for start in range(len(singles) - count + 1)])
    ratios = of.cost[: len(sums)][sums > 0] / sums[sums > 0]
    line = _deletion(result, edit, [*range(first, first + count)], of.total([first]), WHOLE, words)
    return line | {"interaction": known(np.median(ratios)) if len(ratios) else None}


def _deletion(
    result: Result, edit: str, layers: Sequence[int], cost: Cost, how: str, words: Sequence[str]
) -> dict[str, Any]:
    is_causal = result["unit"] == NATS
    drop = ["--drop", ranges(layers).replace("–", "-").replace(" ", "")]
    command = shlex.join(["python", "-m", "orchestrator.export", result["source"], "pruned", *drop, *words])
    return {
        "kind": "delete",
        "edit": edit,
        "layers": list(layers),
        "evidence": _evidence(result, ["delete"], layers),
        "predicted": cost,
        "how": how,
        "under_bar": is_causal and all(of["high"] is not None and of["high"] <= BAR for of in cost.values()),
        "command": command if is_causal else None,  # an encoder is not exported
    }


def _line(rule: Rule, result: Result) -> dict[str, Any]:
    of, layers = Measured(result, rule.edits[0]), np.flatnonzero(rule.holds(result)).tolist()
    return {
        "kind": rule.kind,
        "edit": rule.edits[0],
        "layers": layers,
        "median": {domain: known(value) for domain, value in zip(of.domains, of.typical, strict=True)},
        "evidence": _evidence(result, rule.edits, layers),
        "paper": None if rule.strength is None else _paper(result, rule.role, rule.strength(result)),
        "predicted": of.total(layers) if rule.predicts and layers else None,
        "how": rule.predicts,
        "command": None,
    }


def _paper(result: Result, role: str | None, strength: np.ndarray) -> dict[str, Any]:
    """The layers of the role, and those of them in the third for which the measured evidence is strongest."""
    ranked = [layer for layer in np.argsort(-strength, kind="stable").tolist() if np.isfinite(strength[layer])]
    third = ranked[: -(-len(ranked) // 3)]
    named = [layer["layer"] for layer in result["layers"] if role in layer["role"].split("/")]
    return {"role": role, "layers": named, "agree": [layer for layer in named if layer in third]}


def _evidence(result: Result, edits: Collection[str], layers: Sequence[int]) -> list[dict[str, Any]]:
    """Each layer's role and relative write, and its damage under the edits."""
    of_layers = [result["layers"][layer] for layer in layers]
    return [
        {"layer": of["layer"], "role": of["role"], "relative_write": of["relative_write"]}
        | {"damage": {edit: of["damage"].get(edit) for edit in edits}}
        for of in of_layers
    ]
