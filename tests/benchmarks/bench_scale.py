"""500 cells × 20 checkpoints through status, launcher and comparison: seconds and peak memory. Asserts nothing.

The cells are a stub trainer's (tests/orchestrator/stub.py). Goals: a status under 2 s as a whole process, a comparison
under 60 s, and a launcher whose memory does not grow with the number of times it looks.
"""

from __future__ import annotations

import importlib.util
import io
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from rich.console import Console

from orchestrator import monitoring
from orchestrator.launch.launcher import launch
from orchestrator.storage import locks

SEEDS, CHECKPOINTS, LOOKS = 250, 20, (10, 200)


def beside(name: str) -> ModuleType:
    """A module of tests/, which is not a package."""
    spec = importlib.util.spec_from_file_location(Path(name).stem, Path(__file__).parents[1] / name)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# `getrusage` would tell of the process before it became another program: as large as this one.
MEASURED = """
import atexit, re, runpy, sys
status = lambda: open("/proc/self/status").read()
atexit.register(lambda: print(int(re.search(r"VmHWM:\\s+(\\d+)", status())[1]) / 1024, file=sys.stderr))
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def process(*arguments: str) -> None:
    """Print seconds and peak memory of `python -m ARGUMENTS`."""
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", MEASURED, *arguments], capture_output=True, text=True, check=True)
    peak = float(done.stderr.split()[-1])
    print(f"{arguments[0]:<28} {time.perf_counter() - started:14.2f} s, peak {peak:,.0f} MiB", flush=True)


def timed(said: str, work: Callable[[], Any]) -> Any:
    started = time.perf_counter()
    result = work()
    print(f"{said:<28} {time.perf_counter() - started:14.2f} s", flush=True)
    return result


def resident() -> float:
    """MiB that this process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def look(directory: Path, *, terminal: bool) -> None:
    """The memory of a launcher that reads and shows the status again and again."""
    console = Console(file=io.StringIO(), force_terminal=terminal, width=100, height=50)
    held, taken = {}, []
    with monitoring.Screen(directory, console) as screen:
        for count in range(1, LOOKS[-1] + 1):
            started = time.perf_counter()
            screen.due = 0.0  # now, as if it were time
            screen.refresh()
            taken.append(time.perf_counter() - started)
            console.file.seek(0)
            console.file.truncate()
            if count in LOOKS:
                held[count] = resident()
    shown = ", ".join(f"{mib:,.1f} MiB after {count}" for count, mib in held.items())
    where = "terminal" if terminal else "log"
    print(f"looking, {where:<19} {sorted(taken)[len(taken) // 2]:14.2f} s each at the median; {shown}", flush=True)


def main() -> None:
    small, stub = beside("conftest.py").SMALL, beside("orchestrator/stub.py")
    with tempfile.TemporaryDirectory() as root:
        made = timed("written", lambda: stub.leave_behind(Path(root), small, seeds=SEEDS, checkpoints=CHECKPOINTS))
        directory = made.directory
        print(f"{len(made.cells)} cells × {CHECKPOINTS} checkpoints, {len(made.cells) * CHECKPOINTS:,} readings")
        process("orchestrator.status", str(directory))
        process("orchestrator.status", str(directory))
        with locks.hold(locks.of_launcher(directory)):
            look(directory, terminal=False)
            look(directory, terminal=True)
        timed("launching what is finished", lambda: launch(made, Console(file=io.StringIO())))
        process("orchestrator.compare", str(directory))
        report = directory / "comparison/report.html"
        print(f"report.html {report.stat().st_size / 1e6:.1f} MB", flush=True)


if __name__ == "__main__":
    main()
