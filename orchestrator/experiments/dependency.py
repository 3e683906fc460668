"""The cell whose result another cell needs, as the key `needs` names it."""

from __future__ import annotations

from pathlib import Path

from orchestrator.common.errors import UserError, nearest
from orchestrator.config.schema import Config

NEXT = "@next"  # at the experiment's next seed


def needed_cell(config: Config, experiment: Path) -> Path | None:
    """The directory of the cell that `config` needs; None where it needs none. `experiment`: its own directory.

    `needs` is `<arm>` (at the same seed), `<arm>@next` (at the next seed; after the last, at the first) or the path of
    a cell, which has a slash.
    """
    if config.needs is None or "/" in config.needs:
        return None if config.needs is None else Path(config.needs)
    seeds = config.seeds or [config.seed]
    shift = 1 if config.needs.endswith(NEXT) else 0
    return experiment / arm_of(config.needs) / f"seed={seeds[(seeds.index(config.seed) + shift) % len(seeds)]}"


def arm_of(needs: str) -> str:
    """The arm in `needs`, which is not a path."""
    return needs.removesuffix(NEXT)


def check(config: Config, arms: dict[str, Config]) -> None:
    """Raise `UserError` where the cell that `config` needs cannot exist. `arms`: those of its experiment."""
    needs = config.needs
    if needs is None:
        return
    if "/" in needs:
        if not (Path(needs) / "metrics.jsonl").is_file():
            raise UserError(f"needs={needs} holds no metrics.jsonl: name a cell's directory.")
        return
    if (arm := arm_of(needs)) not in arms:
        raise UserError(
            f"needs={needs} names no arm of this experiment{nearest(arm, arms)}: name one of {', '.join(arms)}, "
            f"with {NEXT} behind it for the next seed, or a cell's path with a slash in it."
        )
    if needs.endswith(NEXT) and len(config.seeds) < 2:
        raise UserError(f"needs={needs} with seeds={config.seeds} names the same seed: add a seed, or write {arm}.")
    chain = [config.arm]
    while (following := arms[chain[-1]].needs) is not None and "/" not in following:
        chain.append(arm_of(following))
        if chain[-1] in chain[:-1]:
            raise UserError(
                f"needs={needs} makes a circle ({' needs '.join(chain)}): drop the needs of one of these arms."
            )
        if chain[-1] not in arms:  # which that arm's own check reports
            return
