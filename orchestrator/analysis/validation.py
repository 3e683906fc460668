"""What an experiment's files must hold before anything is computed, and the sentence where they do not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

from orchestrator.common.errors import UserError
from orchestrator.experiments.expectations import ROLES
from orchestrator.storage.metrics_log import Record
from orchestrator.storage.steps import step_in

LARGEST = 1e100  # magnitude of a number: its cube, and the sum of many, is still finite
SMALLEST = 1 / LARGEST  # of one above 0: any ratio is finite
LONGEST = 2**63 - 1  # of a whole number, which tables hold in 64 bits
NAMED = frozenset([*ROLES, *("/".join(sorted(two)) for two in combinations(ROLES, 2))])  # roles and their ties
COUNTS = frozenset(
    f"saturated{by}{what}" for by in ("", "_robust", "_fixed") for what in ("", "_expected")
)  # positions


@dataclass(frozen=True)
class Kind:
    """Values of one sort."""

    what: str  # they are called, as in "is not {what}"
    fits: Callable[[Any], bool]


def _is_number(value: Any) -> bool:
    """Comparing refuses NaN too, and raises for no integer, however long."""
    return (isinstance(value, float) or _is_integer(value)) and -LARGEST <= value <= LARGEST


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_whole(value: Any) -> bool:
    return _is_integer(value) and 0 <= value <= LONGEST


def _of(kind: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, kind)


NUMBER = Kind(f"a number of magnitude up to {LARGEST:g}", _is_number)
POSITIVE = Kind(f"a number from {SMALLEST:g} to {LARGEST:g}", lambda value: _is_number(value) and value >= SMALLEST)
AMOUNT = Kind(f"0 or {POSITIVE.what}", lambda value: POSITIVE.fits(value) or (_is_number(value) and value == 0))
WHOLE = Kind("a whole number from 0", _is_whole)
COUNT = Kind("a whole number from 1", lambda value: _is_whole(value) and value > 0)
TEXT = Kind("text", _of(str))
MAPPING = Kind("a mapping", _of(dict))
LIST = Kind("a list", _of(list))
ROLE = Kind("a role or a tie of two", lambda value: isinstance(value, str) and value in NAMED)

Shape = dict[str, Kind]
DESCRIPTION: Shape = {  # experiment.yaml
    "arms": MAPPING, "seeds": LIST, "declared": LIST, "models": MAPPING, "contrasts": MAPPING, "expect": MAPPING,
    "machine": MAPPING, "code": LIST, "stated": LIST,
}  # fmt: skip
STATED: Shape = {"since": TEXT, "seeds": LIST, "contrasts": MAPPING, "expect": MAPPING}  # an entry of `stated`
MODEL: Shape = {"params": COUNT}
MODEL_IF_RECORDED: Shape = {"widths": LIST, "training_flops": POSITIVE}
RECORD: Shape = {"step": WHOLE, "digest": TEXT}  # a metrics log's line
DECISION: Shape = {"step": WHOLE, "evaluations": WHOLE, "backwards": WHOLE, "values": MAPPING}  # its sidecar's, if any
READING: Shape = {"step": WHOLE, "scoring": TEXT, "layers": LIST, "totals": MAPPING, "pathology": LIST}
LAYER: Shape = {
    "layer": WHOLE, "width": POSITIVE, "role": ROLE, "margin": AMOUNT, "scores": MAPPING, "measures": MAPPING,
}  # fmt: skip
FINDING: Shape = {"tensor": TEXT, "ratio": AMOUNT, "severity": TEXT}


@dataclass(frozen=True)
class Source:
    """A file whose content is checked."""

    path: Path
    cure: str  # what to do where it is not what it should be

    def refuse(self, problem: str) -> UserError:
        return UserError(f"{self.path}: {one_line(problem)}: {self.cure}.")

    def check_shape(self, where: str, node: Any, shape: Shape) -> None:
        """Raise `UserError` unless `node` is a mapping with every key of `shape`, each value of its kind."""
        if not isinstance(node, dict):
            raise self.refuse(f"{where} is not a mapping")
        for key, kind in shape.items():
            if key not in node:
                raise self.refuse(f"{where} has no '{key}'")
            self.check(where, key, node[key], kind)

    def check(self, where: str, key: Any, value: Any, kind: Kind) -> None:
        if not kind.fits(value):
            raise self.refuse(f"{where} has {key} = {value!r:.40}, which is not {kind.what}")

    def check_all(self, where: str, node: Any, kind: Kind) -> None:
        """Raise `UserError` unless `node` is a mapping or a list all of whose values are of `kind`."""
        if isinstance(node, list):
            node = dict(enumerate(node))
        if not isinstance(node, dict):
            raise self.refuse(f"{where} is not a mapping")
        if not all(map(kind.fits, node.values())):  # a long experiment has a million measures: one pass for the whole
            for key, value in node.items():
                self.check(where, key, value, kind)


def check_description(source: Source, spec: dict[str, Any]) -> None:
    """Raise `UserError` for the first thing in an experiment.yaml that cannot be; `expect` and `contrasts` apart."""
    source.check_shape("its content", spec, DESCRIPTION)
    seeds = spec["seeds"]
    source.check_all("seeds", seeds, WHOLE)
    if again := [seed for seed in seeds if seeds.count(seed) > 1]:
        raise source.refuse(f"seeds has {again[0]} more than once, and a replicate counts once")
    source.check_all("code", spec["code"], MAPPING)
    for index, stated in enumerate(spec["stated"]):
        source.check_shape(f"stated.{index}", stated, STATED)
    for arm, model in spec["models"].items():
        where = f"models.{arm}"
        source.check_shape(where, model, MODEL)
        source.check_shape(where, model, {key: kind for key, kind in MODEL_IF_RECORDED.items() if key in model})
        source.check_all(f"{where}.widths", model.get("widths", []), POSITIVE)


def check_metrics(source: Source, records: list[Record]) -> None:
    """Raise `UserError` for the first record that lacks what every one has or does not follow the one before."""
    units: dict[str, Any] | None = None  # channel → what it governs
    for record in records:
        source.check_shape("a record", record, RECORD)
        for split in ("heldout", "test"):
            if split in record:
                source.check_all(split, record[split], NUMBER)
        if "sidecar" in record:
            decision = record["sidecar"]
            source.check_shape("sidecar", decision, DECISION)
            for channel, values in decision["values"].items():
                source.check_all(f"sidecar.values.{channel}", values, POSITIVE)
                if not values:
                    raise source.refuse(f"sidecar.values.{channel} has no unit")
            governed = {channel: values.keys() for channel, values in decision["values"].items()}
            units = governed if units is None else units
            if governed != units:
                raise source.refuse(f"the sidecar's units at step {record['step']} are not those of its first record")
    for before, after in pairwise(record["step"] for record in records):
        if after <= before:
            raise source.refuse(f"step {after} follows step {before}")


def check_reading(source: Source, reading: Any) -> None:
    """Raise `UserError` for the first thing in a forensics result that cannot be, or belongs to another file."""
    source.check_shape("its content", reading, READING)
    if step_in(source.path.stem) != reading["step"]:
        raise source.refuse(f"its step is {reading['step']}, which its name does not say")
    source.check_all("totals", _known(reading["totals"]), AMOUNT)
    for index, finding in enumerate(reading["pathology"]):
        source.check_shape(f"pathology.{index}", finding, FINDING)
    for index, layer in enumerate(reading["layers"]):
        where = f"layers.{index}"
        source.check_shape(where, layer, LAYER)
        if layer["layer"] != index:
            raise source.refuse(f"{where} calls itself layer {layer['layer']}")
        if lacking := [role for role in ROLES if role not in layer["scores"]]:
            raise source.refuse(f"{where}.scores has no '{lacking[0]}'")
        source.check_all(f"{where}.scores", _known(layer["scores"]), AMOUNT)
        source.check_all(f"{where}.measures", _known(layer["measures"]), NUMBER)
        counts = {name: layer["measures"].get(name) for name in COUNTS}
        source.check_all(f"{where}.measures", _known(counts), AMOUNT)


def _known(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def one_line(said: object) -> str:
    """What an error or a text says, on one line."""
    return " ".join(str(said).split())
