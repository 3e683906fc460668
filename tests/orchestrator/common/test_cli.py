"""One command line: what it lists, calls, refuses and completes."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator import __version__
from orchestrator.common import cli
from tests.naming import names


@pytest.fixture
def executable(tmp_path: Path) -> Path:
    """The script that an installation makes for the entry point."""
    path = tmp_path / "bin/layer-roles"
    path.parent.mkdir()
    path.write_text(f"#!{sys.executable}\nimport sys\nfrom orchestrator.common.cli import main\nsys.exit(main())\n")
    path.chmod(0o755)
    return path


def _run(*words: str | Path, line: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, capture_output=True, text=True, env=os.environ | {"LINE": line})


def test_run_without_an_override_lists_the_experiments_of_a_folder(executable: Path, tmp_path: Path) -> None:
    (tmp_path / "mine/experiment").mkdir(parents=True)
    (tmp_path / "mine/experiment/my_question.yaml").write_text("# @package _global_\nquestion: q\narms: {a: []}\n")
    done = _run(executable, "run", "--config-dir", tmp_path / "mine")
    assert done.returncode == 0, done.stderr
    assert "my_question" in done.stdout


def test_help_names_every_command_and_loads_nothing_heavy(executable: Path) -> None:
    done = _run(sys.executable, "-X", "importtime", executable, "--help")
    assert done.returncode == 0
    listed = [line.split()[0] for line in done.stdout.splitlines() if line.startswith("  ")]
    assert [word for word in listed if word != cli.NAME] == list(cli.COMMANDS)
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "orchestrator.common.cli" in loaded
    assert not loaded & {"torch", "hydra", "rich", "numpy"}


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_a_help_and_our_version(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert callable(importlib.import_module(cli.COMMANDS[name][0]).main)
    usage = "+experiment=" if name == "run" else f"usage: layer-roles {name}"
    for option, expected in (("--help", usage), ("--version", f"layer-roles {__version__}\n")):
        monkeypatch.setattr(sys, "argv", ["/somewhere/layer-roles", name, option])
        try:
            code: object = cli.main()
        except SystemExit as exit:  # argparse's, and Hydra's
            code = exit.code
        assert code == 0
        assert expected in capsys.readouterr().out


def test_hydras_own_version_never_shows(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--version"], ["width=ramp", "--version"], ["run", "-m", "--vers"]):
        monkeypatch.setattr(sys, "argv", ["layer-roles", *words])
        assert cli.main() == 0
        assert capsys.readouterr().out == f"layer-roles {__version__}\n"


@pytest.mark.parametrize(("word", "close"), [("staus", "'status'"), ("forensic", "'forensics'"), ("outputs/x", "")])
def test_a_word_that_is_neither_command_nor_override_is_refused(
    word: str, close: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["layer-roles", word])
    assert cli.main() == 2
    said = capsys.readouterr().err
    assert names(said, f"'{word}'", *([close] if close else []))
    assert said.count("?") == bool(close)


@pytest.mark.parametrize("module", ["-m", "script"])
def test_the_module_and_the_script_are_the_same_command_line(executable: Path, module: str) -> None:
    words = [sys.executable, "-m", "orchestrator"] if module == "-m" else [executable]
    assert "width_ablation" in _run(*words, "run").stdout
    assert "'nonsense'" in _run(*words, "nonsense").stderr


COMPLETED = {
    "layer-roles ": list(cli.COMMANDS),
    "layer-roles st": ["status"],
    "layer-roles wid": ["width.", "width="],
    "layer-roles +expe": ["+experiment="],
    "layer-roles run +experiment=width_": ["width_ablation", "width_x_decay"],
    "layer-roles run width=ramp optim.l": ["optim.layer_lr.", "optim.lr="],
    "layer-roles width=r": ["ramp"],
    "layer-roles run --multi": ["--multirun"],
    "layer-roles status --wat": ["--watch"],
    "layer-roles status out": [],  # a file, which bash completes by itself
    "layer-roles nonsense any": [],
}


def test_bash_completes_commands_overrides_and_options(executable: Path) -> None:
    """Bash's own way: what it puts into COMP_LINE and COMP_POINT goes in, what it reads from COMPREPLY comes out."""
    script = """
        PATH=$1:$PATH; source <(layer-roles completion bash); complete -p layer-roles >&2
        while read -r COMP_LINE; do
            COMP_LINE=${COMP_LINE%.} COMP_POINT=${#COMP_LINE}; _layer_roles 2> /dev/null; echo "${COMPREPLY[@]}"
        done <<< "$LINE" """
    lines = "\n".join(f"{line}." for line in COMPLETED)  # the dot keeps a space at the end
    done = _run("bash", "-c", script, "bash", executable.parent, line=lines)
    assert "-F _layer_roles layer-roles" in done.stderr
    answers = map(str.split, done.stdout.splitlines())
    assert dict(zip(COMPLETED, answers, strict=True)) == COMPLETED
