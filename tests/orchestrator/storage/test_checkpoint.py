"""A checkpoint is whole or not there, whatever happens to the disk."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
    assert file in (checkpoint.corruption(three / "step_00000010") or "")
    short = three / "step_00000005" / file
    short.write_bytes(short.read_bytes()[:-1])
    assert file in (checkpoint.corruption(three / "step_00000005") or "")
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


def test_set_aside_keeps_every_corrupt_copy(three: Path) -> None:
    first = checkpoint.set_aside(three / "step_00000010")
    checkpoint.save(three, 10, TENSORS, {"step": 10})
    second = checkpoint.set_aside(three / "step_00000010")
    assert first.is_dir()
    assert second.is_dir()
    assert checkpoint.saved(three) == [three / "step_00000000", three / "step_00000005"]


def test_prune_keeps_the_newest_and_the_reference(three: Path) -> None:
    checkpoint.prune(three, None, None)
    assert [checkpoint.step_of(p) for p in checkpoint.saved(three)] == [0, 5, 10]
    checkpoint.prune(three, 1, None)
    assert [checkpoint.step_of(p) for p in checkpoint.saved(three)] == [0, 10]
    assert not any(map(checkpoint.is_reduced, checkpoint.saved(three)))


def test_older_checkpoints_keep_their_weights_and_their_key(three: Path) -> None:
    before = {
        path: ({p.name: p.read_bytes() for p in path.iterdir()}, checkpoint.key(path)) for path in three.iterdir()
    }
    checkpoint.prune(three, None, 1, spare=lambda path: checkpoint.step_of(path) == 5)
    reference, spared, newest = checkpoint.saved(three)
    for path in (spared, newest):
        assert {p.name: p.read_bytes() for p in path.iterdir()} == before[path][0]
        assert not checkpoint.is_reduced(path)
    assert {p.name for p in reference.iterdir()} == {"model.safetensors", "state.json", "manifest.json"}
    assert checkpoint.is_reduced(reference)
    assert all((reference / name).read_bytes() == before[reference][0][name] for name in checkpoint.WEIGHTS)
    assert checkpoint.corruption(reference) is None
    assert checkpoint.key(reference) == before[reference][1]
    checkpoint.reduce(reference)  # again
    assert checkpoint.key(reference) == before[reference][1]
    (reference / "model.safetensors").write_bytes(b"harm")
    assert "model.safetensors" in (checkpoint.corruption(reference) or "")


def test_files_that_no_manifest_lists_stay(three: Path) -> None:
    path = three / "step_00000005"
    (path / "notes.md").write_text("mine")
    (path / "figures").mkdir()
    (path / "figures" / "a.png").write_bytes(b"mine")
    ours = {"model.safetensors", "state.json", "manifest.json"}
    for _ in range(2):
        checkpoint.prune(three, None, 1)
        assert {p.name for p in path.iterdir()} == {*ours, "notes.md", "figures"}
    assert (path / "notes.md").read_text() == "mine"
    assert (path / "figures" / "a.png").read_bytes() == b"mine"
    assert checkpoint.corruption(path) is None


def test_the_new_manifest_is_on_disk_before_a_file_is_gone(three: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, synced, gone = three / "step_00000005", [], []
    fsync, unlink = os.fsync, Path.unlink

    def noting_fsync(descriptor: int) -> None:
        fsync(descriptor)
        if os.path.samestat(os.fstat(descriptor), path.stat()):
            synced.append(checkpoint.is_reduced(path))

    def noting_unlink(file: Path, missing_ok: bool = False) -> None:
        gone.append((file.name, list(synced)))
        unlink(file, missing_ok)

    monkeypatch.setattr(os, "fsync", noting_fsync)
    monkeypatch.setattr(Path, "unlink", noting_unlink)
    checkpoint.reduce(path)
    assert gone == [("optimizer.safetensors", [True])]


def test_a_corrupt_checkpoint_is_not_sealed_anew(three: Path) -> None:
    victim = three / "step_00000005"
    (victim / "model.safetensors").unlink()
    checkpoint.prune(three, None, 1)
    assert {p.name for p in victim.iterdir()} == {"optimizer.safetensors", "state.json", "manifest.json"}
    assert "model.safetensors" in (checkpoint.corruption(victim) or "")


def test_a_kill_at_any_moment_leaves_a_whole_checkpoint(three: Path) -> None:
    """The process that reduces it ends at the first, the second, … of its accesses to files."""
    path, whole, killed = three / "step_00000005", [], 0
    key = checkpoint.key(path)
    shutil.copytree(path, three / "copy")
    while True:
        shutil.rmtree(path)
        shutil.copytree(three / "copy", path)
        child = os.fork()
        if child == 0:
            accesses = iter(range(killed))

            def end_at(event: str, _: tuple[Any, ...], left: Iterator[int] = accesses) -> None:
                if event in ("open", "os.rename", "os.remove", "os.listdir", "os.scandir") and next(left, None) is None:
                    os._exit(9)

            sys.addaudithook(end_at)
            checkpoint.reduce(path)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in (0, 9)
        assert checkpoint.corruption(path) is None
        assert checkpoint.key(path) == key
        whole.append(not checkpoint.is_reduced(path))
        if whole[-1]:
            moments = checkpoint.read_tensors(path, "optimizer")
            assert all(torch.equal(moments[name], tensor) for name, tensor in TENSORS["optimizer"].items())
        checkpoint.prune(three, None, 1)
        assert {p.name for p in path.iterdir()} == {"model.safetensors", "state.json", "manifest.json"}
        assert checkpoint.corruption(path) is None
        assert checkpoint.key(path) == key
        if code == 0:
            break
        killed += 1
    assert killed > 5
    assert set(whole) == {True, False}


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
