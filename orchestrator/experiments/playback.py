"""The decisions that a sidecar plays back: those of the cell that `needs` names, from its metrics log."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from orchestrator.common.errors import UserError
from orchestrator.config.schema import Config, SidecarMode
from orchestrator.experiments.dependency import arm_of, has_finished, needed_cell
from orchestrator.storage import metrics_log

MODES = (SidecarMode.replay, SidecarMode.permute, SidecarMode.random)
DECIDING = (SidecarMode.learn, SidecarMode.rule)  # which make decisions of their own


def plays(config: Config) -> bool:
    """True where the sidecar plays another cell's decisions, or coefficients; `random` may also draw its own."""
    return config.sidecar.mode in MODES and (config.needs is not None or bool(config.sidecar.coefficients))


def check(config: Config, arms: dict[str, Config]) -> None:
    """Raise `UserError` where there will be no decisions to play back. `arms`: those of the experiment."""
    mode, needs, formula = config.sidecar.mode, config.needs, config.sidecar.coefficients
    if formula and needs is not None and mode in MODES:
        raise UserError(f"needs={needs} and sidecar.coefficients={formula} both say what to play: drop one of them.")
    if mode in (SidecarMode.replay, SidecarMode.permute) and needs is None and not formula:
        raise UserError(
            f"sidecar.mode={mode} plays another cell or a formula: set needs to an arm that learns or to a path, or "
            "set sidecar.coefficients."
        )
    if needs is None or mode not in MODES:
        return
    if "/" in needs:
        _decisions(config, Path(needs))
        return
    played = arms[arm_of(needs)].sidecar
    if played.mode not in DECIDING:
        raise UserError(
            f"needs={needs} names an arm with sidecar.mode={played.mode}, which makes no decisions of its own: "
            f"name an arm with sidecar.mode={' or '.join(DECIDING)}."
        )
    if lacking := [channel for channel in config.sidecar.channels if channel not in played.channels]:
        raise UserError(
            f"needs={needs} names an arm that decides nothing for sidecar.channels={lacking}: "
            "drop them from this arm, or add them to that one."
        )


def read(config: Config, cell_dir: Path) -> list[dict[str, Any]] | None:
    """The decisions that the cell in `cell_dir` plays back; None where it plays back none.

    Raises `UserError` where the cell that it needs has not finished.
    """
    needed = needed_cell(config, cell_dir.parents[1])
    return _decisions(config, needed) if needed is not None and plays(config) else None


def _decisions(config: Config, cell: Path) -> list[dict[str, Any]]:
    """The sidecar's decisions in the metrics log of a finished cell. Raises `UserError`."""
    if not has_finished(cell):
        raise UserError(
            f"needs={config.needs} names {cell}, which has not finished: train that cell first; "
            "the same command then resumes this one."
        )
    records = metrics_log.read(cell / "metrics.jsonl")
    decisions = [record["sidecar"] for record in records if "sidecar" in record]
    if not decisions:
        raise UserError(f"needs={config.needs} names {cell}, whose sidecar decided nothing: name a cell that learned.")
    return decisions
