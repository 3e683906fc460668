"""A checkpoint is whole or not there, whatever happens to the disk."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from orchestrator.common.errors import UserError
from orchestrator.storage import checkpoint
from tests.naming import names, naming

TENSORS = {
    "model": {"a.weight": torch.arange(600.0).reshape(20, 30), "b.weight": torch.randn(7)},
    "optimizer": {"a.weight.exp_avg": torch.randn(20, 30)},
}


@pytest.fixture
def three(tmp_path: Path) -> Path:
    for step in (0, 5, 10):
        checkpoint.save(tmp_path, step, TENSORS, {"step": step, "loss": 0.1 + 0.2})
    return tmp_path


def test_tensors_and_state_come_back_exactly(three: Path) -> None:
    path, warnings = checkpoint.newest(three)
    assert path == three / "step_00000010"
    assert warnings == []
    assert checkpoint.read_state(path) == {"step": 10, "loss": 0.1 + 0.2}
    for stem, named in TENSORS.items():
        read = checkpoint.read_tensors(path, stem)
        assert read.keys() == named.keys()
        assert all(torch.equal(read[name], named[name]) for name in named)


def test_manifest_lists_every_other_file(three: Path) -> None:
    path = three / "step_00000005"
    files = json.loads((path / "manifest.json").read_text())["files"]
    assert set(files) == {p.name for p in path.iterdir()} - {"manifest.json"}


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_one_flipped_byte_is_named_and_the_previous_checkpoint_is_used(three: Path, file: str) -> None:
    target = three / "step_00000010" / file
    content = bytearray(target.read_bytes())
    content[len(content) // 2] ^= 1
    target.write_bytes(content)
    path, warnings = checkpoint.newest(three)
    assert path == three / "step_00000005"
    assert len(warnings) == 1
    assert names(warnings[0], "step_00000010", file)


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"])
def test_a_missing_or_shortened_file_is_named(three: Path, file: str) -> None:
    (three / "step_00000010" / file).unlink()
    assert file in (checkpoint.damage(three / "step_00000010") or "")
    short = three / "step_00000005" / file
    short.write_bytes(short.read_bytes()[:-1])
    assert file in (checkpoint.damage(three / "step_00000005") or "")
    assert checkpoint.newest(three)[0] == three / "step_00000000"


def test_nothing_whole_means_nothing(tmp_path: Path) -> None:
    (tmp_path / "step_00000007").mkdir()
    path, warnings = checkpoint.newest(tmp_path)
    assert path is None
    assert names(warnings[0], "step_00000007", "manifest.json")
    assert checkpoint.newest(tmp_path / "nowhere") == (None, [])


def test_a_half_written_directory_is_not_a_checkpoint(three: Path) -> None:
    (three / ".step_00000015.partial").mkdir()
    assert checkpoint.newest(three)[0] == three / "step_00000010"
    checkpoint.save(three, 15, TENSORS, {"step": 15})
    assert checkpoint.newest(three)[0] == three / "step_00000015"
    checkpoint.clear_partial(three)
    assert [p.name for p in three.iterdir() if p.name.startswith(".")] == []


def test_set_aside_keeps_every_damaged_copy(three: Path) -> None:
    first = checkpoint.set_aside(three / "step_00000010")
    checkpoint.save(three, 10, TENSORS, {"step": 10})
    second = checkpoint.set_aside(three / "step_00000010")
    assert first.is_dir()
    assert second.is_dir()
    assert checkpoint.saved(three) == [three / "step_00000000", three / "step_00000005"]


def test_prune_keeps_the_newest_and_the_reference(three: Path) -> None:
    checkpoint.prune(three, 1)
    assert [checkpoint.step_of(p) for p in checkpoint.saved(three)] == [0, 10]


def test_a_disk_that_refuses_leaves_the_previous_checkpoint(three: Path) -> None:
    """The kernel refuses writes past a file-size limit with an error, as it does on a full disk."""
    script = (
        "import resource, sys, torch\n"
        "from pathlib import Path\n"
        "from orchestrator.storage import checkpoint\n"
        "from orchestrator.common.errors import UserError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try:\n"
        "    checkpoint.save(Path(sys.argv[1]), 20, {'model': {'w': torch.zeros(100_000)}}, {})\n"
        "except UserError as error:\n"
        "    print(error)\n"
    )
    result = subprocess.run([sys.executable, "-c", script, str(three)], capture_output=True, text=True, check=True)
    assert names(result.stdout, "step_00000020", "File too large", "room")
    assert sorted(p.name for p in three.iterdir()) == ["step_00000000", "step_00000005", "step_00000010"]
    assert checkpoint.newest(three) == (three / "step_00000010", [])


def test_foreign_directories_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=naming(tmp_path, "step_00000250")):
        checkpoint.step_of(tmp_path)
    with pytest.raises(UserError, match=naming(tmp_path / "state.json", "No such file")):
        checkpoint.read_state(tmp_path)
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(UserError, match=naming(tmp_path / "state.json", "no 'spec'")):
        checkpoint.load_decoder(tmp_path)
    (tmp_path / "state.json").write_text('{"spec": {"layers": []}}')
    with pytest.raises(UserError, match=naming(tmp_path, "'spec'", "'vocab_size'")):
        checkpoint.load_decoder(tmp_path)
