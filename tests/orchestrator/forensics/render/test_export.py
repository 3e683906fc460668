"""Files: JSON without NaN, CSV that reads back, targets refused before the work, and disks that are full."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from orchestrator.common.command import output, write_json
from orchestrator.common.errors import UserError
from orchestrator.forensics.analyzer import analyze
from orchestrator.forensics.reading import rows_of
from orchestrator.forensics.render.export import PICTURES, refuse_foreign, write_csv, write_figure
from tests.naming import naming

FIRST = ["layer", "role", "margin", "score_hub", "score_damper", "score_passthrough", "score_specialist", "role_paper"]
TOP = {  # DESIGN
    "schema", "definitions", "source", "family", "step", "scoring", "missing", "layers", "totals", "pathology",
}  # fmt: skip
LAYER = {"layer", "role", "margin", "scores", "role_paper", "evidence", "coverage", "width", "measures"}


def test_json_is_the_document(checkpoint: Callable[..., Any], tmp_path: Path) -> None:
    result = analyze(checkpoint().write(), resamples=2).to_json()
    write_json(result, tmp_path / "f.json")
    read = json.loads((tmp_path / "f.json").read_text(), parse_constant=pytest.fail)
    assert read == result
    assert set(read) >= TOP
    assert all(set(layer) >= LAYER for layer in read["layers"])
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json({"cv": float("nan")}, tmp_path / "nan.json")


def test_csv_has_one_row_per_layer_and_every_measure(checkpoint: Callable[..., Any], tmp_path: Path) -> None:
    result = analyze(checkpoint(norm="pre").write(optimizer=False), resamples=2)
    write_csv(rows_of(result), tmp_path / "f.csv")
    with (tmp_path / "f.csv").open(newline="") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    assert list(reader.fieldnames or [])[: len(FIRST)] == FIRST
    assert len(rows) == len(result.layers)
    for row, layer in zip(rows, result.layers, strict=True):
        assert row["role"] == layer.role
        assert row["evidence"].split() == layer.evidence
        assert {role: float(row[f"score_{role}"]) for role in layer.scores} == layer.scores
        for key, value in layer.measures.items():
            assert row[key] == "" if value is None else float(row[key]) == value


@pytest.mark.parametrize("suffix", [*PICTURES, ".PNG"])
def test_every_kind_that_is_named_is_drawn(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    assert output(str(path), PICTURES) == path
    figure = Figure(figsize=(2, 1))
    figure.subplots().plot([1, 2])
    write_figure(figure, path)
    assert path.stat().st_size > 500


def test_a_full_disk_is_one_sentence() -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full here")
    for write in (lambda: write_json({"a": 1}, full), lambda: write_csv([{"a": 1}], full)):
        with pytest.raises(UserError, match=naming("/dev/full", "No space left on device")):
            write()


def test_what_is_no_earlier_result_is_not_written_over(checkpoint: Callable[..., Any], tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    write_json(analyze(checkpoint().write(), resamples=2).to_json(), result)
    for allowed in (result, tmp_path / "new.json"):
        refuse_foreign(allowed)
    for name, content in (("model.safetensors", b"\x08" + b"\0" * 9), ("config.json", b'{"hidden_size": 4}')):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=naming(tmp_path / name, "not an earlier result")):
            refuse_foreign(tmp_path / name)
        assert (tmp_path / name).read_bytes() == content
