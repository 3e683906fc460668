"""Where configuration files are looked for: `conf/`, --config-dir, the user's own folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from orchestrator.config import compose
from tests.naming import names

Orchestrate = Callable[..., int]
EXPERIMENT = (
    "# @package _global_\nquestion: Is it mine?\narms: {a: [], b: [width=ramp]}\ndeclared: [width]\nseeds: [0]\n"
)


def _write(folder: Path, cells: int) -> None:
    """An experiment of one's own, and a launcher with so many cells at once."""
    for name, text in {
        "experiment/my_question": EXPERIMENT,
        "launcher/ours": f"defaults: [local]\nparallel: {cells}\n",
    }.items():
        path = folder / f"{name}.yaml"
        path.parent.mkdir(parents=True)
        path.write_text(text)


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's own folder, with files in it."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "settings"))
    _write(tmp_path / "settings/layer-roles", cells=3)
    return tmp_path / "settings/layer-roles"


def test_the_own_folder_is_where_xdg_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert compose.folders() == [compose.CONF]
    (tmp_path / ".config/layer-roles").mkdir(parents=True)
    assert compose.folders() == [compose.CONF, tmp_path / ".config/layer-roles"]
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "elsewhere"))
    assert compose.folders() == [compose.CONF]


@pytest.mark.usefixtures("own")
def test_experiments_of_the_own_folder_are_listed_and_run(
    orchestrate: Orchestrate, capsys: pytest.CaptureFixture[str]
) -> None:
    assert orchestrate() == 0
    listed = capsys.readouterr().out
    assert "my_question" in listed
    assert "Is it mine?" in listed
    assert orchestrate("+experiment=my_question", "launcher=ours", "dry_run=true") == 0
    assert names(capsys.readouterr().out, "outputs/my_question")


def test_experiments_of_a_config_dir_are_listed_and_run(
    orchestrate: Orchestrate, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    _write(tmp_path / "mine", cells=5)
    for option in (["--config-dir", "mine"], ["--config-dir=mine"], ["-cd", "mine"]):
        assert orchestrate(*option) == 0
        assert names(capsys.readouterr().out, "my_question", "Is it mine?", "width_ablation", "--config-dir mine")
    assert orchestrate() == 0
    assert "my_question" not in capsys.readouterr().out
    assert orchestrate("--config-dir", "nowhere") == 2
    assert names(capsys.readouterr().err, "nowhere")
    assert orchestrate("--config-dir", "mine", "+experiment=my_question", "launcher=ours", "dry_run=true") == 0
    assert names(capsys.readouterr().out, "outputs/my_question")


@pytest.mark.usefixtures("own")
def test_a_config_dir_comes_before_the_own_folder_and_conf_before_both(
    orchestrate: Orchestrate, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    _write(tmp_path / "mine", cells=5)
    (tmp_path / "mine/launcher/local.yaml").write_text("parallel: 7\n")
    for launcher, parallel in {"ours": "5", "local": "null"}.items():
        orchestrate("--config-dir", "mine", f"launcher={launcher}", "--cfg", "job")
        assert f"parallel: {parallel}\n" in capsys.readouterr().out
    orchestrate("launcher=ours", "--cfg", "job")
    assert "parallel: 3\n" in capsys.readouterr().out


def test_a_tracker_of_ones_own_has_its_own_values_and_the_environments_else(
    orchestrate: Orchestrate, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"MODE": "online", "PROJECT": "theirs", "ENTITY": "lab", "DIR": "files"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    (tmp_path / "conf/tracker").mkdir(parents=True)
    for name, text in {"mine": "project: x\n", "mode": "mode: offline\n", "all": "entity: e\ndir: d\n"}.items():
        (tmp_path / f"conf/tracker/{name}.yaml").write_text(text)
    known = {"mode": "online", "project": "theirs", "entity": "lab", "dir": "files", "tags": []}
    for words, own in {
        (): {},
        ("tracker=mine",): {"project": "x"},
        ("tracker=mode",): {"mode": "offline"},
        ("tracker=all",): {"entity": "e", "dir": "d"},
        ("tracker=offline",): {"mode": "offline"},
        ("tracker=mine", "tracker.project=y"): {"project": "y"},
    }.items():
        assert orchestrate("--config-dir", "conf", *words, "--cfg", "job", "--resolve", "--package", "tracker") == 0
        assert yaml.safe_load(capsys.readouterr().out) == known | own


@pytest.mark.parametrize("where", ["own", "config-dir"])
def test_what_is_mistyped_is_compared_with_all_folders(
    orchestrate: Orchestrate, capsys: pytest.CaptureFixture[str], own: Path, where: str
) -> None:
    words = [] if where == "own" else ["--config-dir", str(own.rename(own.with_name("mine")))]
    assert orchestrate(*words, "+experiment=my_questoin") == 2
    said = capsys.readouterr().err
    assert names(said, "'my_question'", "width_ablation")


def test_a_broken_file_is_named_where_it_is(
    orchestrate: Orchestrate, capsys: pytest.CaptureFixture[str], own: Path
) -> None:
    file = own / "experiment/my_question.yaml"
    file.write_text(EXPERIMENT.replace("arms", "armz"))
    assert orchestrate("+experiment=my_question") == 2
    assert names(capsys.readouterr().err, "settings/layer-roles/experiment/my_question.yaml", "'armz'")
    file.write_text("arms: [")
    assert orchestrate("+experiment=my_question") == 2
    assert str(file) in capsys.readouterr().err
