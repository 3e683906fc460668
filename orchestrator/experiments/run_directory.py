"""The run directory of one experiment: `experiment.yaml` and the cells' `config.yaml`, written and read back."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from models.spec import num_params
from orchestrator.common import environment
from orchestrator.common.errors import UserError, no_experiment
from orchestrator.config import keys, load, schema
from orchestrator.data import Corpus
from orchestrator.experiments import corpora, description
from orchestrator.experiments.experiment import Cell, Experiment, decoder_spec, training_flops
from orchestrator.storage.event_log import refuse_older
from orchestrator.storage.files import write_whole


def refuse_another(experiment: Experiment) -> None:
    """Raise `UserError` where the directory holds another experiment; only seeds may be added to one."""
    for path in (experiment.directory, *experiment.directory.parents):
        if path.exists() and not path.is_dir():
            raise UserError(f"{path} is a file, and the run needs a directory: choose another name=... or root=....")
    refuse_older(experiment.directory)
    recorded = _read(experiment.directory)
    for key, now in _identity(experiment).items():
        if recorded and recorded[key] != now:
            raise UserError(
                f"{experiment.directory} holds another experiment ({_changes(key, recorded[key], now)}): "
                "choose another name with name=..., or restore the old values."
            )
    for cell in experiment.cells:
        path = cell.directory / "config.yaml"
        if not path.exists():
            continue
        if changed := keys.differences(load.from_file(path), cell.config, ignore=keys.OPERATIONAL):
            listing = ", ".join(f"{key} was {was} and is {now}" for key, (was, now) in changed.items())
            raise UserError(
                f"{cell.directory} holds another configuration ({listing}): "
                "choose another name with name=..., or restore the old values."
            )


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


def record_launcher(experiment: Experiment) -> None:
    """Record the launcher in `experiment.yaml`, from which `reopen` launches the cells again."""
    _record(experiment, "launcher", load.to_plain(experiment.config.launcher))


def record_data(experiment: Experiment, arms: Mapping[str, Corpus]) -> None:
    """Record the corpus of each arm in `experiment.yaml`, where none is recorded yet."""
    known = _read(experiment.directory).get("data", {})
    if new := {arm: corpora.described(corpus) for arm, corpus in arms.items() if arm not in known}:
        _record(experiment, "data", known | new)


def _record(experiment: Experiment, key: str, value: Any) -> None:
    path = experiment.directory / "experiment.yaml"
    recorded = _read(experiment.directory) | {key: value}
    write_whole(path, yaml.safe_dump(recorded, sort_keys=False, allow_unicode=True))


def _run_as(known: schema.Config, now: schema.Config) -> schema.Config:
    """The recorded configuration with the values of this launch for `keys.OF_A_LAUNCH`.

    A cell that keeps every state, as all did before there was a key for it, does so until a launch says another number
    than the default.
    """
    if known.train.keep_states is None and now.train.keep_states == schema.TrainConfig.keep_states:
        now = replace(now, train=replace(now.train, keep_states=None))
    merged = known
    for key in keys.OF_A_LAUNCH:
        branch, _, leaf = key.rpartition(".")
        if branch:
            changed = replace(getattr(merged, branch), **{leaf: getattr(getattr(now, branch), leaf)})
            merged = replace(merged, **{branch: changed})
        else:
            merged = replace(merged, **{leaf: getattr(now, leaf)})
    return merged


def reopen(path: Path) -> Experiment:
    """The experiment in a run directory, as it was last launched. Raises `UserError` where there is none."""
    refuse_older(path)
    recorded = _read(path)
    if not recorded:
        raise UserError(no_experiment(path))
    directories = [path / arm / f"seed={seed}" for arm in recorded["arms"] for seed in recorded["seeds"]]
    launcher = load.launcher_from(recorded.get("launcher", {}))
    seeds = list(recorded["seeds"])
    cells = [
        Cell(replace(load.from_file(cell / "config.yaml"), launcher=launcher, seeds=seeds), cell)
        for cell in directories
        if (cell / "config.yaml").exists()
    ]
    if not cells:
        raise UserError(f"{path} has no cell: run the experiment's own command again.")
    return Experiment(path.name, replace(cells[0].config, name=path.name), path, tuple(cells))


def _read(directory: Path) -> dict[str, Any]:
    """The content of `experiment.yaml`; empty where it does not exist yet. Raises `UserError` where it lacks a key."""
    recorded = description.read(directory)
    if recorded and not {"arms", "declared", "seeds", "code"} <= recorded.keys():
        path = directory / "experiment.yaml"
        raise UserError(f"{path} does not describe an experiment: restore it, or choose another name.")
    return recorded


def _changes(key: str, was: Any, now: Any) -> str:
    """Both values; of a mapping, those of the entries that differ."""
    if not (isinstance(was, dict) and isinstance(now, dict)):
        return f"{key} was {was} and is {now}"
    differing = [name for name in {**was, **now} if was.get(name) != now.get(name)]
    changes = {name: f"was {was.get(name)} and is {now.get(name)}" for name in differing}
    changes |= {name: "is new" for name in now if name not in was}
    changes |= {name: "is gone" for name in was if name not in now}
    return ", ".join(f"{key}.{name} {change}" for name, change in changes.items())


def _identity(experiment: Experiment) -> dict[str, Any]:
    """The entries of `experiment.yaml` that no launch may change."""
    config = experiment.config
    return {"arms": config.arms or {config.arm: []}, "declared": list(config.declared)}


def _describe(experiment: Experiment, recorded: dict[str, Any]) -> dict[str, Any]:
    """The content of `experiment.yaml`: as recorded, with what this launch adds or changes."""
    config, now = experiment.config, datetime.now(UTC).isoformat(timespec="seconds")
    code = {**environment.code(), "versions": environment.versions()}
    # A launch may add seeds, contrasts and expectations; `history` records when each was added.
    changeable = {
        "seeds": sorted({*recorded.get("seeds", []), *config.seeds}),
        "contrasts": config.contrasts,
        "expect": config.expect,
    }
    return {
        "name": experiment.name,
        **({"id": recorded.get("id", secrets.token_hex(6))} if "id" in recorded or not recorded else {}),
        "question": config.question,
        **_identity(experiment),
        **changeable,
        "models": {arm: _size(resolved) for arm, resolved in experiment.arms.items()},
        **{key: recorded[key] for key in ("launcher", "data") if key in recorded},
        "machine": recorded.get("machine") or environment.machine(),
        "code": _appended(recorded.get("code", []), code, now),
        # a copy, lest YAML writes a reference
        "history": _appended(recorded.get("history", []), deepcopy(changeable), now),
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
