"""Branches: cells that begin at the state that another cell, their trunk, had at one step (`Config.branch`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from orchestrator.common.errors import UserError, nearest
from orchestrator.config import keys, load
from orchestrator.config.schema import Config, SidecarMode
from orchestrator.experiments.forks import has_forks
from orchestrator.storage import checkpoint

# keys of a sidecar that are equal where its state is carried on
OF_A_SIDECAR = ("mode", "channels", "credit", "trace", "share", "policy", "features")


def check(config: Config, arms: Mapping[str, Config]) -> None:
    """Raise `UserError` where the trunk that `config` names cannot be one. `arms`: those of its experiment."""
    branch = config.branch
    if branch.arm is None or branch.step is None:
        if branch.arm is None and branch.step is None and branch.experiment is None:
            return
        raise UserError(
            f"branch.arm={branch.arm} with branch.step={branch.step} names half a trunk: set both, or neither."
        )
    step, trunk = branch.step, _trunk_config(config, arms)
    if step <= (trunk.branch.step or 0) or step > trunk.train.steps:
        raise UserError(
            f"branch.step={step} is no step that '{branch.arm}' trains, which are {(trunk.branch.step or 0) + 1} to "
            f"{trunk.train.steps}: choose one of these."
        )
    if step >= config.train.steps:
        raise UserError(
            f"branch.step={step} leaves nothing to train, as train.steps={config.train.steps} counts the trunk's steps "
            "too: raise train.steps, or begin earlier."
        )
    if changed := keys.differences(trunk, config, ignore=_all_but("model", "width")):
        raise UserError(f"branch.arm={branch.arm} trains another model ({_listed(changed)}): make the shapes equal.")
    if SidecarMode.off not in (trunk.sidecar.mode, config.sidecar.mode):
        for key in OF_A_SIDECAR:
            was, now = getattr(trunk.sidecar, key), getattr(config.sidecar, key)
            if was != now:
                raise UserError(
                    f"branch.arm={branch.arm} has sidecar.{key}={was} and this arm {now}, and no sidecar goes on from "
                    "the state of another: make them equal, or use sidecar=none in one of the two."
                )
        was, now = (_terms(one) if has_forks(one) else "" for one in (trunk, config))
        if was != now:
            raise UserError(
                f"branch.arm={branch.arm} learns the coefficients {was} and this arm {now}, and no sidecar goes on "
                "from the state of another: make the terms equal, or use sidecar=none in one of the two."
            )
    if branch.experiment is not None:
        ignore = (*keys.OPERATIONAL, *keys.OF_ROUNDING, "arm", "seed", "needs", "branch", "train.steps")
        if changed := keys.differences(trunk, config, ignore=(*ignore, *config.declared)):
            raise UserError(
                f"branch.experiment={branch.experiment} was trained with another {_listed(changed)}, which 'declared' "
                "does not name: declare it if that is the question, or make them equal."
            )


def is_whole_with_state(path: Path) -> bool:
    """True for a checkpoint from which training can go on."""
    return checkpoint.corruption(path, digests=False) is None and not checkpoint.is_reduced(path)


def steps_from(arm: str, arms: Mapping[str, Config]) -> set[int]:
    """The steps of `arm` at which others of `arms` begin."""
    branches = (config.branch for config in arms.values())
    return {b.step for b in branches if b.arm == arm and b.experiment is None and b.step is not None}


def _trunk_config(config: Config, arms: Mapping[str, Config]) -> Config:
    """The configuration of the trunk. Raises `UserError` where there is none."""
    branch = config.branch
    if branch.experiment is None:
        if branch.arm not in arms:
            raise UserError(
                f"branch.arm={branch.arm} is no arm of this experiment{nearest(str(branch.arm), arms)}: name one of "
                f"{', '.join(arms)}, or another experiment with branch.experiment."
            )
        return arms[str(branch.arm)]
    cell = Path(branch.experiment) / str(branch.arm) / f"seed={config.seed}"
    if not (cell / "config.yaml").is_file():
        raise UserError(
            f"branch.experiment={branch.experiment} has no cell {branch.arm}/seed={config.seed}: name an experiment's "
            "directory, one of its arms, and seeds that it has."
        )
    return load.from_file(cell / "config.yaml")


def _terms(config: Config) -> str:
    return ", ".join(f"{channel}.{term}" for channel, of in config.sidecar.coefficients.items() for term in of)


def _all_but(*kept: str) -> tuple[str, ...]:
    return tuple(key for key in vars(Config()) if key not in kept)


def _listed(changed: Mapping[str, tuple[object, object]]) -> str:
    return ", ".join(f"{key}, {was} there and {now} here" for key, (was, now) in changed.items())
