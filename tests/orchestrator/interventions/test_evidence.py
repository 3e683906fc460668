"""Evidence from a file: what it predicts, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.common.errors import UserError
from orchestrator.interventions.evidence import read_evidence
from orchestrator.interventions.measured import SUM
from tests.naming import naming
from tests.orchestrator.interventions.results import result_of

SOURCE = Path("models/one")
INTACT = {"code": 3.0, "prose": 3.0}


def written(folder: Path, result: Any) -> Path:
    path = folder / "evidence.json"
    path.write_text(json.dumps(result))
    return path


def test_the_sum_of_single_deletions_is_predicted_of_this_text_and_of_another(tmp_path: Path) -> None:
    evidence = read_evidence(written(tmp_path, result_of({"delete": [0.1, 0.2, 0.4]})))
    for text, is_same in (("digest", True), ("other", False)):
        found = evidence.predict(SOURCE, 3, [0, 2], text, INTACT)
        assert (found["how"], found["same_text"]) == (SUM, is_same)
        assert found["cost"]["code"] == pytest.approx({"mean": 0.5, "low": 0.48, "high": 0.52})


def test_a_model_that_was_moved_is_known_by_its_loss(tmp_path: Path) -> None:
    evidence = read_evidence(written(tmp_path, result_of({"delete": [0.1, 0.2, 0.4]})))
    moved = {"code": 3.0005, "prose": 2.9995}
    assert evidence.predict(Path("moved"), 3, [0], "digest", moved)["cost"]["code"]["mean"] == 0.1


@pytest.mark.parametrize(
    ("source", "depth", "text", "intact", "named"),
    [
        ("models/one", 4, "digest", INTACT, ["3 layers", "4"]),
        ("models/one", 3, "digest", {"code": 3.1, "prose": 3.0}, ["models/one", "code", "3.0000", "3.1000"]),
        ("models/one", 3, "digest", {"other": 3.0}, ["other", "unknown loss"]),
        ("models/two", 3, "other", INTACT, ["models/one", "models/two"]),
    ],
)
def test_evidence_of_another_model_is_refused(
    source: str, depth: int, text: str, intact: dict[str, float], named: list[str], tmp_path: Path
) -> None:
    path = written(tmp_path, result_of({"delete": [0.1, 0.2, 0.4]}))
    with pytest.raises(UserError, match=naming(path, *named)):
        read_evidence(path).predict(Path(source), depth, [0], text, intact)


def test_evidence_without_deletions_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, result_of({"repeat": [0.1, 0.2, 0.4]}))
    with pytest.raises(UserError, match=naming(path, "delete")):
        read_evidence(path).predict(SOURCE, 3, [0], "digest", INTACT)


@pytest.mark.parametrize(
    ("broken", "named"),
    [
        (lambda of: [of], "mapping"),
        (lambda of: {key: value for key, value in of.items() if key != "layers"}, "layers"),
        (lambda of: of | {"layers": {}}, "layers"),
        (lambda of: of | {"layers": [1, 2]}, "layer"),
        (lambda of: of | {"documents": {"third": 1}}, "third"),
        (lambda of: of | {"layers": [{"damage": {"delete": {"code": 0.1, "prose": 0.1}}}]}, "code"),
        (lambda of: json.loads(json.dumps(of).replace("0.11", '"x"')), "delete"),
    ],
)
def test_another_file_is_no_evidence(broken: Callable[[Any], Any], named: str, tmp_path: Path) -> None:
    path = written(tmp_path, broken(result_of({"delete": [0.1, 0.2, 0.4]})))
    with pytest.raises(UserError, match=naming(path, named, "intervene --json")):
        read_evidence(path)


def test_a_file_that_cannot_be_read_or_is_no_json_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"\xff{")
    for name in ("text", "absent", "."):
        with pytest.raises(UserError, match=naming(tmp_path / name, "intervene --json")):
            read_evidence(tmp_path / name)
