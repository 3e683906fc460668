"""Names that a user or a file gives, through the command: printed as they are, and obeyed by nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.forensics.__main__ import main
from tests.naming import names


@pytest.mark.parametrize("name", ["a[/b]c", "a[bold]c"])
def test_brackets_in_a_path_are_no_markup(
    checkpoint: Callable[..., Any], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(checkpoint(path=name).write())]) == 0
    assert name in capsys.readouterr().out.replace("\n", "")


def test_a_home_of_nobody(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["~nobody-of-this-name/model"]) == 2
    assert names(capsys.readouterr().err, "~nobody-of-this-name/model", "exist")


def test_what_would_command_the_terminal_is_spelt_out(
    checkpoint: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = checkpoint()
    ours.tensors["model.layers.0.\x1b[2J\n.weight"] = np.ones((2, 2), np.float32)
    assert main([str(ours.write())]) == 2
    err = capsys.readouterr().err
    assert names(err, r"'model.layers.0.\x1b[2J\n.weight'")
    assert err.count("\n") == 1
    assert main([str(tmp_path / "there\x1b[2J\nand below")]) == 2
    err = capsys.readouterr().err
    assert names(err, r"there\x1b[2J\nand below", "exist")
    assert err.count("\n") == 1


def test_an_interrupt_ends_without_a_traceback(
    checkpoint: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("orchestrator.forensics.output.analyze", interrupted)
    assert main([str(checkpoint().write())]) == 130
    assert capsys.readouterr() == ("", "")
