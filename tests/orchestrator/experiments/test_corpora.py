"""Cells of one arm are trained on one corpus, whatever became of the text since."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from orchestrator import intervene
from orchestrator.experiments.corpora import begun_with
from tests.naming import names

Orchestrate = Callable[..., int]
TEXTS = [f"Note {i}. A short text about the number {i}, and its square {i * i}." for i in range(400)]


def write(path: Path, texts: list[str]) -> None:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


@pytest.fixture
def train(orchestrate: Orchestrate, small: list[str], tmp_path: Path) -> Callable[..., int]:
    """Train the experiment `mine` on `notes.jsonl` at these seeds; returns the exit code."""
    write(tmp_path / "notes.jsonl", TEXTS)

    def run(seeds: str, *more: str) -> int:
        text = (
            "data=files",
            f"data.domains.text.path={tmp_path}/notes.jsonl",
            f"data.cache_dir={tmp_path}/outputs/.data",
        )
        arms = ("name=mine", "++arms={a: [], b: ['optim.lr=0.001']}", "declared=[optim.lr]")
        return orchestrate(*small, *text, *arms, "launcher=debug", f"seeds={seeds}", *more)

    return run


def grow(directory: Path) -> None:
    write(directory / "notes.jsonl", [*TEXTS, "More.", *(f"And {i} more." for i in range(99))])


def deleted(directory: Path) -> None:
    (directory / "notes.jsonl").unlink()


@pytest.mark.parametrize("change", [grow, deleted])
def test_a_seed_added_after_the_text_changed_has_the_corpus_of_the_others(
    train: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Callable[[Path], None]
) -> None:
    assert train("[0]") == 0
    recorded = yaml.safe_load((tmp_path / "outputs/mine/experiment.yaml").read_text())["data"]
    assert recorded["a"] == recorded["b"]
    assert recorded["a"]["domains"].keys() == {"text"}
    change(tmp_path)
    capsys.readouterr()
    assert train("[0,1]", "dry_run=true") == 0
    assert train("[0,1]") == 0
    (folder,) = {path.parent for path in (tmp_path / "outputs/.data").glob("*/meta.json")}
    assert names(capsys.readouterr().out, folder)
    digests = {begun_with(cell) for cell in tmp_path.glob("outputs/mine/*/seed=*")}
    assert digests == {recorded["a"]["digest"]}


def test_a_cell_on_other_text_is_refused_and_its_domain_named(
    train: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("[0]") == 0
    was = yaml.safe_load((tmp_path / "outputs/mine/experiment.yaml").read_text())["data"]["a"]["domains"]["text"]
    grow(tmp_path)
    shutil.rmtree(tmp_path / "outputs/.data")
    capsys.readouterr()
    assert train("[0]") == 0, "nothing is trained, so that no text is needed"
    assert not (tmp_path / "outputs/.data").exists()
    assert train("[0,1]") == 2
    assert names(capsys.readouterr().err, "data.domains.text", was, "data.cache_dir", "name=...")
    assert not [*tmp_path.glob("outputs/mine/*/seed=1")]
    write(tmp_path / "notes.jsonl", TEXTS)
    assert train("[0,1]") == 0


def test_an_experiment_without_a_record_goes_on_with_what_its_logs_know(
    train: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("[0]") == 0
    path = tmp_path / "outputs/mine/experiment.yaml"
    older = yaml.safe_load(path.read_text())
    recorded = older.pop("data")
    path.write_text(yaml.safe_dump(older))
    grow(tmp_path)
    shutil.move(tmp_path / "outputs/.data", tmp_path / "kept")
    capsys.readouterr()
    assert train("[0,1]") == 2
    assert names(capsys.readouterr().err, recorded["a"]["digest"][:12], "data.domains.*")
    shutil.rmtree(tmp_path / "outputs/.data")
    shutil.move(tmp_path / "kept", tmp_path / "outputs/.data")
    shutil.rmtree(tmp_path / "outputs/mine/b")  # an arm that had not begun has the text of one that had
    assert train("[0,1]") == 0
    assert yaml.safe_load(path.read_text())["data"] == recorded


def test_interventions_are_on_the_text_of_the_checkpoint(train: Callable[..., int], tmp_path: Path) -> None:
    assert train("[0]") == 0
    grow(tmp_path)
    assert (
        intervene.main([str(tmp_path / "outputs/mine/a/seed=0"), "--documents", "2", "--json", str(tmp_path / "j")])
        == 0
    )
