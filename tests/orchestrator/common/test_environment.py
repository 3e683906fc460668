"""The record of a process agrees with the system's own tools."""

from __future__ import annotations

import hashlib
import os
import platform
import socket
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch

from orchestrator import __version__
from orchestrator.common import environment


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git checkout that the code seems to lie in."""
    root = tmp_path / "code"
    (root / "orchestrator/common").mkdir(parents=True)
    module = root / "orchestrator/common/environment.py"
    module.write_text("x = 1\n")
    git(root, "init", "-q")
    git(root, "add", ".")
    git(root, "-c", "user.name=n", "-c", "user.email=e", "commit", "-qm", "first")
    monkeypatch.setattr(environment, "__file__", str(module))
    return root


def git(root: Path, *words: str) -> str:
    return subprocess.run(["git", *words], cwd=root, check=True, capture_output=True, text=True).stdout


def test_of_this_process() -> None:
    found = environment.environment(torch.device("cpu"))
    assert found["host"] == socket.gethostname()
    assert found["python"] == platform.python_version()
    assert found["device_count"] == len(os.sched_getaffinity(0))
    assert found["threads"] == torch.get_num_threads()
    assert found["cuda"] is None
    assert found["versions"]["torch"] == metadata.version("torch")
    if Path("/proc/cpuinfo").exists() and "model name" in Path("/proc/cpuinfo").read_text():
        assert found["device"] in Path("/proc/cpuinfo").read_text()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_of_a_process_on_a_gpu() -> None:
    found = environment.environment(torch.device("cuda"))
    assert found["device"] == torch.cuda.get_device_properties(0).name
    assert found["device_count"] == torch.cuda.device_count()
    assert found["cuda"] == torch.version.cuda


def test_uncommitted_changes_have_a_digest(checkout: Path) -> None:
    found = environment.environment(torch.device("cpu"))
    assert found["commit"] == git(checkout, "rev-parse", "HEAD").strip()
    assert found["changes"] == "clean"
    (checkout / "orchestrator/common/environment.py").write_bytes("x = 2  # é\n".encode("latin-1"))
    diff = environment.code()["diff"]
    assert "+x = 2" in diff
    changed = environment.environment(torch.device("cpu"))["changes"]
    assert changed == hashlib.sha256(diff.encode()).hexdigest()[:12]


def test_a_module_that_git_does_not_know_is_a_change(checkout: Path) -> None:
    (checkout / ".gitignore").write_text("ignored/\n")
    (checkout / "ignored").mkdir()
    (checkout / "ignored/x.py").write_text("x = 1\n")
    (checkout / "notes.txt").write_text("no code")
    (checkout / "large.py").write_bytes(b"#" * (2**20 + 1))
    (checkout / "dangling.py").symlink_to("nowhere.py")
    assert environment.code()["diff"] == ""
    (checkout / "models").mkdir()
    module = checkout / os.fsdecode("models/a b é\n".encode("latin-1") + b".py")
    seen = set()
    for content in (b"x = 1\n", b"x = 2\n"):
        module.write_bytes(content)
        assert hashlib.sha256(content).hexdigest() in environment.code()["diff"]
        seen.add(environment.environment(torch.device("cpu"))["changes"])
    assert len(seen - {"clean"}) == 2
    module.rename(checkout / "models/b.py")
    (checkout / "orchestrator/common/environment.py").write_text("x = 2\n")
    diff = environment.code()["diff"]
    assert diff.startswith(f"untracked models/b.py sha256:{hashlib.sha256(content).hexdigest()}\ndiff --git ")
    patch = checkout / "recorded.patch"
    patch.write_text(diff)
    git(checkout, "checkout", "-q", ".")
    git(checkout, "apply", str(patch))  # what is recorded is a patch still
    assert (checkout / "orchestrator/common/environment.py").read_text() == "x = 2\n"


def test_without_a_checkout_or_git_the_code_is_unknown(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    found = environment.environment(torch.device("cpu"))
    assert (found["commit"], found["changes"]) == (None, None)


def test_a_package_installed_inside_somebodys_repository_has_no_commit(checkout: Path) -> None:
    git(checkout, "rm", "-q", "--cached", "orchestrator/common/environment.py")
    git(checkout, "-c", "user.name=x", "-c", "user.email=x", "commit", "-qm", "not ours")
    assert environment.code() == {}


def test_a_package_that_is_not_installed_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "PACKAGES", ("numpy", "no-such-package"))
    known = {"layer-roles": __version__, "numpy": metadata.version("numpy"), "no-such-package": None}
    assert environment.versions() == known


def test_no_environment_variable_is_recorded() -> None:
    """In a process of its own, all of whose variables are known."""
    script = (
        "import json, torch\n"
        "from orchestrator.common.environment import environment\n"
        "print(json.dumps(environment(torch.device('cpu'))))\n"
    )
    env = {**os.environ, "WANDB_API_KEY": "canary-1", "AWS_SECRET_ACCESS_KEY": "canary-2"}
    printed = subprocess.run([sys.executable, "-c", script], env=env, check=True, capture_output=True, text=True)
    assert "canary" not in printed.stdout


def group(folder: Path, limit: str, used: int, idle: int, names: tuple[str, str, str]) -> None:
    """A control group's files, in the names of its version."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\n{names[2]} {idle}\n")


SECOND = ("memory.max", "memory.current", "inactive_file")
FIRST = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


@pytest.mark.parametrize(("own", "names", "mount"), [("0::/a/b", SECOND, ""), ("4:memory:/a/b\n0::/", FIRST, "memory")])
def test_free_memory_is_what_every_control_group_leaves(
    own: str, names: tuple[str, str, str], mount: str, tmp_path: Path
) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9000 kB\nMemAvailable: 4000 kB\n")
    assert environment.free_memory(tmp_path) == 4000 * 1024  # it says nothing of control groups
    (tmp_path / "proc/self/cgroup").write_text(f"9:pids:/\n{own}\n")
    top = tmp_path / "sys/fs/cgroup" / mount
    assert environment.free_memory(tmp_path) == 4000 * 1024  # nor are any mounted
    group(top / "a/b", str(2**63 - 4096) if mount else "max", 10, 0, names)
    group(top / "a", "3000000", 1000000, 0, names)
    assert environment.free_memory(tmp_path) == 2000000
    group(top / "a", "3000000", 1000000, 400000, names)
    assert environment.free_memory(tmp_path) == 2400000
    group(top, "1500000", 1000000, 0, names)  # a container sees its own group at the top
    assert environment.free_memory(tmp_path) == 500000
    group(tmp_path / "sys/fs", "1", 1, 0, names)  # no control group
    assert environment.free_memory(tmp_path) == 500000
    group(top / "a/b", "10", 30, 0, names)
    assert environment.free_memory(tmp_path) == 0


def test_free_memory_is_not_known_where_there_is_no_linux(tmp_path: Path) -> None:
    assert environment.free_memory(tmp_path) is None
