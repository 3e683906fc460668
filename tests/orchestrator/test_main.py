"""Commands as users type and mistype them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

import orchestrator.__main__ as main_module
from orchestrator import compare, status
from orchestrator.config import compose
from orchestrator.experiments import catalog
from tests.naming import names

Orchestrate = Callable[..., int]


def sentence(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr, which is not a traceback."""
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1, error
    assert "Traceback" not in error
    return error


def test_without_arguments_the_experiments_are_listed(
    orchestrate: Orchestrate, capsys: pytest.CaptureFixture[str]
) -> None:
    assert orchestrate() == 0
    question = yaml.safe_load((main_module.CONF / "experiment/width_ablation.yaml").read_text())["question"]
    assert names(capsys.readouterr().out, "width_ablation", question)


PACKAGE = "# @package _global_\n"
MISWRITTEN = {
    "a key": (f"{PACKAGE}question: q\narmz: {{a: []}}", ["'armz'", "'arm'?"]),
    "no package": ("question: q\narms: {a: []}", ["'# @package _global_'"]),
    "no package, a default": ("defaults: [override /model: nano]\narms: {a: []}", ["'# @package _global_'"]),
    "arms of keys": (f"{PACKAGE}arms: {{a: {{optim.lr: 0.1}}}}", ["'arms.a'", "[]"]),
}


def test_a_bare_off_in_defaults_is_to_be_quoted(
    orchestrate: Orchestrate, capsys: pytest.CaptureFixture[str], conf: Path
) -> None:
    text = f"{PACKAGE}defaults:\n  - override /tracker: off\nquestion: q\narms: {{a: []}}"
    (conf / "experiment/mine.yaml").write_text(text)
    assert orchestrate("+experiment=mine", "dry_run=true") == 2
    assert names(sentence(capsys), '"off"', "quotes")


@pytest.mark.parametrize("name", MISWRITTEN)
def test_a_miswritten_experiment_says_what_is_wrong_with_it(
    orchestrate: Orchestrate, capsys: pytest.CaptureFixture[str], conf: Path, name: str
) -> None:
    content, named = MISWRITTEN[name]
    (conf / "experiment/mine.yaml").write_text(content)
    assert orchestrate("+experiment=mine", "dry_run=true") == 2
    said = sentence(capsys)
    assert said.startswith("conf/experiment/mine.yaml: ")
    assert names(said, *named)
    assert orchestrate() == 0  # the list names it, and shows the others
    assert {"decay_controls", "conf/experiment/mine.yaml:"} <= set(capsys.readouterr().out.split())


def test_an_experiment_without_a_name_has_its_files(
    orchestrate: Orchestrate, capsys: pytest.CaptureFixture[str], conf: Path
) -> None:
    (conf / "experiment/mine.yaml").write_text(f"{PACKAGE}arms: {{a: [], b: [optim.lr=0.001]}}\ndeclared: [optim]")
    assert orchestrate("+experiment=mine", "dry_run=true", "model=nano") == 0
    assert names(capsys.readouterr().out, "outputs/mine")


@pytest.fixture
def conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of conf/ to write into."""
    copy = tmp_path / "conf"
    shutil.copytree(main_module.CONF, copy)
    for module in (main_module, compose, catalog):
        monkeypatch.setattr(module, "CONF", copy)
    return copy


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["+experiment=width_ablation", "expect.uniform.late=hub"], ["++expect.uniform.late=…"]),
        (["width=rmap"], ["width 'rmap'", "'ramp'?"]),
        (["+experiment=width_ablaton"], ["experiment 'width_ablaton'", "'width_ablation'?"]),
        (["optim.lrr=1"], ["'optim.lrr'", "'optim.lr'?"]),
        (["widht=ramp"], ["'widht'", "'width'?"]),
        (["+foo=1"], ["'foo'", "key"]),
        (["train.steps=many"], ["train.steps=many", "'many'", "Integer"]),
        (["model.norm=post"], ["model.norm=post", "'post'", "[pre, sandwich]"]),
        (["width="], ["width"]),
        (["=3"], ["=3"]),
        (["foo"], ["'foo'", "key=value"]),
        (["lr=0.001"], ["'lr'", "'optim.lr'?"]),
        (["experiment=width_ablation"], ["+experiment=width_ablation"]),
        (["tracker=offline", "data.tokenizer.kind=bpe"], ["model.vocab_size"]),
        (["width=128"], ["int", "width"]),
        (["model.head_dim=24"], ["model.head_dim=24", "model.heads=nearest"]),
        (["width=explicit"], ["width.widths=[…]", "width.profile=explicit"]),
        (["width=explicit", "width.widths=[64,64]"], ["widths"]),
        (["data=files", "data.domains.text.path=absent.txt"], ["absent.txt"]),
        (["model.vocab_size=100"], ["model.vocab_size"]),
        (["data.heldout_tokens=10"], ["data.heldout_tokens"]),
        (["train.device=cuda"], ["train.device=auto"]),
        (["+experiment=width_ablation", "optim.lr=-1"], ["optim.lr=-1.0", "positive"]),
        (["optim.lr=0.1,0.2"], ["optim.lr=0.1,0.2", "-m"]),
        (["+experiment=width_ablation,trajectory"], ["+experiment=width_ablation,trajectory", "-m"]),
        (["+experiment=width_ablation", "seeds=0,1"], ["seeds=[0,1]"]),
        (["seeds=3"], ["seeds=3", "seeds=[3]"]),
        (["+experiment=width_ablation", "declared=width"], ["declared=[width]"]),
        (["+experiment=width_ablation", "+experiment=trajectory"], ["-m +experiment=width_ablation,trajectory"]),
        (["--experiment", "width_ablation"], ["--experiment", "+experiment=NAME"]),
        (["--experiment=width_ablation"], ["+experiment=width_ablation"]),
        (["--seeds=[3]"], ["--seeds=[3]", "seeds=[3]"]),
        (["--experimental-rerun=x.pickle"], ["--experimental-rerun", "code"]),
        (["++arms={a: [optim.lr=0.1], b: []}"], ["++arms={a: ['optim.lr=0.1'], b: []}"]),
        (["++search.space={optim.lr: log(1e-4, 1e-2)}"], ['++search.space={optim.lr: "log(1e-4, 1e-2)"}']),
        (["++arms=a:[optim.lr=0.1]", "++arms=b:[]"], ["++arms=a:[optim.lr=0.1]", "quotes"]),
        (["seeds=[0,", "1]"], ["seeds=[0,", "quotes"]),
        (["seeds=[0,-1]"], ["seed -1"]),
        ([f"seed={2**80}"], [f"seed {2**80}"]),
        (["--config-name=nope"], ["nope.yaml", "--config-dir"]),
        (["-m", "+experiment=glob(nix*)"], ["+experiment=glob(nix*)"]),
        (["arm=ä"], ['arm="ä"']),
        ([f'arm="{"ä" * 200}"'], ["400 bytes"]),
        (["+data.domains={" + "a" * 256 + ": {path: code}}"], ["256 bytes"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    orchestrate: Orchestrate,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    arguments: list[str],
    named: list[str],
) -> None:
    for dry_run in ("true", "false"):  # a plan is not made for what would be refused
        where = (f"root={tmp_path}/out", f"dry_run={dry_run}", "launcher=debug")
        assert orchestrate("tracker=off", *arguments, *where) == 2
        assert names(sentence(capsys), *named)
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
    assert names(capsys.readouterr().out, "Nothing is left")


def test_changed_config_under_the_same_name_is_refused(
    orchestrate: Orchestrate, capsys: pytest.CaptureFixture[str], small: list[str]
) -> None:
    common = [*small, "launcher=debug", "name=mine"]
    assert orchestrate(*common) == 0
    capsys.readouterr()
    for dry_run in ("true", "false"):
        assert orchestrate(*common, "optim.lr=0.01", f"dry_run={dry_run}") == 2
        assert names(sentence(capsys), "optim.lr", "0.002", "0.01")


@pytest.mark.parametrize("file", ["outputs", "outputs/mine"])
def test_a_file_where_the_directory_belongs_is_one_sentence(
    orchestrate: Orchestrate, capsys: pytest.CaptureFixture[str], small: list[str], tmp_path: Path, file: str
) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text("in the way")
    assert orchestrate(*small, "launcher=debug", "name=mine") == 2
    assert names(sentence(capsys), tmp_path / file, "file", "name=...")


def test_what_a_finished_cell_has_lost_is_made_again(
    orchestrate: Orchestrate, capsys: pytest.CaptureFixture[str], small: list[str], tmp_path: Path
) -> None:
    # a reading made again measures Adam's state only where the checkpoint has kept it
    common = [*small, "launcher=debug", "name=mine", "train.keep_states=null"]
    assert orchestrate(*common) == 0
    cell = tmp_path / "outputs/mine/main/seed=0"
    log, reading = cell / "metrics.jsonl", cell / "forensics/step_00000006.json"
    rows, measured = log.read_text().splitlines(), reading.read_text()
    log.write_text("\n".join(rows[:-2]) + "\n" + rows[-2][:20])  # the end of the file was lost
    reading.unlink()
    assert orchestrate(*common) == 0
    assert "metrics log" in (tmp_path / "outputs/mine/events.jsonl").read_text()
    assert reading.read_text() == measured
    steps = [json.loads(line)["step"] for line in log.read_text().splitlines()]
    assert steps == [json.loads(line)["step"] for line in rows]
    capsys.readouterr()
    assert orchestrate(*common) == 0
    assert names(capsys.readouterr().out, "Nothing is left")


def test_a_broken_experiment_file_is_named(
    orchestrate: Orchestrate, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shutil.copytree(main_module.CONF, tmp_path / "conf")
    (tmp_path / "conf/experiment/broken.yaml").write_text("# @package _global_\narms: [a\n")
    for module in (main_module, compose, catalog):
        monkeypatch.setattr(module, "CONF", tmp_path / "conf")
    assert orchestrate() == 0
    printed = capsys.readouterr().out
    assert names(printed, "broken", "not YAML", "width_ablation")
    assert orchestrate("+experiment=broken") == 2
    assert names(sentence(capsys), "broken.yaml", "not YAML")


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
    assert names(output.err, "bad/seed=0 failed:", "optim.lr")
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


def test_a_configuration_of_ones_own_is_that_of_every_arm(
    orchestrate: Orchestrate, small: list[str], tmp_path: Path
) -> None:
    (tmp_path / "my").mkdir()
    (tmp_path / "my/mine.yaml").write_text("defaults: [config, _self_]\noptim: {eps: 7.0e-7}\n")
    arms = ("name=mine", "++arms={a: [], b: ['width=ramp']}", "declared=[width]")
    options = (f"--config-dir={tmp_path}/my", "--config-name=mine")
    assert orchestrate(*options, *small, *arms, "seeds=[0]", "launcher=debug") == 0
    for arm in "ab":
        config = yaml.safe_load((tmp_path / f"outputs/mine/{arm}/seed=0/config.yaml").read_text())
        assert config["optim"]["eps"] == 7.0e-7


def test_a_multirun_takes_the_experiments_that_a_pattern_names(
    orchestrate: Orchestrate, small: list[str], tmp_path: Path, conf: Path
) -> None:
    for name in ("my_a", "my_b"):
        (conf / f"experiment/{name}.yaml").write_text(f"{PACKAGE}arms: {{a: []}}\nseeds: [0]")
    assert orchestrate(*small, "-m", "launcher=debug", "+experiment=glob(my*)") == 0
    done = sorted(path.parents[1].name for path in tmp_path.glob("outputs/*/comparison/verdict.json"))
    assert done == ["my_a", "my_b"]


def test_long_names_are_limited_in_bytes(orchestrate: Orchestrate, small: list[str], tmp_path: Path) -> None:
    assert orchestrate(*small, "launcher=debug", f'name="{"日本" * 60}"') == 0
    (made,) = (path.name for path in (tmp_path / "outputs").iterdir() if path.name.startswith("日"))
    assert len(made.encode()) <= 120


def test_a_directory_is_found_from_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs/mine").mkdir(parents=True)
    for command in (status.main, compare.main):
        assert command(["mine"]) == 2
        assert "outputs/mine" in sentence(capsys)
        assert command(["elsewhere/outputs/mine"]) == 2
        assert str(tmp_path) in sentence(capsys)
