"""The reading of one checkpoint: a report of each layer. Made by `analyze`, and checked here where a file holds one."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from orchestrator.common.errors import UserError
from orchestrator.common.shapes import AMOUNT, COUNT, NUMBER, ShapeError, check_all, from_json, one_line, optional
from orchestrator.forensics.measures.expert_report import ExpertReport
from orchestrator.forensics.measures.finding import Finding
from orchestrator.forensics.roles.routing import ROLES, Role, RoleName
from orchestrator.storage.steps import step_in

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = 1
DEFINITIONS = 2  # version of SCIENCE's definitions
COUNTS = ("saturated", "saturated_robust", "saturated_fixed")  # the specialist budget under each threshold
TOTALS = tuple(key for count in COUNTS for key in (count, f"{count}_expected"))


@dataclass(frozen=True)
class SuperWeight:
    """The entry of `down` that writes most."""

    row: int  # residual coordinate
    position: int  # FFN position


@dataclass(frozen=True)
class LayerReport:
    """One layer: its role under the scoring shown and under each scoring, and its measures."""

    layer: int
    role: RoleName
    margin: float
    scores: dict[str, float | None]
    evidence: list[str]
    coverage: float
    role_paper: RoleName
    scorings: dict[str, Role]
    width: Annotated[int, COUNT]  # residual coordinates
    super_weight: SuperWeight | None  # null where chance gives one as strong
    measures: dict[str, Annotated[float, NUMBER] | None]  # null where a measure is absent
    holds: list[str] = field(default_factory=list)  # such as attention and FFN; empty in readings of older versions
    experts: list[ExpertReport] = field(default_factory=list)  # of a mixture, the shared one last; else empty


@dataclass(frozen=True)
class Matrices:
    """Values of pairs of layers, to four digits; null where absent."""

    composition: list[list[float | None]]  # C(l→m), [L+1][L or L+1]: writers, embedding first; readers, any head last
    coupling: list[list[float | None]]  # best match of a head in one layer with a head in the other, [L][L]


@dataclass(frozen=True)
class Options:
    """The options of a reading."""

    reference: str | None  # checkpoint whose thresholds `saturated_fixed` uses
    optimizer: str | None
    resamples: int
    seed: int
    probed: bool
    tokens: int | None  # run through the model
    weights: str | None = None  # which of several models in the source
    base: str | None = None  # the model that an adapter was added to
    gradients: int | None = None  # tokens on which the model was run backwards
    delta: bool = False  # read what the adapter adds, and not the sum
    unprobed: str | None = None  # why tokens cannot be run through this source at all


@dataclass(frozen=True)
class Key:
    """Checkpoint and definitions of a reading, which is up to date while both are the same."""

    checkpoint: str  # sha256 of the manifest.json that it was saved with, which holds that of everything else
    definitions: int


@dataclass(frozen=True)
class Reading:
    """The layer reports of one checkpoint, and how they were made. Its fields are the keys of its JSON, in order."""

    schema: int
    definitions: int
    source: str
    family: str  # the layout that its tensors were read in
    assumed: list[str]
    step: int | None  # null for a checkpoint that records none
    scoring: str
    options: Options
    missing: list[str]  # measures that no layer has
    substitutes: dict[str, str]  # measure → what it was read from, where not from its definition's first choice
    layers: list[LayerReport]
    totals: dict[str, float | None]  # `TOTALS`, over the layers
    pathology: list[Finding]  # worst first
    matrices: Matrices | None = None  # absent from readings of older definitions
    heads_assumed: list[str] = field(default_factory=list)  # of heads that nothing declares
    declared: str = ""  # the family that its description declares ("norm=…" in ours); empty where none does
    key: Key | None = None  # of a cell's reading; absent from other files

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        document = asdict(self)
        if self.key is None:
            del document["key"]
        return document

    def by(self, scoring: str) -> Reading:
        """The same with the roles by another scoring."""
        layers = [replace(layer, **vars(layer.scorings[scoring])) for layer in self.layers]
        return replace(self, scoring=scoring, layers=layers)

    @property
    def family_and_layout(self) -> str:
        """The declared family, and the layout where it has another name: `bamba (layout of jamba)`."""
        declared, layout = self.declared, self.family
        if not declared or "=" in declared or declared.replace("-", "_") == layout:  # ours declares norm=…
            return layout
        return f"{declared} (layout {'inferred' if layout == 'inferred' else f'of {layout}'})"

    def to_pandas(self, experts: bool = False) -> pd.DataFrame:
        """One row per layer, as `rows_of` has them; an absent score or measure is NaN.

        `experts`: also one for each expert of a mixture, as `rows_with_experts` has them.
        """
        import pandas as pd

        table = pd.DataFrame(rows_with_experts(self) if experts else rows_of(self))
        others = ("layer", "expert", "width", "role", "role_paper", "evidence", "holds")
        return table.astype({key: float for key in table.columns if key not in others})

    @classmethod
    def from_json(cls, document: Any) -> Reading:
        """The reading that `to_json` gave. Raises `ShapeError`, naming the key, for the first value that cannot be."""
        reading = from_json(cls, document)
        for index, layer in enumerate(reading.layers):
            where = f"layers.{index}"
            if layer.layer != index:
                raise ShapeError(f"{where} calls itself layer {layer.layer}")
            check_all(f"{where}.measures", {name: layer.measures.get(name) for name in TOTALS}, optional(AMOUNT))
            scorings = {f"{where}.scorings.{name}": role.scores for name, role in layer.scorings.items()}
            for key, scores in {where: layer.scores, **scorings}.items():
                if lacking := [role for role in ROLES if role not in scores]:
                    raise ShapeError(f"{key}.scores has no '{lacking[0]}'")
        return reading


def read_reading(path: Path) -> Reading:
    """The reading in a cell's `forensics/step_<n>.json`.

    Raises `OSError` where it is gone, and `UserError`, naming file, key and cure, where it is not a reading or is of
    another step.
    """
    checkpoint = path.parents[1] / "checkpoints" / path.stem
    cure = f"write it again with python -m orchestrator.forensics {checkpoint} --json {path}"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # not JSON, not even text, or nested without end
        raise UserError(f"{path} is not JSON ({one_line(error)}): {cure}.") from error
    try:
        reading = Reading.from_json(document)
        if reading.step is None or step_in(path.stem) != reading.step:
            raise ShapeError(f"its step is {reading.step}, but the file is named for step {step_in(path.stem)}")
    except ShapeError as error:
        raise UserError(f"{path}: {one_line(error)}: {cure}.") from error
    return reading


def rows_of(reading: Reading) -> list[dict[str, Any]]:
    """One row per layer: layer, role, margin, each score, the paper's role, evidence, each measure."""
    return [
        {
            "layer": layer.layer,
            "role": layer.role,
            "margin": layer.margin,
            **{f"score_{role}": score for role, score in layer.scores.items()},
            "role_paper": layer.role_paper,
            "evidence": " ".join(layer.evidence),
            "coverage": layer.coverage,
            "width": layer.width,
            "holds": ", ".join(layer.holds),
            **layer.measures,
        }
        for layer in reading.layers
    ]


def rows_with_experts(reading: Reading) -> list[dict[str, Any]]:
    """The rows of `rows_of`; in a mixture, each layer's is followed by one for each expert, with the same keys.

    There `expert` is the number, `shared`, or empty for the layer itself; only measures of one expert are filled in.
    """
    rows = rows_of(reading)
    if not any(layer.experts for layer in reading.layers):
        return rows
    found = []
    for layer, row in zip(reading.layers, rows, strict=True):
        own = {"layer": layer.layer, "expert": "", "router_share": None}
        found.append(own | row)
        empty = dict.fromkeys(found[-1])
        found += [
            empty
            | {"layer": layer.layer, "expert": "shared" if expert.expert is None else str(expert.expert)}
            | {"router_share": expert.router_share, **expert.measures}
            for expert in layer.experts
        ]
    return found


def profile(reading: Reading, measure: str) -> np.ndarray | None:
    """One measure of every layer, [L]; null unless every layer has it."""
    values = [layer.measures.get(measure) for layer in reading.layers]
    return None if any(value is None for value in values) else np.asarray(values, dtype=np.float64)


def total(reading: Reading, measure: str) -> float | None:
    """A measure's sum over the layers; null unless every layer has it."""
    values = profile(reading, measure)
    return None if values is None else float(values.sum())


def spread(reading: Reading, measure: str = "attention_share") -> float | None:
    """Standard deviation of a measure, by default attention's share of the energy, over the layers; null for one."""
    shares = profile(reading, measure)
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
