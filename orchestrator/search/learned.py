"""The sidecar that a search learned, written as a choice of `sidecar=` (`search/learned.yaml`)."""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Any

import yaml

from orchestrator.config import keys
from orchestrator.config.schema import Config, SidecarConfig
from orchestrator.experiments.trials import FOLDER, Trial
from orchestrator.storage.files import write_whole

GROUP = "sidecar"


def write(experiment_dir: Path, best: Trial, config: Config) -> Path | None:
    """Write the sidecar of `best`, a trial that `config` composes; None, and nothing, where it sets other keys too.

    Raises `UserError` where the disk refuses.
    """
    if not all(keys.is_within(key, (GROUP,)) for key in best.settings):
        return None
    path = experiment_dir / FOLDER / "learned.yaml"
    steps, loss = max(best.losses.items())
    head = f"# Learned by a search: validation loss {loss:.4f} after {steps} steps at its seed ({best.name}).\n"
    write_whole(path, head + yaml.safe_dump(choice(config), sort_keys=False, width=120))
    return path


def choice(config: Config) -> dict[str, Any]:
    """The keys of the sidecar that differ from their defaults, with mode and channels, as a file of `conf/sidecar/`."""
    own, usual = asdict(config.sidecar), asdict(SidecarConfig())
    kept = {key: value for key, value in own.items() if key in ("mode", "channels") or value != usual[key]}
    plain = {key: str(value) if isinstance(value, StrEnum) else value for key, value in kept.items()}
    return {"mode": plain.pop("mode"), **plain}
