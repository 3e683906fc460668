"""A name becomes a path without a network where it can, and one clear sentence where it cannot."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.common.errors import UserError
from orchestrator.forensics.weights.hub import local
from tests.naming import names, naming
from tests.waiting import PATIENCE

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CALL = """
import sys
from orchestrator.common.errors import UserError
from orchestrator.forensics.weights.hub import local
for source in sys.argv[1:]:
    try:
        print(local(source))
    except UserError as error:
        print(f"refused: {error}")
"""


def _local(sources: list[str], home: Path, **environment: str) -> list[str]:
    """The lines that a fresh process prints; the hub's settings are read when it is imported."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGINGFACE"))}
    done = subprocess.run(
        [sys.executable, "-c", CALL, *sources],
        env={**inherited, "HF_HOME": str(home), **environment},
        capture_output=True, text=True, timeout=PATIENCE, check=True,
    )  # fmt: skip
    return done.stdout.splitlines()


def _cache(home: Path, name: str, weights: str, organisation: str = "org") -> Path:
    repository = home / "hub" / f"models--{organisation}--{name}"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    (snapshot / "config.json").write_text("{}")
    (snapshot / weights).touch()
    return snapshot


def test_existing_path_is_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert local(str(tmp_path)) == tmp_path
    monkeypatch.chdir(tmp_path)
    assert local("org/name") == Path("org/name")  # a path wins over a name


@pytest.mark.parametrize(
    "source",
    [
        "/no/where",
        "./nowhere",
        "~/no-such-thing",
        "a/b/c",
        "org/x.safetensors",
        "../x",
        "nowhere",
        "a b/c",
        "org/name/x.bin",
        "org/x.gguf",
    ],
)
def test_what_looks_like_a_path_never_reaches_the_hub(source: str) -> None:
    with pytest.raises(UserError, match=naming(source, "exist", "org/name")):
        local(source)


def test_a_repository_in_the_cache_is_its_snapshot(tmp_path: Path) -> None:
    snapshot = _cache(tmp_path, "tiny", "model.safetensors")
    repository = snapshot.parents[1]
    assert local(str(repository)) == snapshot
    other = snapshot.with_name("f" * 40)
    other.mkdir()
    assert local(str(repository)) == snapshot
    (repository / "refs" / "main").unlink()
    with pytest.raises(UserError, match=naming(repository, "2 snapshots", repository / "snapshots")):
        local(str(repository))
    other.rmdir()
    assert local(str(repository)) == snapshot


def test_offline(tmp_path: Path) -> None:
    tiny = str(_cache(tmp_path, "tiny", "model.safetensors"))
    old = str(_cache(tmp_path, "old", "pytorch_model.bin"))
    sources = ["org/tiny", "org/tiny@main", f"org/tiny@{COMMIT}", "org/old", "org/other", "org/na--me"]
    *found, absent, invalid = _local(sources, tmp_path, HF_HUB_OFFLINE="1")
    assert found == [tiny, tiny, tiny, old]
    assert names(absent, "refused", "org/other", "cache", "hf download")
    assert names(invalid, "refused", "org/na--me", "valid name")


def test_one_file_of_a_repository_of_gguf_files(tmp_path: Path) -> None:
    packed = _cache(tmp_path, "packed", "m.Q8_0.gguf")
    sources = ["org/packed/m.Q8_0.gguf", "org/packed/m.Q8_0.gguf@main", "org/packed/m.Q4_0.gguf", "org/packed"]
    *found, other, whole = _local(sources, tmp_path, HF_HUB_OFFLINE="1")
    assert found == [str(packed / "m.Q8_0.gguf")] * 2
    assert names(other, "refused", "org/packed", "m.Q4_0.gguf")
    assert names(whole, "refused", "org/packed", "org/name/file.gguf")


def test_names_from_before_there_were_organisations(tmp_path: Path) -> None:
    small = str(_cache(tmp_path, "gpt2", "model.safetensors", "openai-community"))
    assert _local(["gpt2", "gpt2@main"], tmp_path, HF_HUB_OFFLINE="1") == [small, small]


def test_hub_that_cannot_be_reached(tmp_path: Path) -> None:
    tiny = str(_cache(tmp_path, "tiny", "model.safetensors"))
    found, absent = _local(["org/tiny", "org/other"], tmp_path, HF_ENDPOINT="http://127.0.0.1:9")
    assert found == tiny
    assert names(absent, "refused", "org/other", "reached")
