"""The run directory of one experiment: `experiment.yaml` and the cells' `config.yaml`, written and read back."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from models.spec import num_params
from orchestrator.common import environment
from orchestrator.common.errors import UserError, no_experiment
from orchestrator.config import keys, load, schema
from orchestrator.data import Corpus
from orchestrator.experiments import corpora, description, relaunch
from orchestrator.experiments.experiment import Cell, Experiment, decoder_spec, training_flops
from orchestrator.storage.event_log import refuse_older
from orchestrator.storage.files import write_whole


def refuse_another(experiment: Experiment) -> None:
    """Raise `UserError` where the directory holds another experiment, or this one cannot go on as the launch has it."""
    for path in (experiment.directory, *experiment.directory.parents):
        if path.exists() and not path.is_dir():
            raise UserError(f"{path} is a file, and the run needs a directory: choose another name=... or root=....")
    refuse_older(experiment.directory)
    relaunch.check(experiment, _read(experiment.directory))


def without_dropped(experiment: Experiment) -> Experiment:
    """The experiment without the cells of dropped arms."""
    left = relaunch.dropped(experiment, _read(experiment.directory))
    return replace(experiment, cells=tuple(cell for cell in experiment.cells if cell.config.arm not in left))


def open_directory(experiment: Experiment) -> None:
    """Write `experiment.yaml` and every cell's `config.yaml`, or bring those of the same experiment up to date.

    Raises `UserError` as `refuse_another` does, and where a file cannot be written.
    """
    refuse_another(experiment)
    for cell in experiment.cells:
        path = cell.directory / "config.yaml"
        if not path.exists():
            write_whole(path, load.to_yaml(cell.config))
        elif (known := load.from_file(path)) != (now := _run_as(known, cell.config)):
            write_whole(path, load.to_yaml(now))
    path = experiment.directory / "experiment.yaml"
    recorded = _read(experiment.directory)
    if (described := _describe(experiment, recorded)) != recorded:
        write_whole(path, yaml.safe_dump(described, sort_keys=False, allow_unicode=True))


def add_seeds(experiment: Experiment, seeds: Sequence[int]) -> Experiment:
    """The experiment at `seeds` too, whose new cells are written; `experiment.yaml` records them in its history."""
    grown = experiment.with_seeds(seeds)
    for cell in grown.cells:
        if not (path := cell.directory / "config.yaml").exists():
            write_whole(path, load.to_yaml(cell.config))
    recorded = _read(experiment.directory)
    history, added = recorded["history"], {"seeds": sorted({*recorded["seeds"], *seeds})}
    newest = {key: value for key, value in history[-1].items() if key != "since"}
    now = datetime.now(UTC).isoformat(timespec="seconds")
    _record(experiment.directory, **added, history=_appended(history, deepcopy(newest) | added, now))
    return grown


def record_look(directory: Path, most: int, seeds: Mapping[str, Sequence[int]]) -> None:
    """Record in `experiment.yaml` that the question was looked at; `seeds`: arm → those complete, of at most `most`."""
    looks, look = _read(directory).get("looks", []), {"most": most, "seeds": {a: list(own) for a, own in seeds.items()}}
    if looks and looks[-1]["seeds"] == look["seeds"]:  # an interrupted look is no second one
        return
    _record(directory, looks=[*looks, {"since": datetime.now(UTC).isoformat(timespec="seconds"), **look}])


def record_launcher(experiment: Experiment) -> None:
    """Record the launcher in `experiment.yaml`, from which `reopen` launches the cells again."""
    _record(experiment.directory, launcher=load.to_plain(experiment.config.launcher))


def record_data(experiment: Experiment, arms: Mapping[str, Corpus]) -> None:
    """Record the corpus of each arm in `experiment.yaml`, where none is recorded yet."""
    known = _read(experiment.directory).get("data", {})
    if new := {arm: corpora.described(corpus) for arm, corpus in arms.items() if arm not in known}:
        _record(experiment.directory, data=known | new)


def _record(directory: Path, **entries: Any) -> None:
    """Replace these entries of `experiment.yaml`."""
    recorded = _read(directory) | entries
    write_whole(directory / "experiment.yaml", yaml.safe_dump(recorded, sort_keys=False, allow_unicode=True))


def _run_as(known: schema.Config, now: schema.Config) -> schema.Config:
    """The recorded configuration with the values of this launch for what a launch may change.

    A cell that keeps every state, as all did before there was a key for it, does so until a launch says another number
    than the default.
    """
    if known.train.keep_states is None and now.train.keep_states == schema.TrainConfig.keep_states:
        now = replace(now, train=replace(now.train, keep_states=None))
    kept = sorted({*known.train.keep_at, *now.train.keep_at})  # what a branch began from may be needed again
    now = replace(now, train=replace(now.train, keep_at=kept))
    return keys.taking(known, now, (*keys.OF_A_LAUNCH, *keys.OF_ROUNDING, "train.steps"))


def reopen(path: Path) -> Experiment:
    """The experiment in a run directory, as it was last launched. Raises `UserError` where there is none."""
    refuse_older(path)
    recorded = _read(path)
    if not recorded:
        raise UserError(no_experiment(path))
    left = recorded.get("dropped", [])
    arms = [arm for arm in recorded["arms"] if arm not in left]
    directories = [path / arm / f"seed={seed}" for arm in arms for seed in recorded["seeds"]]
    launcher = load.launcher_from(recorded.get("launcher", {}))
    seeds = list(recorded["seeds"])
    cells = [
        Cell(replace(load.from_file(cell / "config.yaml"), launcher=launcher, seeds=seeds), cell)
        for cell in directories
        if (cell / "config.yaml").exists()
    ]
    if not cells:
        raise UserError(f"{path} has no cell: run the experiment's own command again.")
    decide = recorded.get("decide", {})
    config = replace(cells[0].config, name=path.name, seeds=seeds, decide=load.decide_from(decide))
    return Experiment(path.name, config, path, tuple(cells), auto=bool(decide.get("auto")))


def _read(directory: Path) -> dict[str, Any]:
    """The content of `experiment.yaml`; empty where it does not exist yet. Raises `UserError` where it lacks a key."""
    recorded = description.read(directory)
    if recorded and not {"arms", "declared", "seeds", "code"} <= recorded.keys():
        path = directory / "experiment.yaml"
        raise UserError(f"{path} does not describe an experiment: restore it, or choose another name.")
    return recorded


def _describe(experiment: Experiment, recorded: dict[str, Any]) -> dict[str, Any]:
    """The content of `experiment.yaml`: as recorded, with what this launch adds or changes."""
    config, now = experiment.config, datetime.now(UTC).isoformat(timespec="seconds")
    code = {**environment.code(), "versions": environment.versions()}
    arms = {**recorded.get("arms", {}), **relaunch.arms_of(experiment)}
    lengths = {arm: resolved.train.steps for arm, resolved in experiment.arms.items()}
    before = recorded.get("history", [{}])[-1]
    # `history` records when a launch changed one of these.
    changeable = {
        "seeds": sorted({*recorded.get("seeds", []), *config.seeds}),
        "contrasts": config.contrasts,
        "expect": config.expect,
        "decide": {"auto": experiment.auto, **load.to_plain(config.decide)},
        "dropped": relaunch.dropped(experiment, recorded),
        "steps": {**before.get("steps", {}), **lengths},
    }
    lineage = {arm: asdict(c.branch) for arm, c in experiment.arms.items() if c.branch.arm is not None}
    return {
        "name": experiment.name,
        **({"id": recorded.get("id", secrets.token_hex(6))} if "id" in recorded or not recorded else {}),
        "question": config.question,
        "arms": arms,
        "declared": list(dict.fromkeys([*recorded.get("declared", []), *config.declared])),
        **changeable,
        "lineage": {**recorded.get("lineage", {}), **lineage},
        "models": recorded.get("models", {}) | {arm: _size(resolved) for arm, resolved in experiment.arms.items()},
        "budget": load.to_plain(config.budget),
        **{key: recorded[key] for key in ("launcher", "looks", "data") if key in recorded},
        "machine": recorded.get("machine") or environment.machine(),
        "code": _appended(recorded.get("code", []), code, now),
        # a copy, lest YAML writes a reference
        "history": _appended(recorded.get("history", []), deepcopy(changeable | {"arms": list(arms)}), now),
    }


def _appended(entries: list[dict[str, Any]], now: dict[str, Any], since: str) -> list[dict[str, Any]]:
    """The entries with `now` at the end, unless the last one equals it; the order of contrasts counts."""
    last = {key: value for key, value in entries[-1].items() if key != "since"} if entries else None
    if last == now and list(last.get("contrasts", ())) == list(now.get("contrasts", ())):
        return entries
    return [*entries, {"since": since, **now}]


def _size(config: schema.Config) -> dict[str, Any]:
    spec = decoder_spec(config)
    widths = [layer.width for layer in spec.layers]
    return {"widths": widths, "params": num_params(spec), "training_flops": training_flops(config, spec)}
