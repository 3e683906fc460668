"""A question, its arms and its seeds: the cells they make, and what makes their comparison fair."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from models.transformer import DecoderSpec, forward_flops_per_token, num_params
from models.width import build_spec
from orchestrator import schema
from orchestrator.errors import UserError, nearest
from orchestrator.schema import Config

LONGEST_NAME = 120  # characters

Compose = Callable[[Sequence[str]], Config]  # Hydra overrides → configuration


@dataclass(frozen=True)
class Cell:
    """One arm at one seed: one training run, one directory."""

    config: Config
    directory: Path

    @property
    def id(self) -> str:
        return f"{self.config.arm}/seed={self.config.seed}"


@dataclass(frozen=True)
class Experiment:
    """All cells of one question, arm by arm in order; the first arm is the baseline."""

    name: str
    config: Config
    directory: Path
    cells: tuple[Cell, ...]

    @property
    def arms(self) -> dict[str, Config]:
        """One configuration per arm (that of its first seed)."""
        first: dict[str, Config] = {}
        for cell in self.cells:
            first.setdefault(cell.config.arm, cell.config)
        return first


def decoder_spec(config: Config) -> DecoderSpec:
    """The shapes that `model` and `width` describe. Raises `UserError` where they do not fit together."""
    model, width = config.model, config.width
    try:
        return build_spec(
            layers=model.layers, width=model.width, head_dim=model.head_dim, heads=model.heads.value,
            queries_per_kv=model.queries_per_kv, ffn_ratio=model.ffn_ratio, vocab_size=model.vocab_size,
            norm=model.norm.value, tie_embeddings=model.tie_embeddings, rope_theta=model.rope_theta,
            norm_eps=model.norm_eps, profile=width.profile.value, start=width.start, end=width.end,
            widths=width.widths, multiple_of=width.multiple_of, match=width.match.value, seq_len=config.train.seq_len,
        )  # fmt: skip
    except ValueError as error:
        raise UserError(str(error)) from error


def training_flops(config: Config, spec: DecoderSpec) -> float:
    """Floating-point operations of a whole run: forward and twice that for backward, per token."""
    tokens = config.train.steps * config.train.batch_size * config.train.seq_len
    return 3.0 * forward_flops_per_token(spec, config.train.seq_len) * tokens


def experiment_of(overrides: Sequence[str], compose: Compose, *, swept: bool = False) -> Experiment:
    """Compose every cell of the experiment that `overrides` describe, and refuse an unfair comparison.

    `compose` turns overrides into a configuration. With `swept`, the overrides become part of the name, so
    that no two jobs of a multirun share a directory. Without arms, the overrides are the one arm, `main`.
    """
    base = compose(overrides)
    arms = base.arms or {base.arm: []}
    seeds = base.seeds or [base.seed]
    if base.arms:
        _refuse_overridden_arms(overrides, base.arms)
    name = _name(base, overrides, swept)
    root = Path(base.root) / name
    cells = []
    for arm, arm_overrides in arms.items():
        try:
            composed = compose([*overrides, *arm_overrides])
        except UserError as error:
            raise UserError(f"Arm '{arm}': {error}") from error
        for seed in seeds:
            config = replace(composed, name=name, arm=arm, seed=seed, seeds=list(seeds))
            cells.append(Cell(config, root / arm / f"seed={seed}"))
    experiment = Experiment(name, replace(base, name=name, seeds=list(seeds)), root, tuple(cells))
    for arm, config in experiment.arms.items():
        try:
            decoder_spec(config)
        except UserError as error:
            raise UserError(f"Arm '{arm}': {error}" if base.arms else str(error)) from error
    _refuse_undeclared_differences(experiment)
    return experiment


def open_directory(experiment: Experiment) -> None:
    """Create the run directory, or find the same experiment in it; refuse another one under its name.

    Writes `experiment.yaml` and every cell's `config.yaml`. Seeds may be added later, nothing else.
    """
    for cell in experiment.cells:
        path = cell.directory / "config.yaml"
        if path.exists():
            changed = schema.differences(schema.load(path), cell.config, ignore=schema.OPERATIONAL)
            if changed:
                listing = ", ".join(f"{key} was {was} and is {now}" for key, (was, now) in changed.items())
                raise UserError(
                    f"{cell.directory} holds another configuration ({listing}): "
                    "choose another name with name=..., or restore the old values."
                )
    for cell in experiment.cells:
        path = cell.directory / "config.yaml"
        if not path.exists():
            _write(path, schema.to_yaml(cell.config))
    _write_description(experiment)


def _refuse_overridden_arms(overrides: Sequence[str], arms: dict[str, list[str]]) -> None:
    given = {_key(o): o for o in overrides}
    for arm, arm_overrides in arms.items():
        for override in arm_overrides:
            if _key(override) in given:
                raise UserError(
                    f"'{given[_key(override)]}' has no effect: arm '{arm}' sets {override}; "
                    "drop it, or write an experiment whose arms say what you mean."
                )


def _refuse_undeclared_differences(experiment: Experiment) -> None:
    known = schema.flatten(experiment.config)
    for key in experiment.config.declared:
        if not any(k == key or k.startswith(key + ".") for k in known):
            raise UserError(f"declared: '{key}' is no configuration key{nearest(key, known)}: declare an existing key.")
    ignore = (*schema.OPERATIONAL, "arm", *experiment.config.declared)
    (baseline, reference), *others = experiment.arms.items()
    for arm, config in others:
        changed = schema.differences(reference, config, ignore=ignore)
        if changed:
            listing = ", ".join(f"{key} ({was} against {now})" for key, (was, now) in changed.items())
            raise UserError(
                f"Arms '{baseline}' and '{arm}' differ in {listing}, which 'declared' does not name: "
                "declare it if that is the question, or make the arms equal."
            )


def _key(override: str) -> str:
    return override.lstrip("+~").split("=", 1)[0].split("@", 1)[0]


def _name(base: Config, overrides: Sequence[str], swept: bool) -> str:
    silent = {*schema.OPERATIONAL, "experiment", "seed", "seeds"}
    telling = [o.lstrip("+") for o in overrides if _key(o).split(".")[0] not in silent and _key(o) not in silent]
    described = re.sub(r"[^\w=.,+-]+", "_", ",".join(telling))
    if base.name is None:
        name = described or "single"
    else:
        name = f"{base.name}__{described}" if swept and described else base.name
    if len(name) > LONGEST_NAME:  # a directory's name has 255 bytes
        name = f"{name[: LONGEST_NAME - 9]}~{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return name


def _write_description(experiment: Experiment) -> None:
    path = experiment.directory / "experiment.yaml"
    config = experiment.config
    arms = {}
    for arm, resolved in experiment.arms.items():
        spec = decoder_spec(resolved)
        arms[arm] = {
            "widths": [layer.width for layer in spec.layers],
            "params": num_params(spec),
            "training_flops": training_flops(resolved, spec),
        }
    description: dict[str, Any] = {
        "name": experiment.name,
        "question": config.question,
        "arms": config.arms or {config.arm: []},
        "seeds": list(config.seeds),
        "declared": list(config.declared),
        "models": arms,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "git": _git(),
        "versions": {
            p: metadata.version(p) for p in ("torch", "transformers", "datasets", "hydra-core", "wandb", "numpy")
        },
        "machine": {
            "python": sys.version.split()[0],
            "platform": platform.platform(),
            "processor": platform.machine(),
            "cores": os.cpu_count(),
        },
    }
    if path.exists():
        before = yaml.safe_load(path.read_text())
        description = {**before, "seeds": sorted({*before["seeds"], *config.seeds})}
        if description == before:
            return
    _write(path, yaml.safe_dump(description, sort_keys=False, allow_unicode=True))


def _git() -> dict[str, str]:
    """Commit and uncommitted diff of the code that runs; empty where it is not a git checkout."""
    here = Path(__file__).resolve().parent
    try:
        commit, diff = (
            subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=True, timeout=20).stdout
            for words in (["rev-parse", "HEAD"], ["diff", "HEAD"])
        )
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"commit": commit.strip(), "diff": diff}


def _write(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        partial.write_text(text)
        partial.replace(path)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error}): choose a writable place with root=....") from error
