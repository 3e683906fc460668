"""An experiment: a cell for each arm at each seed; refused where a comparison of the arms would be unfair."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Collection, Sequence
from copy import deepcopy
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from models.spec import DecoderSpec, forward_flops_per_token
from models.width import build_spec
from orchestrator.common.errors import UserError, nearest
from orchestrator.config import keys, schema
from orchestrator.config.schema import Config
from orchestrator.experiments import branch as branches
from orchestrator.experiments import dependency, description, expectations, extension, playback

LONGEST_NAME = 120  # bytes
LARGEST_WEIGHT = 1e6  # largest size of an arm's weight in a contrast; the smallest is its inverse

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
    """The cells of one question, arm after arm; the first arm is the baseline."""

    name: str
    config: Config
    directory: Path
    cells: tuple[Cell, ...]
    auto: bool = False  # seeds are added until the question is decided

    def with_seeds(self, seeds: Sequence[int]) -> Experiment:
        """This experiment at `seeds`; cells that it has keep their configurations."""
        known = {cell.id: cell for cell in self.cells}
        cells = [
            Cell(replace(config, seed=seed, seeds=list(seeds)), self.directory / arm / f"seed={seed}")
            for arm, config in self.arms.items()
            for seed in seeds
        ]
        config = replace(self.config, seeds=list(seeds))
        return replace(self, config=config, cells=tuple(known.get(cell.id, cell) for cell in cells))

    @property
    def arms(self) -> dict[str, Config]:
        """Arm → the configuration of its first seed."""
        first: dict[str, Config] = {}
        for cell in self.cells:
            first.setdefault(cell.config.arm, cell.config)
        return first


def decoder_spec(config: Config) -> DecoderSpec:
    """The shapes that `model` and `width` describe. Raises `UserError` where the two do not fit."""
    model, width = config.model, config.width
    widths = None if width.widths is None else tuple(width.widths)
    try:
        return _built(
            layers=model.layers, width=model.width, head_dim=model.head_dim, heads=model.heads.value,
            queries_per_kv=model.queries_per_kv, ffn_ratio=model.ffn_ratio, vocab_size=model.vocab_size,
            norm=model.norm.value, tie_embeddings=model.tie_embeddings, rope_theta=model.rope_theta,
            norm_eps=model.norm_eps, profile=width.profile.value, start=width.start, end=width.end,
            widths=widths, multiple_of=width.multiple_of, match=width.match.value, seq_len=config.train.seq_len,
        )  # fmt: skip
    except ValueError as error:
        raise UserError(_as_typed(str(error))) from error


_built = lru_cache(maxsize=256)(build_spec)  # it searches for widths, and a comparison needs that of every cell


def _as_typed(message: str) -> str:
    """The message of `build_spec` with its arguments named by their configuration keys."""
    for branch, config in (("model", schema.ModelConfig), ("width", schema.WidthConfig)):
        names = "|".join(f.name for f in fields(config) if f.name not in ("width", "layers"))
        message = re.sub(rf"(?<![\w.])({names})(?==)", rf"{branch}.\1", message)
    return message


def training_flops(config: Config, spec: DecoderSpec) -> float:
    """Floating-point operations of a whole run; backward costs twice forward."""
    tokens = config.train.steps * config.train.batch_size * config.train.seq_len
    return 3.0 * forward_flops_per_token(spec, config.train.seq_len) * tokens


def reward_rows(config: Config) -> int:
    """Rows per domain that judge a decision of the sidecar."""
    rows = config.sidecar.reward_rows or config.train.batch_size // 2
    return max(1, rows // len(config.data.domains))


def sidecar_flops(config: Config, spec: DecoderSpec, evaluations: int, backwards: int, fork_steps: int = 0) -> float:
    """Floating-point operations of the sidecar's held-out passes and of the training steps of its forks.

    A backward pass costs twice a forward one.
    """
    tokens = reward_rows(config) * len(config.data.domains) * config.train.seq_len
    passes = (evaluations + 2.0 * backwards) * forward_flops_per_token(spec, config.train.seq_len) * tokens
    return passes + training_flops(config, spec) / config.train.steps * fork_steps


def experiment_of(
    overrides: Sequence[str], compose: Compose, *, base: Config | None = None, swept: Sequence[str] = ()
) -> Experiment:
    """The experiment that `overrides` describe; without arms, one arm `main`.

    `base`: what `overrides` alone compose to, where that is known; else it is composed here.
    `swept`: the overrides that a multirun varies, which become part of the name, so that each of its jobs has its own
    directory. Raises `UserError` where a cell cannot be composed or a comparison of the arms would be unfair.
    """
    base = base or compose(overrides)
    if swept:  # W&B tags: the multirun, and what this job of it varies
        tags = [*base.tracker.tags, base.name or "single", *(o.lstrip("+") for o in swept)]
        base = replace(base, tracker=replace(base.tracker, tags=tags))
    arms = base.arms or {base.arm: []}
    if base.arms:
        _refuse_idle_overrides(overrides, base.arms)
    check_contrasts(base.contrasts, arms)
    wanted = expectations.intended(base.expect, arms)
    name = _name(base, overrides, swept)
    root = Path(base.root) / name
    auto = base.seeds == schema.AUTO
    seeds = _until_decided(base, root) if auto else base.seeds or [base.seed]
    composed: dict[str, Config] = {}
    for arm, arm_overrides in arms.items():
        try:
            composed[arm] = compose([*overrides, *arm_overrides]) if arm_overrides else deepcopy(base)
        except UserError as error:
            raise UserError(f"Arm '{arm}': {error}") from error
    cells = []
    for arm, resolved in composed.items():
        train = replace(resolved.train, keep_at=_kept_steps(arm, composed))
        for seed in seeds:
            own = replace(resolved, name=name, arm=arm, seed=seed, seeds=list(seeds), tracker=base.tracker, train=train)
            cells.append(Cell(own, root / arm / f"seed={seed}"))
    experiment = Experiment(name, replace(base, name=name, seeds=list(seeds)), root, tuple(cells), auto)
    for arm, config in experiment.arms.items():
        try:
            decoder_spec(config)
            dependency.check(config, experiment.arms, auto=auto)
            branches.check(config, experiment.arms)
            playback.check(config, experiment.arms)
        except UserError as error:
            raise UserError(f"Arm '{arm}': {error}" if base.arms else str(error)) from error
    expectations.check_depths(wanted, {arm: config.model.layers for arm, config in experiment.arms.items()})
    _refuse_undeclared_differences(experiment)
    return experiment


def _until_decided(base: Config, directory: Path) -> list[int]:
    """The seeds of the first look, and those that the directory has. Raises `UserError` where it cannot be read."""
    return sorted({*range(min(base.decide.min, base.decide.max)), *description.read(directory).get("seeds", [])})


def _kept_steps(arm: str, arms: dict[str, Config]) -> list[int]:
    """The steps of `arm` whose state is kept: as asked for, where branches begin, and where it can be extended from."""
    train, until = arms[arm].train, extension.exact_until(arms[arm])
    to_extend = {until} if until is not None and 0 < until < train.steps else set()
    return sorted({*train.keep_at, *branches.steps_from(arm, arms), *to_extend})


def check_contrasts(contrasts: dict[str, Any], arms: Collection[str]) -> None:
    """Raise `UserError` unless every contrast weighs at least two of `arms`, with weights that sum to 0."""
    for name, weights in contrasts.items():
        if not isinstance(name, str):
            raise UserError(f"contrasts: {name} is not a name: write it in quotes, as '{name}'.")
        if not isinstance(weights, dict) or len(weights) < 2:
            raise UserError(f"contrasts: '{name}' is {weights}, which compares nothing: weigh at least two arms.")
        for arm, weight in weights.items():
            if arm not in arms:
                raise UserError(
                    f"contrasts: '{name}' weighs '{arm}', which is not an arm{nearest(str(arm), arms)}: "
                    f"use those of the experiment, {', '.join(arms)}."
                )
            if not _is_weight(weight):
                raise UserError(
                    f"contrasts: '{name}' gives arm '{arm}' the weight {weight!s:.40}, which is out of range: give it "
                    f"a size between {1 / LARGEST_WEIGHT:g} and {LARGEST_WEIGHT:g}, or leave the arm out."
                )
        if abs(total := math.fsum(weights.values())) > 1e-9 * max(map(abs, weights.values())):
            raise UserError(
                f"contrasts: the weights of '{name}' sum to {total:g}, so it would measure the loss itself: "
                "make them sum to 0, as in {learned: 1, global: -1}."
            )


def _is_weight(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and 1 / LARGEST_WEIGHT <= abs(value) <= LARGEST_WEIGHT


def _refuse_idle_overrides(overrides: Sequence[str], arms: dict[str, list[str]]) -> None:
    """Raise `UserError` for an override that has no effect, on the command line or in an arm."""
    given = {keys.key_of(o): o for o in overrides}
    if "seed" in given:
        raise UserError(f"'{given['seed']}' has no effect on an experiment, which has several: write seeds=[...].")
    if "arm" in given:
        raise UserError(f"'{given['arm']}' has no effect on an experiment, which names its own arms: drop it.")
    for arm, arm_overrides in arms.items():
        for override in arm_overrides:
            if (key := keys.key_of(override)) in given:
                raise UserError(
                    f"'{given[key]}' has no effect: arm '{arm}' sets {override}; "
                    "drop it, or write an experiment with other arms."
                )
            if key in ("seed", "arm") or key.split(".")[0] in keys.OPERATIONAL:
                raise UserError(f"Arm '{arm}' sets {override}, which is the experiment's: move it there.")


def _refuse_undeclared_differences(experiment: Experiment) -> None:
    known = keys.flatten(experiment.config)
    for key in experiment.config.declared:
        if not any(keys.is_within(k, [key]) for k in known):
            raise UserError(f"declared: '{key}' is not a configuration key{nearest(key, known)}: name an existing key.")
    ignore = (*keys.OPERATIONAL, "arm", *experiment.config.declared)
    (baseline, reference), *others = experiment.arms.items()
    for arm, config in others:
        if changed := keys.differences(reference, config, ignore=ignore):
            listing = ", ".join(f"{key} ({was} against {now})" for key, (was, now) in changed.items())
            raise UserError(
                f"Arms '{baseline}' and '{arm}' differ in {listing}, which 'declared' does not name: "
                "declare it if that is the question, or make the arms equal."
            )


def _name(base: Config, overrides: Sequence[str], swept: Sequence[str]) -> str:
    """The experiment's name, or that of its file, else its overrides; then the overrides that a multirun varies."""
    unnamed = {*keys.OPERATIONAL, "experiment", "seed", "seeds"}
    named = [o for o in overrides if keys.key_of(o) not in unnamed and keys.key_of(o).split(".")[0] not in unnamed]
    file = next((o.partition("=")[2] for o in overrides if base.arms and keys.key_of(o) == "experiment"), None)
    own = base.name or file or _described(named) or "single"
    repeated = named if own == _described(named) else []
    varied = _described([o for o in swept if keys.key_of(o) not in ("experiment", "name") and o not in repeated])
    name = f"{own}__{varied}" if varied else own
    if len(name.encode()) > LONGEST_NAME:  # a directory's name may have 255 bytes
        short = name.encode()[: LONGEST_NAME - 9].decode(errors="ignore")
        return f"{short}~{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return name


def _described(overrides: Sequence[str]) -> str:
    return re.sub(r"[^\w=.,+-]+", "_", ",".join(o.lstrip("+") for o in overrides))
