"""What a user types, and what a user mistypes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import orchestrator.__main__ as main_module
from orchestrator.config import compose
from orchestrator.experiments import catalog

Orchestrate = Callable[..., int]


def sentence(capsys: pytest.CaptureFixture[str]) -> str:
    """What was said on stderr: one line, no traceback."""
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1, error
    assert "Traceback" not in error
    return error


def test_without_arguments_the_experiments_are_listed(
    orchestrate: Orchestrate, capsys: pytest.CaptureFixture[str]
) -> None:
    assert orchestrate() == 0
    printed = capsys.readouterr().out
    assert "width_ablation" in printed
    assert "Does the width profile decide" in printed


PACKAGE = "# @package _global_\n"
MISWRITTEN = {
    "a key": (f"{PACKAGE}question: q\narmz: {{a: []}}", "'armz' is no configuration key (did you mean 'arm'?)"),
    "no package": ("question: q\narms: {a: []}", "its first line must be '# @package _global_'"),
    "no package, a default": ("defaults: [override /model: nano]\narms: {a: []}", "its first line must be"),
    "arms of keys": (f"{PACKAGE}arms: {{a: {{optim.lr: 0.1}}}}", "'arms.a' is no list of overrides: write [optim"),
}


@pytest.mark.parametrize("name", MISWRITTEN)
def test_a_miswritten_experiment_says_what_is_wrong_with_it(
    orchestrate: Orchestrate, capsys: pytest.CaptureFixture[str], conf: Path, name: str
) -> None:
    content, expected = MISWRITTEN[name]
    (conf / "experiment/mine.yaml").write_text(content)
    assert orchestrate("+experiment=mine", "dry_run=true") == 2
    said = sentence(capsys)
    assert said.startswith("conf/experiment/mine.yaml: ")
    assert expected in said
    assert orchestrate() == 0  # the list names it, and shows the others
    assert {"decay_controls", "conf/experiment/mine.yaml:"} <= set(capsys.readouterr().out.split())


def test_an_experiment_without_a_name_has_its_files(
    orchestrate: Orchestrate, capsys: pytest.CaptureFixture[str], conf: Path
) -> None:
    (conf / "experiment/mine.yaml").write_text(f"{PACKAGE}arms: {{a: [], b: [optim.lr=0.001]}}\ndeclared: [optim]")
    assert orchestrate("+experiment=mine", "dry_run=true", "model=nano") == 0
    assert "into outputs/mine" in capsys.readouterr().out


@pytest.fixture
def conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of conf/ to write into."""
    copy = tmp_path / "conf"
    shutil.copytree(main_module.CONF, copy)
    for module in (main_module, compose, catalog):
        monkeypatch.setattr(module, "CONF", copy)
    return copy


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["+experiment=width_ablation", "expect.uniform.late=hub"], "write ++expect.uniform.late=…"),
        (["width=rmap"], "There is no width 'rmap' (did you mean 'ramp'?)"),
        (
            ["+experiment=width_ablaton"],
            "There is no experiment 'width_ablaton' (did you mean 'width_ablation'?)",
        ),
        (["optim.lrr=1"], "'optim.lrr' is no configuration key (did you mean 'optim.lr'?)"),
        (["widht=ramp"], "'widht' is no configuration key (did you mean 'width'?)"),
        (["+foo=1"], "'foo' is no configuration key"),
        (
            ["train.steps=many"],
            "train.steps=many: Value 'many' of type 'str' could not be converted to Integer",
        ),
        (["model.norm=post"], "model.norm=post: Invalid value 'post', expected one of [pre, sandwich]"),
        (["width="], "width"),
        (["=3"], "=3"),
        (["foo"], "'foo' is no override: write key=value"),
        (["lr=0.001"], "'lr' is no configuration key (did you mean 'optim.lr'?)"),
        (["experiment=width_ablation"], "write +experiment=width_ablation"),
        (["tracker=offline", "data.tokenizer.kind=bpe"], "model.vocab_size"),
        (["width=128"], "Config group override must be a string or a list. Got int; a group such as width"),
        (["model.head_dim=24"], "or model.heads=nearest"),
        (["width=explicit"], "width.widths"),
        (["width=explicit", "width.widths=[64,64]"], "widths"),
        (["data=files", "data.domains.text.path=absent.txt"], "absent.txt"),
        (["model.vocab_size=100"], "model.vocab_size"),
        (["data.heldout_tokens=10"], "heldout_tokens"),
        (["train.device=cuda"], "train.device=auto"),
        (["+experiment=width_ablation", "optim.lr=-1"], "optim.lr=-1.0 must be a positive"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    orchestrate: Orchestrate,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    arguments: list[str],
    expected: str,
) -> None:
    for dry_run in ("true", "false"):  # a plan is not made for what would be refused
        where = (f"root={tmp_path}/out", f"dry_run={dry_run}", "launcher=debug")
        assert orchestrate("tracker=off", *arguments, *where) == 2
        assert expected in sentence(capsys)
    assert not list(tmp_path.glob("out/*/*/seed=*")), "nothing may be started"


def test_an_empty_file_is_named(orchestrate: Orchestrate, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    assert orchestrate("data=files", f"data.domains.text.path={tmp_path}/empty.txt", f"root={tmp_path}/out") == 2
    assert "empty.txt" in sentence(capsys)


def test_online_without_a_key_is_refused_before_training(
    orchestrate: Orchestrate,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    small: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for key in ("WANDB_API_KEY", "NETRC", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(key, raising=False)
    assert orchestrate(*small[:-2], f"root={tmp_path}/out", "tracker=online") == 2
    assert "tracker=offline" in sentence(capsys)
    assert not (tmp_path / "out/single").exists()


def test_one_cell_here_and_then_nothing_is_left(
    orchestrate: Orchestrate, capsys: pytest.CaptureFixture[str], small: list[str], tmp_path: Path
) -> None:
    assert orchestrate(*small, "launcher=debug", "width=ramp", "seed=3") == 0
    cell = next((tmp_path / "outputs").glob("*/main/seed=3"))
    assert (cell / "checkpoints/step_00000012/manifest.json").is_file()
    capsys.readouterr()
    assert orchestrate(*small, "launcher=debug", "width=ramp", "seed=3") == 0
    assert "Nothing is left to do" in capsys.readouterr().out


def test_changed_config_under_the_same_name_is_refused(
    orchestrate: Orchestrate, capsys: pytest.CaptureFixture[str], small: list[str]
) -> None:
    common = [*small, "launcher=debug", "name=mine"]
    assert orchestrate(*common) == 0
    capsys.readouterr()
    for dry_run in ("true", "false"):
        assert orchestrate(*common, "optim.lr=0.01", f"dry_run={dry_run}") == 2
        assert "optim.lr was 0.002 and is 0.01" in sentence(capsys)


@pytest.mark.parametrize("file", ["outputs", "outputs/mine"])
def test_a_file_where_the_directory_belongs_is_one_sentence(
    orchestrate: Orchestrate, capsys: pytest.CaptureFixture[str], small: list[str], tmp_path: Path, file: str
) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text("in the way")
    assert orchestrate(*small, "launcher=debug", "name=mine") == 2
    assert f"{file} is a file, and the run needs a directory: choose another name=..." in sentence(capsys)


def test_damage_to_a_finished_cell_is_mended(
    orchestrate: Orchestrate, capsys: pytest.CaptureFixture[str], small: list[str], tmp_path: Path
) -> None:
    common = [*small, "launcher=debug", "name=mine"]
    assert orchestrate(*common) == 0
    cell = tmp_path / "outputs/mine/main/seed=0"
    ledger, reading = cell / "metrics.jsonl", cell / "forensics/step_00000006.json"
    rows, measured = ledger.read_text().splitlines(), reading.read_text()
    ledger.write_text("\n".join(rows[:-2]) + "\n" + rows[-2][:20])  # the end of the file was lost
    reading.unlink()
    assert orchestrate(*common) == 0
    assert "ahead of the metrics log" in (tmp_path / "outputs/mine/events.jsonl").read_text()
    assert reading.read_text() == measured
    steps = [json.loads(line)["step"] for line in ledger.read_text().splitlines()]
    assert steps == [json.loads(line)["step"] for line in rows]
    capsys.readouterr()
    assert orchestrate(*common) == 0
    assert "Nothing is left to do" in capsys.readouterr().out


def test_a_broken_experiment_file_is_named(
    orchestrate: Orchestrate, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shutil.copytree(main_module.CONF, tmp_path / "conf")
    (tmp_path / "conf/experiment/broken.yaml").write_text("# @package _global_\narms: [a\n")
    for module in (main_module, compose, catalog):
        monkeypatch.setattr(module, "CONF", tmp_path / "conf")
    assert orchestrate() == 0
    printed = capsys.readouterr().out
    assert "is not YAML" in " ".join(printed.split())
    assert "Does the width profile decide" in printed
    assert orchestrate("+experiment=broken") == 2
    assert "is not YAML" in sentence(capsys)


def test_a_failed_cell_is_named_with_its_reason(
    orchestrate: Orchestrate, capsys: pytest.CaptureFixture[str], small: list[str]
) -> None:
    arms = "++arms={good: [], bad: ['optim.lr=1e36']}"
    assert (
        orchestrate(
            *small,
            "launcher=debug",
            "name=x",
            arms,
            "declared=[optim.lr]",
            "seeds=[0]",
            "optim.weight_decay=0",
        )
        == 2
    )
    output = capsys.readouterr()
    assert "bad/seed=0 failed: The" in output.err
    assert "lower optim.lr" in output.err
    assert "good/seed=0" not in output.err


def test_a_multirun_job_is_one_whole_experiment(orchestrate: Orchestrate, small: list[str], tmp_path: Path) -> None:
    short = ["train.steps=2", "forensics.every=2"]
    arms = "++arms={a: [], b: ['width=ramp']}"
    code = orchestrate(
        "-m",
        *small,
        *short,
        "launcher=debug",
        "name=sweep",
        arms,
        "declared=[width]",
        "seeds=[0]",
        "optim.lr=0.001,0.002",
    )
    assert code == 0
    names = sorted(p.name for p in (tmp_path / "outputs").glob("sweep*"))
    assert names == ["sweep__optim.lr=0.001", "sweep__optim.lr=0.002"]
    assert all((tmp_path / "outputs" / name / "comparison/verdict.json").is_file() for name in names)
