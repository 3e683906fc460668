"""Where the cells of an experiment stand: `python -m orchestrator.status outputs/width_ablation`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from pathlib import Path

from rich.console import Console, Group
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table

from orchestrator import ledger, schema
from orchestrator.errors import UserError
from orchestrator.locks import is_held
from orchestrator.manifest import Entry, Manifest
from orchestrator.schema import Config

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


def cell_lock(cell_dir: Path) -> Path:
    """The file whose lock a running cell holds."""
    return cell_dir / ".lock"


def experiment_lock(experiment_dir: Path) -> Path:
    """The file whose lock a launcher holds."""
    return experiment_dir / ".lock"


@cache
def config_of(cell_dir: Path) -> Config:
    """The configuration of a cell, read once: it does not change while the cell has its name."""
    return schema.load(cell_dir / "config.yaml")


def cell_dirs(experiment_dir: Path) -> list[Path]:
    """The directories of the cells in `experiment_dir`, in the order they were planned."""
    found = {
        p.parent.relative_to(experiment_dir).as_posix(): p.parent for p in experiment_dir.glob("*/seed=*/config.yaml")
    }
    if not found:
        return []
    arms = list(config_of(next(iter(found.values()))).arms)
    rank = {arm: position for position, arm in enumerate(arms)}

    def order(path: Path) -> tuple[int, str, int]:
        return rank.get(path.parent.name, len(rank)), path.parent.name, int(path.name.removeprefix("seed="))

    return sorted(found.values(), key=order)


def status_of(cell_dir: Path, entry: Entry | None) -> CellStatus:
    """What is known of one cell, given the manifest's last word on it."""
    records = ledger.tail(cell_dir / "ledger.jsonl")
    record = records[-1] if records else {}
    heldout = next((r["heldout"] for r in reversed(records) if "heldout" in r), None)
    step, steps = record.get("step", 0), config_of(cell_dir).train.steps
    return CellStatus(
        cell=f"{cell_dir.parent.name}/{cell_dir.name}",
        state=_state(cell_dir, entry),
        attempt=entry.attempt if entry else 0,
        step=step,
        steps=steps,
        loss=record.get("loss"),
        heldout=sum(heldout.values()) / len(heldout) if heldout else None,
        left=record["seconds"] / step * (steps - step) if step else None,
        reason=entry.reason if entry else "",
    )


def _state(cell_dir: Path, entry: Entry | None) -> str:
    """The manifest's word where it is final; otherwise what the locks of cell and launcher say of it."""
    if entry is None:
        return "next"
    if entry.state not in ("submitted", "running"):
        return entry.state
    if is_held(cell_lock(cell_dir)):
        return "running"
    # a process leaves its last word before its lock: what it has said since counts
    entry = Manifest(cell_dir.parents[1]).last()[f"{cell_dir.parent.name}/{cell_dir.name}"]
    if entry.state not in ("submitted", "running"):
        return entry.state
    starting = entry.state == "submitted" and is_held(experiment_lock(cell_dir.parents[1]))
    return "submitted" if starting else "lost"


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
