"""The cells that another cell waits for: the one whose result it `needs`, and the trunk that it begins from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from orchestrator.common.errors import UserError, nearest
from orchestrator.config import load
from orchestrator.config.schema import Config
from orchestrator.storage import metrics_log

NEXT = "@next"  # at the experiment's next seed


def awaited_cells(config: Config, experiment: Path) -> set[Path]:
    """The directories of the cells that must have ended before the cell of `config` begins."""
    return {cell for cell in (needed_cell(config, experiment), trunk_cell(config, experiment)) if cell is not None}


def trunk_cell(config: Config, experiment: Path) -> Path | None:
    """The directory of the cell that `config` begins from; None where it begins at step 0."""
    branch = config.branch
    if branch.arm is None:
        return None
    return Path(branch.experiment or experiment) / branch.arm / f"seed={config.seed}"


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


def has_finished(cell: Path) -> bool:
    """True where the newest record of the cell is that of its last step."""
    end, file = metrics_log.trained_to(cell / "metrics.jsonl"), cell / "config.yaml"
    return end is not None and (not file.is_file() or end == load.from_file(file).train.steps)  # else it is extended


def check(config: Config, arms: Mapping[str, Config], *, auto: bool = False) -> None:
    """Raise `UserError` where a cell that `config` waits for cannot exist.

    `arms`: those of its experiment. `auto`: it adds seeds until the question is decided.
    """
    needs = config.needs
    if needs is not None and "/" in needs:
        if not (Path(needs) / "metrics.jsonl").is_file():
            raise UserError(f"needs={needs} holds no metrics.jsonl: name a cell's directory.")
    elif needs is not None:
        if (arm := arm_of(needs)) not in arms:
            raise UserError(
                f"needs={needs} names no arm of this experiment{nearest(arm, arms)}: name one of {', '.join(arms)}, "
                f"with {NEXT} behind it for the next seed, or a cell's path with a slash in it."
            )
        if needs.endswith(NEXT) and auto:
            raise UserError(
                f"needs={needs} with seeds=auto names another cell whenever a seed is added: list the seeds, as in "
                f"seeds=[0,1,2,3,4,5], or write needs={arm}."
            )
        if needs.endswith(NEXT) and len(config.seeds) < 2:
            raise UserError(f"needs={needs} with seeds={config.seeds} names the same seed: add a seed, or write {arm}.")
    for key, chain in _circles(config.arm, arms):
        raise UserError(f"{key} makes a circle ({chain}): drop it from one of these arms.")


def _circles(start: str, arms: Mapping[str, Config]) -> Iterator[tuple[str, str]]:
    """The key of the first arm and the sentence of every chain of waiting arms that comes back to one of its arms."""
    chains = [[("", start, start)]]  # each link: the key, the words up to the arm, the arm
    while chains:
        chain = chains.pop()
        for key, verb, arm in awaited_arms(arms[chain[-1][-1]]):
            longer = [*chain, (key, f"{verb} {arm}", arm)]
            if arm in (seen for *_, seen in chain):
                yield longer[1][0], " ".join(words for _, words, _ in longer)
            elif arm in arms:  # else that arm's own check reports it
                chains.append(longer)


def awaited_arms(config: Config) -> Iterator[tuple[str, str, str]]:
    """The key, a verb and the arm, for each arm of its own experiment that `config` waits for."""
    if config.needs is not None and "/" not in config.needs:
        yield f"needs={config.needs}", "needs", arm_of(config.needs)
    if config.branch.arm is not None and config.branch.experiment is None:
        yield f"branch.arm={config.branch.arm}", "branches from", config.branch.arm
