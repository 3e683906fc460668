"""The machine and the code of a process, without its environment variables, which may hold secrets."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator import __version__
from orchestrator.common import cli

if TYPE_CHECKING:
    import torch

PACKAGES = ("torch", "transformers", "datasets", "hydra-core", "wandb", "numpy")
CLEAN = "clean"  # no uncommitted changes
SOURCES = ("*.py", "*.yaml", "*.yml", "*.toml", "*.css", "*.js")  # untracked files that count as code
CGROUPS = {  # controller, which version 2 does not name → folder, limit, usage, and the idle file cache in memory.stat
    "": ("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    "memory": ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}
LARGEST_SOURCE = 2**20  # bytes; a larger file is data


def environment(device: torch.device, cores: int | None = None) -> dict[str, Any]:
    """Host, device, commit and versions of a process that trains on `device`; null where unknown.

    `device_count`: the GPUs that this process may use, or the CPU cores: `cores`, or all that the system allows.
    """
    import torch  # here: the code and the cores are also asked for by commands that do without

    gpu = device.type == "cuda"
    state = code()
    return {
        "host": platform.node() or None,
        "platform": platform.platform(),
        "python": sys.version.split()[0],
        "device": torch.cuda.get_device_name(device) if gpu else cpu_name(),
        "device_count": torch.cuda.device_count() if gpu else cores or usable_cores(),
        "threads": torch.get_num_threads(),
        "cuda": torch.version.cuda if gpu else None,
        "commit": state.get("commit"),
        "changes": changes(state["diff"]) if "diff" in state else None,
        "versions": versions(),
    }


def machine() -> dict[str, Any]:
    """The machine that an experiment was launched from."""
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
    }


def versions() -> dict[str, str | None]:
    """Package → version, for those that results depend on; null for one that is not installed."""
    found: dict[str, str | None] = {cli.NAME: __version__, **dict.fromkeys(PACKAGES)}
    for package in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def code() -> dict[str, str]:
    """The `commit` and the uncommitted `diff` of the running code; empty where git does not track it.

    An installed package is not tracked, even where its environment lies inside somebody's repository.
    The diff begins with the untracked source files, each with the sha256 of its content.
    """
    source = Path(__file__).resolve()
    root = source.parents[2]  # which holds all packages
    commands = (
        ["ls-files", "--error-unmatch", "--", str(source)],
        ["rev-parse", "HEAD"],
        ["diff", "--no-ext-diff", "--no-color", "HEAD"],
        ["ls-files", "-z", "--others", "--exclude-standard", "--", *SOURCES],
    )
    try:
        _, commit, diff, untracked = (
            subprocess.run(["git", *words], cwd=root, capture_output=True, check=True, timeout=20).stdout
            for words in commands
        )
    except (OSError, subprocess.SubprocessError):
        return {}
    added = b"".join(_untracked(root, name) for name in untracked.split(b"\0"))
    return {"commit": commit.decode().strip(), "diff": (added + diff).decode(errors="replace")}  # in any encoding


def _untracked(root: Path, name: bytes) -> bytes:
    """A line with the name and sha256 of a file; empty for one that is unreadable or too large to be code."""
    path = root / os.fsdecode(name)
    with suppress(OSError):
        if path.is_file() and path.stat().st_size <= LARGEST_SOURCE:
            return b"untracked %s sha256:%s\n" % (name, hashlib.sha256(path.read_bytes()).hexdigest().encode())
    return b""


def changes(diff: str) -> str:
    """`clean` for an empty diff, else the first 12 digits of its sha256."""
    return hashlib.sha256(diff.encode()).hexdigest()[:12] if diff else CLEAN


def cpu_name() -> str | None:
    """The processor's model, as Linux names it; elsewhere its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, None) or platform.processor() or platform.machine() or None


def usable_cores() -> int:
    """The CPU cores that this process may use, as far as the operating system says."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_memory(root: Path = Path("/")) -> int | None:
    """Bytes that a new allocation may take before the machine swaps or a control group kills; None where not Linux.

    `root`: where /proc and /sys lie.
    """
    try:
        text = (root / "proc/meminfo").read_text()
    except OSError:
        return None
    lines = dict(line.split(":", 1) for line in text.splitlines())
    return min([1024 * int(lines["MemAvailable"].split()[0]), *_free_in_groups(root)])


def _free_in_groups(root: Path) -> Iterator[int]:
    """What the limit of each control group of this process leaves, its idle file cache taken as free."""
    with suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controller, path = line.split(":", 2)
            if controller in CGROUPS:
                folder, limit, usage, idle = CGROUPS[controller]
                mount = root / folder
                own = mount / path.lstrip("/")
                for group in (own, *own.parents[: len(own.parents) - len(mount.parents)]):
                    with suppress(OSError, ValueError):  # "max", or a path of the host's
                        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
                        used = int((group / usage).read_text()) - int(stat.get(idle, 0))
                        yield max(0, int((group / limit).read_text()) - used)
