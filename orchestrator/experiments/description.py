"""`experiment.yaml` as plain values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from orchestrator.common.errors import UserError
from orchestrator.config.load import plain_yaml


def read(experiment_dir: Path) -> dict[str, Any]:
    """The content of `experiment.yaml`; empty where it does not exist yet. Raises `UserError` where it is broken."""
    path = experiment_dir / "experiment.yaml"
    if not path.exists():
        return {}
    try:
        recorded = plain_yaml(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read ({error}): restore it, or choose another name.") from error
    if not isinstance(recorded, dict):
        raise UserError(f"{path} does not describe an experiment: restore it, or choose another name.")
    return recorded


def identity(experiment_dir: Path) -> str:
    """A word for this directory alone, which a copy of it does not share; empty where no `id` was recorded."""
    recorded = read(experiment_dir).get("id")
    return f"{recorded}-{experiment_dir.stat().st_ino}" if recorded else ""
