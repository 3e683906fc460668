"""The package as a user installs it: a wheel in an environment that has the dependencies but not the checkout."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

from orchestrator import __version__
from orchestrator.common import cli
from orchestrator.config.compose import CONF

ROOT = Path(__file__).parents[1]
PACKAGES = ("orchestrator", "models", "sidecar", "conf")
SOURCES = (*PACKAGES, "pyproject.toml", "setup.py", "README.md", "LICENSE")  # all that a build needs
SITE = sysconfig.get_path("purelib")
GUARD = f"""
import sys

def refuse(event, arguments):
    if event in ("open", "os.listdir", "os.scandir") and isinstance(arguments[0], str):
        path = arguments[0]
        if path.startswith({str(ROOT)!r} + "/") and not path.startswith({sys.prefix!r}):
            raise RuntimeError(f"{{event}} of the checkout: {{path}}")

sys.addaudithook(refuse)
"""


def _do(*words: str | Path, cwd: Path) -> str:
    """The output of a command in an environment that does not lead Python to the checkout."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def _copy(target: Path) -> Path:
    target.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, target)
    return target


def _install(wheel: Path, environment: Path) -> Path:
    """A new environment with this wheel and, added afterwards, the dependencies; returns its folder of executables.

    The folder of dependencies may hold an editable install of the checkout, which only takes effect through a .pth
    file, and those of an added folder are not read. The guard makes any process that touches the checkout fail.
    """
    _do(sys.executable, "-m", "venv", "--without-pip", environment, cwd=environment.parent)
    python = environment / "bin/python"
    _do(sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index", wheel, cwd=ROOT)
    site = next(environment.glob("lib/python*/site-packages"))
    (site / "dependencies.pth").write_text(f"{SITE}\n")
    (site / "sitecustomize.py").write_text(GUARD)
    return environment / "bin"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the sources that is gone by now."""
    folder = tmp_path_factory.mktemp("wheel")
    source = _copy(folder / "source")
    pip = (sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index")
    _do(*pip, source, "-w", folder, cwd=folder)
    shutil.rmtree(source)
    return next(folder.glob("layer_roles-*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The executables of an environment with the wheel."""
    return _install(wheel, tmp_path_factory.mktemp("installed") / "env")


@pytest.mark.slow
def test_the_wheel_holds_every_file_of_the_packages_and_no_other(wheel: Path) -> None:
    ours = (path for name in PACKAGES for path in (ROOT / name).rglob("*") if "__pycache__" not in path.parts)
    expected = {path.relative_to(ROOT).as_posix() for path in ours if path.is_file()}
    expected = {re.sub("^conf/", "orchestrator/conf/", name) for name in expected}
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name for name in names if ".dist-info/" not in name} == expected
    assert any(name.endswith("licenses/LICENSE") for name in names)


@pytest.mark.slow
def test_nothing_comes_from_the_checkout(installed: Path, tmp_path: Path) -> None:
    script = (
        "import models, orchestrator, sidecar; from orchestrator.config.compose import CONF\n"
        "for path in (models.__file__, orchestrator.__file__, sidecar.__file__, CONF): print(path)"
    )
    for path in _do(installed / "python", "-c", script, cwd=tmp_path).split():
        assert Path(path).is_relative_to(installed.parent)
    guarded = subprocess.run([installed / "python", "-c", f"open({str(ROOT / 'README.md')!r})"], capture_output=True)
    assert b"of the checkout" in guarded.stderr


@pytest.mark.slow
def test_every_command_starts(installed: Path, tmp_path: Path) -> None:
    assert _do(installed / "layer-roles", "--version", cwd=tmp_path) == f"layer-roles {__version__}\n"
    for name, (module, _) in cli.COMMANDS.items():
        assert _do(installed / "layer-roles", name, "--help", cwd=tmp_path)
        if name not in ("run", "completion"):
            command = module.removesuffix(".__main__")
            assert f"python -m {command}" in _do(installed / "python", "-m", command, "--help", cwd=tmp_path)
    assert "width_ablation" in _do(installed / "python", "-m", "orchestrator", cwd=tmp_path)


@pytest.mark.slow
def test_an_experiment_runs_and_is_reported(installed: Path, tmp_path: Path, small_cell: tuple[str, ...]) -> None:
    run = (installed / "layer-roles", "run", "+experiment=width_ablation", "seeds=[0]", *small_cell)
    assert "won?" in _do(*run, cwd=tmp_path)
    directory = tmp_path / "outputs/width_ablation"
    assert "<style>" in (directory / "comparison/report.html").read_text()
    assert "done" in _do(installed / "layer-roles", "status", directory, cwd=tmp_path)
    assert _do(installed / "layer-roles", "forensics", directory / "uniform/seed=0", cwd=tmp_path)


@pytest.mark.slow
def test_an_editable_install_reads_the_checkouts_conf(tmp_path: Path) -> None:
    source = _copy(tmp_path / "source")
    build = "from setuptools.build_meta import build_editable; import sys; build_editable(sys.argv[1])"
    _do(sys.executable, "-c", build, tmp_path, cwd=source)
    executables = _install(next(tmp_path.glob("*.whl")), tmp_path / "env")
    (source / "conf/experiment/mine.yaml").write_text("# @package _global_\nquestion: Is it mine?\narms: {a: []}\n")
    assert "Is it mine?" in _do(executables / "layer-roles", cwd=tmp_path)


def test_a_checkout_reads_its_own_conf() -> None:
    assert ROOT / "conf" == CONF


def test_every_file_that_states_version_and_license_agrees() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == __version__
    assert citation["license"] == project["license"] == "Apache-2.0"
    assert citation["authors"] == project["authors"]
    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text()
