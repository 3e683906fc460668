"""A launch into the directory of an earlier one: it may add to the experiment, drop arms and extend all cells."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from orchestrator.common.errors import UserError, nearest
from orchestrator.config import keys, load
from orchestrator.config.schema import Config
from orchestrator.experiments import extension
from orchestrator.experiments.dependency import awaited_arms
from orchestrator.experiments.experiment import Cell, Experiment

Recorded = dict[str, Any]  # the content of experiment.yaml; empty before the first launch
OTHERWISE = "choose another name with name=..., or restore the old values."


def check(experiment: Experiment, recorded: Recorded) -> None:
    """Raise `UserError` where `recorded` is another experiment, or one that cannot go on as `experiment` has it.

    A launch may add seeds, contrasts, expectations and arms, drop arms, and extend all cells by a larger `train.steps`.
    """
    if recorded:
        _refuse_other_arms(experiment, recorded)
    _refuse_dropped(experiment, recorded)
    left, extended = dropped(experiment, recorded), []
    for cell in experiment.cells:
        path = cell.directory / "config.yaml"
        if cell.config.arm in left or not path.exists():
            continue
        known = load.from_file(path)
        changed = keys.differences(known, cell.config, ignore=(*keys.OPERATIONAL, *keys.OF_ROUNDING))
        if cell.config.train.steps > known.train.steps:
            extended.append(cell)
            del changed["train.steps"]
        if changed:
            listing = ", ".join(f"{key} was {was} and is {now}" for key, (was, now) in changed.items())
            raise UserError(f"{cell.directory} holds another configuration ({listing}): {OTHERWISE}")
    _refuse_unequal_lengths(experiment, recorded, extended)
    for cell in extended:
        extension.check_extension(load.from_file(cell.directory / "config.yaml"), cell.config, cell.directory)


def arms_of(experiment: Experiment) -> dict[str, list[str]]:
    """Arm → its overrides."""
    return experiment.config.arms or {experiment.config.arm: []}


def dropped(experiment: Experiment, recorded: Recorded) -> list[str]:
    """The arms that are left out: those that this launch names, else those that the last one did."""
    now = experiment.config.dropped
    return list(recorded.get("dropped", []) if now is None else now)


def _refuse_other_arms(experiment: Experiment, recorded: Recorded) -> None:
    """Raise `UserError` where an arm has changed, the baseline is another, or other keys are declared.

    A launch declares more keys with a new arm, and fewer where it leaves out the arms that differ in them.
    """
    known, now = recorded["arms"], arms_of(experiment)
    was, wanted = recorded["declared"], list(experiment.config.declared)
    both = [arm for arm in known if arm in now]
    changes = []
    if any(_lasting(known[arm]) != _lasting(now[arm]) for arm in both):
        changes += [_changes("arms", {arm: known[arm] for arm in both}, {arm: now[arm] for arm in both})]
    elif next(iter(now)) != next(iter(known)):
        changes += [_changes("the baseline, its first arm,", next(iter(known)), next(iter(now)))]
    gained, lost = {*wanted} - {*was}, {*was} - {*wanted}
    if (gained and not now.keys() - known.keys()) or not lost <= _declared_for(
        known.keys() - now.keys(), experiment, was
    ):
        changes += [_changes("declared", was, wanted)]
    if changes:
        raise UserError(f"{experiment.directory} holds another experiment ({'; '.join(changes)}): {OTHERWISE}")


def _declared_for(arms: Collection[str], experiment: Experiment, declared: Sequence[str]) -> set[str]:
    """The `declared` keys in which one of `arms` differs from the baseline."""
    reference = next(iter(experiment.arms.values()))
    differing = [
        key for config in _on_disk(arms, experiment).values() for key in keys.differences(reference, config)
    ]  # fmt: skip
    return {key for key in declared if any(keys.is_within(one, [key]) for one in differing)}


def _on_disk(arms: Collection[str], experiment: Experiment) -> dict[str, Config]:
    """Arm → the configuration of a cell that its directory has; without the arms that have none."""
    first = {arm: next(iter(sorted((experiment.directory / arm).glob("seed=*/config.yaml"))), None) for arm in arms}
    return {arm: load.from_file(path) for arm, path in first.items() if path is not None}


def _lasting(overrides: list[str]) -> list[str]:
    """The overrides of an arm but for its number of steps, which may grow."""
    return [override for override in overrides if not override.startswith("train.steps=")]


def _changes(key: str, was: Any, now: Any) -> str:
    """Both values; of a mapping, those of the entries that differ."""
    if not isinstance(was, dict):
        return f"{key} was {was} and is {now}"
    return ", ".join(f"{key}.{name} was {was[name]} and is {now[name]}" for name in was if was[name] != now[name])


def _refuse_dropped(experiment: Experiment, recorded: Recorded) -> None:
    """Raise `UserError` where `dropped` names no arm, or one that this launch needs."""
    config, left = experiment.config, dropped(experiment, recorded)
    if not left:
        return
    names = list(recorded.get("arms", {}) | arms_of(experiment))
    others = _on_disk([arm for arm in names if arm not in experiment.arms], experiment)
    waiting = {
        awaited: (arm, key)
        for arm, kept in (others | experiment.arms).items()
        if arm not in left
        for key, _, awaited in awaited_arms(kept)
    }
    asked_of = {*(arm for weights in config.contrasts.values() for arm in weights), *config.expect}
    for arm in left:
        if arm not in names:
            raise UserError(f"dropped: '{arm}' is not an arm{nearest(arm, names)}: name one of {', '.join(names)}.")
        if arm == names[0]:
            raise UserError(f"dropped: '{arm}' is the baseline, with which every arm is compared: keep it.")
        if arm in asked_of:
            raise UserError(
                f"dropped: '{arm}' is an arm of contrasts or expect: take it out there, or take the arm up again with "
                "dropped=[]."
            )
        if arm in waiting:
            other, key = waiting[arm]
            raise UserError(f"dropped: '{arm}' is the arm of {key} of '{other}', which remains: drop both, or neither.")


def _refuse_unequal_lengths(experiment: Experiment, recorded: Recorded, extended: list[Cell]) -> None:
    """Raise `UserError` where this launch would leave cells behind that are trained for another number of steps."""
    launched, left = {cell.directory for cell in experiment.cells}, dropped(experiment, recorded)
    steps = {arm: config.train.steps for arm, config in experiment.arms.items()}
    for arm in recorded.get("arms", {}):
        for seed in recorded["seeds"]:
            path = experiment.directory / arm / f"seed={seed}"
            if arm in left or path in launched or not (path / "config.yaml").exists():
                continue
            known = load.from_file(path / "config.yaml").train.steps
            if extended or steps.get(arm, known) != known:
                seeds = sorted({*recorded["seeds"], *experiment.config.seeds})
                raise UserError(
                    f"{path} is trained for train.steps={known}, and this launch leaves it out but trains others for "
                    f"{max(steps.values())}: name every arm, and seeds={seeds}, so that all are extended alike."
                )
