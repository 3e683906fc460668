"""Reading a configuration from Hydra or a file into checked dataclasses, and writing it as YAML."""

from __future__ import annotations

import re
from copy import deepcopy
from dataclasses import replace
from functools import lru_cache
from io import StringIO
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from orchestrator.common.errors import UserError
from orchestrator.config import messages, validation
from orchestrator.config.schema import AUTO, Config, DecideConfig, LauncherConfig

T = TypeVar("T", Config, DecideConfig, LauncherConfig)
# what a cell did before a key existed, where the key's default does something else
BEFORE = {"train": {"keep_states": None}}
SEED = re.compile(r"^seed: (\d+)$", re.MULTILINE)


def from_dictconfig(cfg: DictConfig) -> Config:
    """The configuration as dataclasses, checked. Raises `UserError` for the first value that cannot work."""
    # as plain values: in the typed tree, OmegaConf would accept an unknown key that `+` added
    config = _typed(Config, OmegaConf.to_container(cfg))
    validation.validate(config)
    return config


def from_file(path: Path) -> Config:
    """A cell's `config.yaml`; a key that it lacks is as it was before the key existed.

    Raises `UserError` where it is missing or not of this schema.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist: a cell's config.yaml is written when it is launched.")
    try:
        text = path.read_text(encoding="utf-8")
        seeds = SEED.findall(text)
        found = _parsed(SEED.sub("seed: 0", text) if len(seeds) == 1 else text)
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read ({' '.join(str(error).split())}): restore it.") from error
    if found is None:
        raise UserError(f"{path} is not a mapping of keys to values, and so no cell's configuration: restore it.")
    return replace(deepcopy(found), seed=int(seeds[0])) if len(seeds) == 1 else deepcopy(found)


@lru_cache(maxsize=64)  # parsing takes a tenth of a second, and the cells of an arm differ in their seed alone
def _parsed(text: str) -> Config | None:
    cfg = OmegaConf.load(StringIO(text))
    if not isinstance(cfg, DictConfig):
        return None
    completed = OmegaConf.merge(BEFORE, cfg)
    assert isinstance(completed, DictConfig)
    return from_dictconfig(completed)


def plain_yaml(text: str | bytes) -> Any:
    """The plain values of a YAML text. Raises `yaml.YAMLError`, and other errors for values of a wrong form."""
    return yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # libyaml, where installed, is faster


def launcher_from(recorded: dict[str, Any]) -> LauncherConfig:
    """The launcher that `to_plain` recorded. Raises `UserError` where it is not of this schema."""
    return _typed(LauncherConfig, recorded)


def decide_from(recorded: dict[str, Any]) -> DecideConfig:
    """The `decide` that experiment.yaml records. Raises `UserError` where it is not of this schema."""
    return _typed(DecideConfig, {key: value for key, value in recorded.items() if key != AUTO})


def _typed(schema: type[T], values: Any) -> T:
    """An instance of `schema` with `values` over its defaults. Raises `UserError`."""
    try:
        found = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), values))
    except OmegaConfBaseException as error:
        raise UserError(messages.sentence(error)) from error
    assert isinstance(found, schema)
    return found


def to_yaml(config: Config) -> str:
    """The configuration as YAML, every value resolved."""
    return OmegaConf.to_yaml(OmegaConf.structured(config), resolve=True)


def to_plain(branch: Any) -> dict[str, Any]:
    """One branch of the configuration as plain values, for YAML."""
    container = OmegaConf.to_container(OmegaConf.structured(branch), resolve=True, enum_to_str=True)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}
