"""Where a sidecar that plays back gets its decisions from: the metrics log of a run that learned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from orchestrator.common.errors import UserError, nearest
from orchestrator.config.schema import Config, SeedOf, SidecarMode
from orchestrator.storage import metrics_log


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


def check(config: Config, arms: dict[str, Config]) -> None:
    """Raise `UserError` where `sidecar.mode` and `sidecar.schedule` do not fit, or nothing can ever be played.

    `arms` are the experiment's, composed: only one that learns can be played back, so that none waits for itself.
    """
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
        if not (Path(name) / "metrics.jsonl").is_file():
            raise UserError(f"sidecar.schedule={name} holds no metrics.jsonl: name a cell's directory.")
        _decisions(name, Path(name))
    elif name not in config.arms:
        raise UserError(
            f"sidecar.schedule={name} is no arm of this experiment{nearest(name, config.arms)}: "
            "name one, or a cell's path with a slash in it."
        )
    elif arms[name].sidecar.mode != SidecarMode.learn:
        raise UserError(
            f"sidecar.schedule={name} names an arm with sidecar.mode={arms[name].sidecar.mode}, which makes no "
            "decisions of its own: name an arm with sidecar.mode=learn."
        )
    elif lacking := [c for c in config.sidecar.channels if c not in arms[name].sidecar.channels]:
        raise UserError(
            f"sidecar.schedule={name} names an arm that learns nothing for sidecar.channels={lacking}: "
            "drop them here, or let that arm learn them."
        )
    elif config.sidecar.schedule_seed == SeedOf.next and len(config.seeds) < 2:
        raise UserError(
            f"sidecar.schedule_seed=next with seeds={config.seeds} would play back the cell's own seed: "
            "give the experiment another seed, or set sidecar.schedule_seed=same."
        )


def read(config: Config, cell_dir: Path) -> list[dict[str, Any]] | None:
    """The decisions that the cell in `cell_dir` plays back, or None. Raises `UserError` where they are incomplete."""
    cell = source(config, cell_dir.parents[1])
    return None if cell is None else _decisions(str(config.sidecar.schedule), cell)


def _decisions(schedule: str, cell: Path) -> list[dict[str, Any]]:
    """What the metrics log of a finished `cell` records of its sidecar. Raises `UserError`."""
    records = metrics_log.read(cell / "metrics.jsonl")
    decisions = [record["sidecar"] for record in records if "sidecar" in record]
    if not decisions or "test" not in records[-1]:
        raise UserError(
            f"sidecar.schedule={schedule} names {cell}, which is "
            f"{'not finished' if decisions else 'no run whose sidecar decided anything'}: "
            "train that cell first; the same command resumes this one."
        )
    return decisions
