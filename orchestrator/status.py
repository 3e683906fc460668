"""Where the cells of an experiment stand: `python -m orchestrator.status outputs/width_ablation`."""

from __future__ import annotations

import fcntl
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from rich.console import Console, Group
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table

from orchestrator import ledger, schema
from orchestrator.errors import UserError
from orchestrator.manifest import Entry, Manifest

_STYLES = {"done": "green", "running": "cyan", "failed": "bold red", "lost": "red", "stopped": "yellow"}


@dataclass(frozen=True)
class CellStatus:
    """One cell as its manifest, its ledger and its lock show it."""

    cell: str
    state: str  # next · submitted · running · done · failed · stopped · lost (its process is gone)
    attempt: int
    step: int
    steps: int
    loss: float | None  # training loss, nats/token
    heldout: float | None  # mean over domains of the newest held-out loss, nats/token
    left: float | None  # seconds to its last step, at the pace so far
    reason: str


@contextmanager
def held(lock: Path, *, wait: bool) -> Iterator[bool]:
    """Hold a file lock for the length of the block; yields False if it is taken and `wait` is off.

    The kernel drops the lock when the process dies, however it dies.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True


def cell_lock(cell_dir: Path) -> Path:
    """The file whose lock a running cell holds."""
    return cell_dir / ".lock"


def cell_dirs(experiment_dir: Path) -> list[Path]:
    """The directories of the cells in `experiment_dir`, in the order they were planned."""
    found = {
        p.parent.relative_to(experiment_dir).as_posix(): p.parent for p in experiment_dir.glob("*/seed=*/config.yaml")
    }
    if not found:
        return []
    arms = list(schema.load(next(iter(found.values())) / "config.yaml").arms)
    rank = {arm: position for position, arm in enumerate(arms)}

    def order(path: Path) -> tuple[int, str, int]:
        return rank.get(path.parent.name, len(rank)), path.parent.name, int(path.name.removeprefix("seed="))

    return sorted(found.values(), key=order)


def status_of(cell_dir: Path, entry: Entry | None) -> CellStatus:
    """What is known of one cell, given the manifest's last word on it."""
    config = schema.load(cell_dir / "config.yaml")
    records = ledger.tail(cell_dir / "ledger.jsonl")
    record = records[-1] if records else {}
    heldout = next((r["heldout"] for r in reversed(records) if "heldout" in r), None)
    step, steps = record.get("step", 0), config.train.steps
    if entry and entry.state == "running":
        with held(cell_lock(cell_dir), wait=False) as free:
            # a process leaves its last word before its lock: what it may have said since counts
            entry = Manifest(cell_dir.parents[1]).last()[f"{cell_dir.parent.name}/{cell_dir.name}"]
            lost = free and entry.state == "running"
    else:
        lost = False
    state = "lost" if lost else entry.state if entry else "next"
    return CellStatus(
        cell=f"{cell_dir.parent.name}/{cell_dir.name}",
        state=state,
        attempt=entry.attempt if entry else 0,
        step=step,
        steps=steps,
        loss=record.get("loss"),
        heldout=sum(heldout.values()) / len(heldout) if heldout else None,
        left=record["seconds"] / step * (steps - step) if step else None,
        reason=entry.reason if entry else "",
    )


def read_status(experiment_dir: Path) -> list[CellStatus]:
    """The status of every cell. Raises `UserError` where the directory holds no experiment."""
    cells = cell_dirs(experiment_dir)
    if not cells:
        raise UserError(
            f"{experiment_dir} holds no experiment: name a directory that a run wrote, such as outputs/width_ablation."
        )
    last = Manifest(experiment_dir).last()
    return [status_of(path, last.get(f"{path.parent.name}/{path.name}")) for path in cells]


def table(statuses: Sequence[CellStatus]) -> Group:
    """The cells as a table with progress bars, and below it what there is to say of any of them."""
    result = Table(box=None, pad_edge=False, header_style="dim")
    for header in ("cell", "state"):
        result.add_column(header, no_wrap=True)
    result.add_column("progress", width=12)
    for header in ("step", "loss", "held-out", "left"):
        result.add_column(header, justify="right", no_wrap=True)
    for s in statuses:
        result.add_row(
            escape(s.cell),
            f"[{_STYLES.get(s.state, 'dim')}]{s.state}[/]",
            ProgressBar(total=s.steps, completed=s.step, width=12),
            f"{s.step}/{s.steps}",
            "" if s.loss is None else f"{s.loss:.3f}",
            "" if s.heldout is None else f"{s.heldout:.3f}",
            f"{timedelta(seconds=round(s.left))}" if s.state == "running" and s.left is not None else "",
        )
    reasons = [f"[{_STYLES.get(s.state, 'dim')}]{escape(s.cell)}[/]: {escape(s.reason)}" for s in statuses if s.reason]
    return Group(result, *reasons)


def line(status: CellStatus) -> str:
    """The cell as one line, for logs that are not a terminal."""
    parts = [f"{status.cell:<24} {status.state:<8} step {status.step}/{status.steps}"]
    if status.loss is not None:
        parts.append(f"loss {status.loss:.3f}")
    if status.heldout is not None:
        parts.append(f"held-out {status.heldout:.3f}")
    if status.reason:
        parts.append(status.reason)
    return "  ".join(parts)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the status of the experiment directory given on the command line."""
    paths = sys.argv[1:] if arguments is None else arguments
    if len(paths) != 1 or paths[0].startswith("-"):
        print("usage: python -m orchestrator.status EXPERIMENT_DIR", file=sys.stderr)
        return 0 if paths in (["-h"], ["--help"]) else 2
    try:
        statuses = read_status(Path(paths[0]))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    Console().print(table(statuses))
    return 0


if __name__ == "__main__":
    sys.exit(main())
