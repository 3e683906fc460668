"""Where a sidecar that plays back gets its decisions from: the ledger of a run that learned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from orchestrator import ledger
from orchestrator.errors import UserError, nearest
from orchestrator.run import Run
from orchestrator.schema import Config, SeedOf, SidecarMode


def source(config: Config, experiment: Path) -> Path | None:
    """The cell whose decisions `config` plays back, or None: an arm of the same experiment, or any cell's path."""
    name = config.sidecar.schedule
    if name is None:
        return None
    if "/" in name:
        return Path(name)
    seeds = config.seeds or [config.seed]
    shift = 1 if config.sidecar.schedule_seed == SeedOf.next else 0
    return experiment / name / f"seed={seeds[(seeds.index(config.seed) + shift) % len(seeds)]}"


def check(config: Config) -> None:
    """Raise `UserError` where `sidecar.mode` and `sidecar.schedule` do not fit, or nothing can ever be played."""
    mode, name = config.sidecar.mode, config.sidecar.schedule
    if mode in (SidecarMode.replay, SidecarMode.permute) and name is None:
        raise UserError(f"sidecar.mode={mode} needs sidecar.schedule: name an arm that learned, or a cell's path.")
    if name is None:
        return
    if mode not in (SidecarMode.replay, SidecarMode.permute, SidecarMode.random):
        raise UserError(
            f"sidecar.schedule={name} has no effect with sidecar.mode={mode}: use replay, permute or random."
        )
    if "/" in name:
        if not (Path(name) / "ledger.jsonl").is_file():
            raise UserError(f"sidecar.schedule={name} holds no ledger.jsonl: name a cell's directory.")
    elif name not in config.arms:
        raise UserError(
            f"sidecar.schedule={name} is no arm of this experiment{nearest(name, config.arms)}: "
            "name one, or a cell's path with a slash in it."
        )
    elif name == config.arm:
        raise UserError(f"sidecar.schedule={name} is this arm itself: name an arm that learned.")


def read(run: Run) -> list[dict[str, Any]] | None:
    """The decisions that this run plays back, or None. Raises `UserError` where they are not complete."""
    cell = source(run.config, run.cell_dir.parents[1])
    if cell is None:
        return None
    records = ledger.read(cell / "ledger.jsonl")
    decisions = [record["sidecar"] for record in records if "sidecar" in record]
    if not decisions or "test" not in records[-1]:
        raise UserError(
            f"sidecar.schedule={run.config.sidecar.schedule} names {cell}, which is "
            f"{'not finished' if decisions else 'no run whose sidecar decided anything'}: "
            "train that cell first; the same command resumes this one."
        )
    return decisions
