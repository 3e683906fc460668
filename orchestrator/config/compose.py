"""Composing a configuration from overrides and `conf/` by Hydra, whose errors become one sentence."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import hydra
import yaml
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from orchestrator.common.errors import UserError, nearest
from orchestrator.config import load, messages
from orchestrator.config.schema import Config

PACKAGE = Path(__file__).resolve().parents[1]
CONF = PACKAGE / "conf" if (PACKAGE / "conf").is_dir() else PACKAGE.parent / "conf"  # installed, or in a checkout
COMPOSING = (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError)  # ValueError: Hydra's for `width=3`
PLUGINS = {  # hydra/launcher → package
    "joblib": "hydra-joblib-launcher",
    "submitit_local": "hydra-submitit-launcher",
    "submitit_slurm": "hydra-submitit-launcher",
}


def folders() -> list[Path]:
    """The folders of configuration files, in order: `conf/`, and the user's own folder where it exists.

    The user's own is `~/.config/layer-roles`, or `layer-roles` in XDG_CONFIG_HOME. Hydra searches --config-dir between
    the two.
    """
    home = os.environ.get("XDG_CONFIG_HOME") or f"{os.environ.get('HOME', '')}/.config"
    own = Path(home) / "layer-roles"
    return [CONF, own] if own.is_dir() else [CONF]


class OwnFolder(SearchPathPlugin):
    """Adds the user's own folder to Hydra's search path."""

    named: ClassVar[Path | None] = None  # what --config-dir names, where Hydra does not see the command line

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append the folder under the provider "schema", before whose first entry Hydra puts --config-dir."""
        for folder in [*filter(None, [self.named]), *folders()[1:]]:
            search_path.append("schema", f"file://{folder}")


def wandb_mode() -> str:
    """The tracker's mode by WANDB_MODE, in whose words disabled is off."""
    mode = os.environ.get("WANDB_MODE") or "offline"
    return {"disabled": "off", "dryrun": "offline", "run": "online"}.get(mode, mode)


def wandb_dir() -> str | None:
    """The tracker's folder by WANDB_DIR, but for the one that `wandb agent` sets for itself."""
    return None if os.environ.get("WANDB_SWEEP_ID") else os.environ.get("WANDB_DIR") or None


OmegaConf.register_new_resolver("wandb_mode", wandb_mode)
OmegaConf.register_new_resolver("wandb_dir", wandb_dir)
Plugins.instance().register(OwnFolder)
ConfigStore.instance().store(name="schema", node=Config)


def options(group: str) -> list[str]:
    """The names of a group's files, sorted, in all folders of the search path. Needs an initialised Hydra."""
    return sorted(GlobalHydra.instance().config_loader().get_group_options(group, ObjectType.CONFIG))


def compose(overrides: Sequence[str], config_name: str = "config") -> Config:
    """The configuration that Hydra composes from `config_name` in `conf/` and `overrides`. Raises `UserError`."""
    try:
        return load.from_dictconfig(hydra.compose(config_name=config_name, overrides=list(overrides)))
    except COMPOSING as error:
        raise UserError(explain(error, overrides)) from error


def explain(error: Exception, overrides: Sequence[str]) -> str:
    """One sentence for a configuration that Hydra could not compose from `overrides`."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, wanted = error.missing_cfg_file.rpartition("/")
        if group == "hydra/launcher" and wanted in PLUGINS:
            return f"{group}={wanted} needs {PLUGINS[wanted]}, which is not installed: pip install it."
        if not group:
            return (
                f"There is no {wanted}.yaml for --config-name={wanted}: put it into a folder that --config-dir names."
            )
        known = error.options or sorted(p.stem for folder in folders() for p in (folder / group).glob("*.yaml"))
        return f"There is no {group} '{wanted}'{nearest(wanted, known)}: choose one of {', '.join(known)}."
    if forgotten := [o for o in overrides if o.startswith("experiment=")]:
        return f"'{forgotten[0]}' names no key of the defaults: write +{forgotten[0]}."
    if isinstance(error, yaml.YAMLError):
        return f"A configuration file is not YAML: {' '.join(str(error).split())}."
    if isinstance(error, OverrideParseException):
        return messages.miswritten(error.override)
    if several := messages.several(error, overrides):
        return several
    if "value in defaults : bool" in str(error):
        return 'A defaults list has a bare off, which YAML reads as false: write "off" in quotes, /tracker: "off".'
    if isinstance(error, ValueError) and not isinstance(error, OmegaConfBaseException):
        return f"{' '.join(overrides)}: {error}; a group such as width takes the name of one of its files, width=ramp."
    return messages.sentence(error, folders())
