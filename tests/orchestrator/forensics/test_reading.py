"""A reading's JSON: what is written is read back, and what cannot be is refused by its key."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.common.errors import UserError
from orchestrator.common.shapes import ShapeError
from orchestrator.forensics.analyzer import analyze
from orchestrator.forensics.reading import Key, Reading, read_reading
from tests.orchestrator.reading import layer_json, reading_json

Change = Callable[[dict[str, Any]], Any]


def test_what_is_written_is_read_back(checkpoint: Callable[..., Any]) -> None:
    reading = analyze(checkpoint(widths=(16,) * 4).write(), resamples=2)
    for one in (reading, replace(reading, key=Key("ab", 1))):
        written = json.loads(json.dumps(one.to_json()))
        assert Reading.from_json(written) == one
        assert Reading.from_json(written).to_json() == written
        assert ("key" in written) == (one.key is not None)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (lambda r: r.pop("family"), "family"),
        (lambda r: r.update(step=-1), "step"),
        (lambda r: r.update(assumed=[3]), "assumed"),
        (lambda r: r["options"].pop("seed"), "options"),
        (lambda r: r["options"].update(probed=0), "probed"),
        (lambda r: r.update(key={"checkpoint": "ab"}), "definitions"),
        (lambda r: r["layers"][0].pop("super_weight"), "super_weight"),
        (lambda r: r["layers"][0].update(super_weight={"row": 1}), r"layers\.0\.super_weight"),
        (lambda r: r["layers"][0].update(role_paper="wizard"), "role_paper"),
        (lambda r: r["layers"][0]["scorings"].update(paper={}), r"layers\.0\.scorings\.paper"),
        (lambda r: r["layers"][0]["scorings"]["paper"].update(scores={}), r"scorings\.paper\.scores"),
        (lambda r: r["layers"][0].update(coverage="all"), "coverage"),
        (lambda r: r["layers"].append(layer_json(7)), r"layers\.1"),
    ],
)
def test_a_value_that_cannot_be_is_named(change: Change, key: str) -> None:
    document = reading_json([layer_json()])
    change(document)
    with pytest.raises(ShapeError, match=key):
        Reading.from_json(document)


@pytest.mark.parametrize("document", [None, [], 3, "text", {}])
def test_no_reading_is_refused(document: Any) -> None:
    with pytest.raises(ValueError, match="content"):
        Reading.from_json(document)


def test_a_file_is_named_with_its_cure(tmp_path: Path) -> None:
    path = tmp_path / "cell/forensics/step_00000010.json"
    path.parent.mkdir(parents=True)
    for content in ("{", json.dumps(reading_json([], step=11)), json.dumps(reading_json([], step=10, totals=3))):
        path.write_text(content)
        with pytest.raises(UserError, match=r"step_00000010\.json.*python -m orchestrator\.forensics"):
            read_reading(path)
    path.write_text(json.dumps(reading_json([], step=10)))
    assert read_reading(path).step == 10


@pytest.mark.parametrize(
    ("declared", "layout", "shown"),
    [
        ("bamba", "jamba", "bamba (layout of jamba)"), ("llama", "llama", "llama"), ("", "llama", "llama"),
        ("deberta-v2", "deberta_v2", "deberta_v2"), ("norm=pre", "llama", "llama"),
        ("mine", "inferred", "mine (layout inferred)"), ("", "inferred", "inferred"),
    ],
)  # fmt: skip
def test_the_declared_family_is_shown_with_its_layout(declared: str, layout: str, shown: str) -> None:
    assert replace(Reading.from_json(reading_json([])), declared=declared, family=layout).family_and_layout == shown
