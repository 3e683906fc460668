"""Overrides → configuration: Hydra composes `conf/`, and what it refuses becomes one sentence."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import hydra
import yaml
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException

from orchestrator.common.errors import UserError, nearest
from orchestrator.config import load
from orchestrator.config.messages import sentence
from orchestrator.config.schema import Config

PACKAGE = Path(__file__).resolve().parents[1]
CONF = PACKAGE / "conf" if (PACKAGE / "conf").is_dir() else PACKAGE.parent / "conf"  # installed, or in a checkout
COMPOSING = (
    HydraException,
    OmegaConfBaseException,
    yaml.YAMLError,
    ValueError,
)  # Hydra refuses `width=3` with a ValueError
PLUGINS = {
    "joblib": "hydra-joblib-launcher",
    "submitit_local": "hydra-submitit-launcher",
    "submitit_slurm": "hydra-submitit-launcher",
}  # choice of hydra/launcher → package


def compose(overrides: Sequence[str]) -> Config:
    """The configuration that Hydra composes from `conf/` and `overrides`. Raises `UserError`."""
    try:
        return load.from_dictconfig(hydra.compose(config_name="config", overrides=list(overrides)))
    except COMPOSING as error:
        raise UserError(explain(error, overrides)) from error


def explain(error: Exception, overrides: Sequence[str]) -> str:
    """One sentence for a configuration that Hydra could not compose from `overrides`."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, wanted = error.missing_cfg_file.rpartition("/")
        if group == "hydra/launcher" and wanted in PLUGINS:
            return f"{group}={wanted} needs {PLUGINS[wanted]}, which is not installed: pip install it."
        options = error.options or sorted(p.stem for p in (CONF / group).glob("*.yaml"))
        return f"There is no {group} '{wanted}'{nearest(wanted, options)}: choose one of {', '.join(options)}."
    if forgotten := [o for o in overrides if o.startswith("experiment=")]:
        return f"'{forgotten[0]}' names no key of the defaults: write +{forgotten[0]}."
    if isinstance(error, yaml.YAMLError):
        return f"A file of {CONF} is not YAML: {' '.join(str(error).split())}."
    if isinstance(error, OverrideParseException):
        return f"'{error.override}' is no override: write key=value, with quotes around a value of several words."
    if isinstance(error, ValueError) and not isinstance(error, OmegaConfBaseException):
        return f"{' '.join(overrides)}: {error}; a group such as width takes the name of one of its files, width=ramp."
    return sentence(error)
