"""Every command's exit codes, sentences, version and files."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator import __version__
from orchestrator.common import command
from orchestrator.common.errors import UserError
from tests.naming import names, naming

COMMANDS = ("__main__", "status", "compare", "intervene", "trace", "export", "job", "forensics")


def _raise(error: BaseException) -> Callable[[Namespace], None]:
    def function(_: Namespace) -> None:
        raise error

    return function


@pytest.mark.parametrize(
    ("error", "code", "named"),
    [
        (UserError("steps=\x1b[2J\nis odd."), 2, ["steps=\\x1b[2J\\nis odd."]),
        (PermissionError(13, "Permission denied", "a.txt"), 2, ["a.txt", "Permission denied"]),
        (OSError("no disk"), 2, ["no disk"]),
        (KeyboardInterrupt(), 130, []),
    ],
)
def test_what_a_command_raises_becomes_a_sentence_and_an_exit_code(
    error: BaseException, code: int, named: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.run(command.parser("orchestrator.some", "Do it."), _raise(error), []) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert names(captured.err, *named)
    assert captured.err.count("\n") == (1 if named else 0)


def test_a_command_returns_the_code_of_its_function() -> None:
    parser = command.parser("orchestrator.some", "Do it.")
    assert command.run(parser, lambda _: 1, []) == 1
    assert command.run(parser, lambda _: None, []) == 0
    with pytest.raises(ZeroDivisionError):
        command.run(parser, _raise(ZeroDivisionError()), [])


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_says_its_version(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", f"orchestrator.{name}", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"layer-roles {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--count", "0"], ["--count", "1 or more"]),
        (["--parts", ""], ["--parts"]),
        (["--parts", "a,"], ["--parts", "a,"]),
        (["--text", " "], ["--text"]),
        (["--other"], ["--other"]),
    ],
)
def test_an_argument_that_cannot_be_used_is_one_sentence(
    arguments: list[str], named: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    parser = command.parser("orchestrator.some", "Do it.")
    parser.add_argument("--count", type=command.count)
    parser.add_argument("--parts", type=command.listed)
    parser.add_argument("--text", type=command.given)
    assert command.run(parser, lambda _: 0, arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert names(captured.err, *named, "orchestrator.some --help")


def test_files_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    assert command.output(str(tmp_path / "new.json")) == tmp_path / "new.json"
    with pytest.raises(UserError, match=naming(tmp_path, "directory")):
        command.output(str(tmp_path))
    with pytest.raises(UserError, match=naming(tmp_path / "absent/f.json", tmp_path / "absent")):
        command.output(str(tmp_path / "absent" / "f.json"))
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=naming(tmp_path / "file/f.json", tmp_path / "file")):
        command.output(str(tmp_path / "file" / "f.json"))


@pytest.mark.parametrize("name", ["x.bmp", "x", "png", "x.png.gz"])
def test_files_of_other_kinds_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=naming(tmp_path / name, ".png or .svg")):
        command.output(str(tmp_path / name), (".png", ".svg"))


class Ring:
    """Garbage that reference counts do not free."""

    def __init__(self) -> None:
        self.itself = self


def test_what_a_start_imports_is_kept_and_what_later_blocks_leave_is_collected() -> None:
    gc.unfreeze()
    try:
        left = []
        for _ in range(2):
            with command.importing():
                assert not gc.isenabled()
                left.append(weakref.ref(Ring()))
            assert gc.isenabled()
            gc.collect()
        first, second = left
        assert first() is not None
        assert second() is None
    finally:
        gc.unfreeze()
