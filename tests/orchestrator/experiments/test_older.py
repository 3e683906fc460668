"""Run directories of older versions, whose files had other names, are refused and left as they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator import compare, status
from tests.naming import names


@pytest.mark.parametrize("file", ["manifest.jsonl", "main/seed=0/ledger.jsonl"])
def test_status_compare_and_launch_refuse_an_older_directory(
    orchestrate: Callable[..., int],
    small: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    file: str,
) -> None:
    path = tmp_path / "outputs/x"
    (path / file).parent.mkdir(parents=True)
    (path / file).write_text("{}\n")
    (path / "experiment.yaml").write_text("name: x\n")
    commands = [
        lambda: status.main([str(path)]),
        lambda: status.main([str(path), "--resume"]),
        lambda: compare.main([str(path)]),
        lambda: orchestrate(*small, "name=x", "launcher=debug"),
    ]
    for command in commands:
        assert command() == 2
        error = capsys.readouterr().err
        assert names(error, "older", file)
        assert len(error.splitlines()) == 1
    assert sorted(p.name for p in path.rglob("*") if p.is_file()) == sorted(["experiment.yaml", Path(file).name])
