"""Check an experiment's description and metrics logs before anything is computed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

from orchestrator.common.errors import UserError
from orchestrator.common.shapes import (
    COUNT,
    LIST,
    MAPPING,
    NUMBER,
    POSITIVE,
    TEXT,
    WHOLE,
    Shape,
    ShapeError,
    check,
    check_all,
    check_shape,
    one_line,
    optional,
)
from orchestrator.storage.metrics_log import Record

DESCRIPTION: Shape = {  # experiment.yaml
    "arms": MAPPING, "seeds": LIST, "declared": LIST, "models": MAPPING, "contrasts": MAPPING, "expect": MAPPING,
    "machine": MAPPING, "code": LIST, "history": LIST, "steps": MAPPING, "lineage": MAPPING, "dropped": LIST,
    "decide": MAPPING, "looks": LIST, "launcher": MAPPING, "budget": MAPPING, "data": MAPPING,
}  # fmt: skip
HISTORY: Shape = {"since": TEXT, "seeds": LIST, "contrasts": MAPPING, "expect": MAPPING}  # an entry of `history`
HISTORY_IF_RECORDED: Shape = {"arms": LIST, "dropped": LIST, "steps": MAPPING, "decide": MAPPING}
BRANCH: Shape = {"arm": TEXT, "step": WHOLE, "experiment": optional(TEXT)}  # a trunk in `lineage`
MODEL: Shape = {"params": COUNT}
MODEL_IF_RECORDED: Shape = {"widths": LIST, "training_flops": POSITIVE}
RECORD: Shape = {"step": WHOLE, "digest": TEXT}  # a metrics log's line
DECISION: Shape = {"step": WHOLE, "evaluations": WHOLE, "backwards": WHOLE, "values": MAPPING}  # its sidecar's, if any
OF_FORKS: Shape = {"fork_steps": WHOLE, "differences": LIST}  # where it learns from forks


DAMAGE: Shape = {"step": WHOLE, "layers": LIST}  # what interventions on a checkpoint did
LAYER_DAMAGE: Shape = {"layer": WHOLE, "role": TEXT, "damage": MAPPING}  # one of its layers


@contextmanager
def refusing(path: Path, cure: str) -> Iterator[None]:
    """Turn a `ShapeError` into a `UserError` that names the file and the cure."""
    try:
        yield
    except ShapeError as error:
        raise UserError(f"{path}: {one_line(error)}: {cure}.") from error


def check_description(spec: dict[str, Any]) -> None:
    """Raise `ShapeError` for the first invalid value of an experiment.yaml, except in `expect` and `contrasts`."""
    check_shape("its content", spec, DESCRIPTION)
    seeds = spec["seeds"]
    check_all("seeds", seeds, WHOLE)
    if repeated := [seed for seed in seeds if seeds.count(seed) > 1]:
        raise ShapeError(f"seeds has {repeated[0]} more than once, but a replicate counts once")
    check_all("code", spec["code"], MAPPING)
    check_all("data", spec["data"], MAPPING)
    for index, entry in enumerate(spec["history"]):
        check_shape(f"history.{index}", entry, HISTORY)
        check_shape(f"history.{index}", entry, {key: of for key, of in HISTORY_IF_RECORDED.items() if key in entry})
    check_all("steps", spec["steps"], POSITIVE)
    for arm, trunk in spec["lineage"].items():
        check_shape(f"lineage.{arm}", trunk, BRANCH)
    for arm, model in spec["models"].items():
        where = f"models.{arm}"
        check_shape(where, model, MODEL)
        check_shape(where, model, {key: kind for key, kind in MODEL_IF_RECORDED.items() if key in model})
        check_all(f"{where}.widths", model.get("widths", []), POSITIVE)


def check_metrics(records: list[Record]) -> None:
    """Raise `ShapeError` for the first record that lacks a key or does not follow the one before it."""
    units: dict[str, Any] | None = None  # channel → names of its units
    for record in records:
        check_shape("a record", record, RECORD)
        for split in ("heldout", "test"):
            if split in record:
                check_all(split, record[split], NUMBER)
        if "sidecar" in record:
            decision = record["sidecar"]
            check_shape("sidecar", decision, DECISION)
            check_shape("sidecar", decision, {key: kind for key, kind in OF_FORKS.items() if key in decision})
            for index, pair in enumerate(decision.get("differences", [])):
                check("sidecar.differences", str(index), pair, LIST)
                check_all(f"sidecar.differences.{index}", pair, optional(NUMBER))
                if len(pair) != 2:
                    raise ShapeError(f"sidecar.differences.{index} is not of two horizons")
            for channel, values in decision["values"].items():
                check_all(f"sidecar.values.{channel}", values, POSITIVE)
                if not values:
                    raise ShapeError(f"sidecar.values.{channel} has no unit")
            governed = {channel: values.keys() for channel, values in decision["values"].items()}
            units = governed if units is None else units
            if governed != units:
                raise ShapeError(f"the sidecar's units at step {record['step']} are not those of its first record")
    for before, after in pairwise(record["step"] for record in records):
        if after <= before:
            raise ShapeError(f"step {after} follows step {before}")


def check_damage(document: Any, step: int) -> None:
    """Raise `ShapeError` for the first value that is not as `intervene` writes it of the checkpoint of `step`."""
    check_shape("its content", document, DAMAGE)
    if document["step"] != step:
        raise ShapeError(f"its step is {document['step']}, but the file is named for step {step}")
    for index, layer in enumerate(document["layers"]):
        check_shape(f"layers.{index}", layer, LAYER_DAMAGE)
        for edit, of_edit in layer["damage"].items():
            where = f"layers.{index}.damage.{edit}"
            check(where.rpartition(".")[0], edit, of_edit, optional(MAPPING))
            for domain, of_domain in (of_edit or {}).items():
                check(where, domain, of_domain, MAPPING)
                check_shape(f"{where}.{domain}", of_domain, {"mean": optional(NUMBER)})
