"""Forks of a run, from which its sidecar learns (SCIENCE §6)."""

from __future__ import annotations

from orchestrator.config.schema import Config, Credit, SidecarMode
from sidecar.forks import length_of


def has_forks(config: Config) -> bool:
    """True where the sidecar learns from forks of the run."""
    return config.sidecar.mode == SidecarMode.learn and config.sidecar.credit == Credit.forks


def steps_ahead(config: Config) -> int:
    """The number of steps that a fork trains, where the end of the run is not nearer."""
    memory = config.optim.lr * config.optim.weight_decay > 0  # without, the sidecar is refused
    return length_of(config.sidecar.horizon, config.optim.lr, config.optim.weight_decay) if memory else 0
