"""The reading of one checkpoint: a report of each layer. Made by `analyze`, and checked here where a file holds one."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from orchestrator.common.errors import UserError
from orchestrator.common.shapes import (
    AMOUNT,
    LIST,
    MAPPING,
    NUMBER,
    POSITIVE,
    TEXT,
    TRUTH,
    WHOLE,
    Kind,
    Shape,
    ShapeError,
    check_all,
    check_shape,
    one_line,
    optional,
)
from orchestrator.forensics.measures.pathology import Finding
from orchestrator.forensics.roles.routing import ROLES, TIES, Role
from orchestrator.storage.steps import step_in

SCHEMA = 1
DEFINITIONS = 1  # version of SCIENCE's definitions
COUNTS = ("saturated", "saturated_robust", "saturated_fixed")  # the specialist budget under each threshold
TOTALS = tuple(key for count in COUNTS for key in (count, f"{count}_expected"))
T = TypeVar("T")


@dataclass(frozen=True)
class SuperWeight:
    """The entry of `down` that writes most."""

    row: int  # residual coordinate
    position: int  # FFN position


@dataclass(frozen=True)
class LayerReport:
    """One layer: its role under the scoring shown and under each scoring, and its measures."""

    layer: int
    role: str  # the leader, or the two leaders of a tie: "hub/specialist"
    margin: float
    scores: dict[str, float | None]
    evidence: list[str]
    coverage: float
    role_paper: str
    scorings: dict[str, Role]
    width: int  # residual coordinates
    super_weight: SuperWeight | None  # null where chance gives one as strong
    measures: dict[str, float | None]  # null where a measure is absent


@dataclass(frozen=True)
class Options:
    """How the reading was made."""

    reference: str | None  # checkpoint whose thresholds `saturated_fixed` uses
    optimizer: str | None
    resamples: int
    seed: int
    probed: bool
    tokens: int | None  # run through the model


@dataclass(frozen=True)
class Key:
    """A reading is up to date as long as its checkpoint and the definitions are those of its key."""

    checkpoint: str  # sha256 of its manifest.json, which holds the sha256 of everything else
    definitions: int


@dataclass(frozen=True)
class Reading:
    """The layer reports of one checkpoint, and what was read how. Its fields are the keys of its JSON, in order."""

    schema: int
    definitions: int
    source: str
    family: str
    assumed: list[str]
    step: int | None  # null for a checkpoint that records none
    scoring: str
    options: Options
    missing: list[str]  # measures that no layer has
    substitutes: dict[str, str]  # measure → what it was read from instead
    layers: list[LayerReport]
    totals: dict[str, float | None]  # `TOTALS`, over the layers
    pathology: list[Finding]  # worst first
    key: Key | None = None  # of a cell's reading; absent from other files

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        document = asdict(self)
        if self.key is None:
            del document["key"]
        return document

    @classmethod
    def from_json(cls, document: Any) -> Reading:
        """The reading that `to_json` gave. Raises `ShapeError`, naming the key, for the first value that cannot be."""
        _check(document)
        return _made(
            cls,
            document,
            options=_made(Options, document["options"]),
            layers=[
                _made(
                    LayerReport,
                    layer,
                    scorings={name: _made(Role, role) for name, role in layer["scorings"].items()},
                    super_weight=_made_or_none(SuperWeight, layer["super_weight"]),
                )
                for layer in document["layers"]
            ],
            pathology=[_made(Finding, finding) for finding in document["pathology"]],
            key=_made_or_none(Key, document.get("key")),
        )


def read_reading(path: Path) -> Reading:
    """The reading in a cell's `forensics/step_<n>.json`.

    Raises `UserError`, naming file, key and cure, where it is none or of another step; `OSError` where it is gone.
    """
    checkpoint = path.parents[1] / "checkpoints" / path.stem
    cure = f"write it again with python -m orchestrator.forensics {checkpoint} --json {path}"
    try:
        document = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:  # not JSON, not even text, or nested without end
        raise UserError(f"{path} is not JSON ({one_line(error)}): {cure}.") from error
    try:
        reading = Reading.from_json(document)
        if reading.step is None or step_in(path.stem) != reading.step:
            raise ShapeError(f"its step is {reading.step}, which its name does not say")
    except ShapeError as error:
        raise UserError(f"{path}: {one_line(error)}: {cure}.") from error
    return reading


def profile(reading: Reading, measure: str) -> np.ndarray | None:
    """One measure of every layer, [L]; null unless every layer has it."""
    values = [layer.measures.get(measure) for layer in reading.layers]
    return None if any(value is None for value in values) else np.asarray(values, dtype=np.float64)


def total(reading: Reading, measure: str) -> float | None:
    """A measure's sum over the layers; null unless every layer has it."""
    values = profile(reading, measure)
    return None if values is None else float(values.sum())


def spread(reading: Reading) -> float | None:
    """Standard deviation of attention's share of the energy over the layers; null for a single layer."""
    shares = profile(reading, "attention_share")
    return None if shares is None or shares.size < 2 else float(np.std(shares))


def roles_of(reading: Reading) -> list[str]:
    """The role of each layer, first to last."""
    return [layer.role for layer in reading.layers]


def centre(budget: np.ndarray) -> float | None:
    """Mean depth of the budget [L], 0 = first layer, 1 = last; null for an empty budget or a single layer."""
    if budget.size < 2 or budget.sum() <= 0.0:
        return None
    return float(np.average(depths(budget), weights=budget))


def depths(budget: np.ndarray) -> np.ndarray:
    """Depth of each layer, 0…1, [L]."""
    return np.linspace(0.0, 1.0, budget.size)


def thirds(budget: np.ndarray) -> tuple[float, float, float]:
    """Budget [L] held by the early, middle and late third of the layers; earlier thirds take a remainder."""
    early, middle, late = (float(part.sum()) for part in np.array_split(budget, 3))
    return early, middle, late


ROLE = Kind("a role or a tie of two", lambda value: isinstance(value, str) and (value in ROLES or value in TIES))
SHAPE: Shape = {
    "schema": WHOLE, "definitions": WHOLE, "source": TEXT, "family": TEXT, "assumed": LIST, "step": optional(WHOLE),
    "scoring": TEXT, "options": MAPPING, "missing": LIST, "substitutes": MAPPING, "layers": LIST, "totals": MAPPING,
    "pathology": LIST,
}  # fmt: skip
ASSIGNMENT: Shape = {"role": ROLE, "margin": AMOUNT, "scores": MAPPING, "evidence": LIST, "coverage": AMOUNT}
LAYER: Shape = {
    "layer": WHOLE, **ASSIGNMENT, "role_paper": ROLE, "scorings": MAPPING, "width": POSITIVE,
    "super_weight": optional(MAPPING), "measures": MAPPING,
}  # fmt: skip
SUPER_WEIGHT: Shape = {"row": WHOLE, "position": WHOLE}
OPTIONS: Shape = {
    "reference": optional(TEXT), "optimizer": optional(TEXT), "resamples": WHOLE, "seed": WHOLE, "probed": TRUTH,
    "tokens": optional(WHOLE),
}  # fmt: skip
FINDING: Shape = {"tensor": TEXT, "ratio": AMOUNT, "severity": TEXT}
KEY: Shape = {"checkpoint": TEXT, "definitions": WHOLE}


def _check(document: Any) -> None:
    """Raise `ShapeError` for the first value of a reading's JSON that cannot be."""
    check_shape("its content", document, SHAPE)
    check_shape("options", document["options"], OPTIONS)
    check_all("totals", document["totals"], optional(AMOUNT))
    for key in ("assumed", "missing", "substitutes"):
        check_all(key, document[key], TEXT)
    if document.get("key") is not None:
        check_shape("key", document["key"], KEY)
    for index, finding in enumerate(document["pathology"]):
        check_shape(f"pathology.{index}", finding, FINDING)
    for index, layer in enumerate(document["layers"]):
        _check_layer(f"layers.{index}", index, layer)


def _check_layer(where: str, index: int, layer: Any) -> None:
    check_shape(where, layer, LAYER)
    if layer["layer"] != index:
        raise ShapeError(f"{where} calls itself layer {layer['layer']}")
    _check_assignment(where, layer)
    for name, role in layer["scorings"].items():
        check_shape(f"{where}.scorings.{name}", role, ASSIGNMENT)
        _check_assignment(f"{where}.scorings.{name}", role)
    if layer["super_weight"] is not None:
        check_shape(f"{where}.super_weight", layer["super_weight"], SUPER_WEIGHT)
    check_all(f"{where}.measures", layer["measures"], optional(NUMBER))
    counts = {name: layer["measures"].get(name) for name in TOTALS}
    check_all(f"{where}.measures", counts, optional(AMOUNT))


def _check_assignment(where: str, role: dict[str, Any]) -> None:
    check_all(f"{where}.evidence", role["evidence"], TEXT)
    if lacking := [name for name in ROLES if name not in role["scores"]]:
        raise ShapeError(f"{where}.scores has no '{lacking[0]}'")
    check_all(f"{where}.scores", role["scores"], optional(AMOUNT))


def _made(cls: type[T], document: dict[str, Any], **parts: Any) -> T:
    """An instance of a dataclass from the entries of `document` that it has fields for; `parts` replace some."""
    return cls(**{f.name: document.get(f.name) for f in fields(cls)} | parts)  # type: ignore[arg-type]


def _made_or_none(cls: type[T], document: dict[str, Any] | None) -> T | None:
    return None if document is None else _made(cls, document)
