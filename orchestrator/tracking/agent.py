"""The environment that belongs to one W&B run: what `wandb agent` and users set for it, and who may have it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from orchestrator.config.keys import key_of
from orchestrator.config.load import plain_yaml

OF_A_SWEEP = ("WANDB_RUN_ID", "WANDB_SWEEP_ID", "WANDB_SWEEP_PARAM_PATH")
OF_ONE_RUN = (
    *OF_A_SWEEP, "WANDB_RUN_GROUP", "WANDB_NAME", "WANDB_NOTES", "WANDB_TAGS", "WANDB_JOB_TYPE", "WANDB_RESUME",
)  # fmt: skip


def is_present() -> bool:
    """True where `wandb agent` has started this process for one run of a W&B sweep."""
    return all(os.environ.get(name) for name in OF_A_SWEEP[:2])


def swept(overrides: Sequence[str]) -> list[str]:
    """The overrides that the sweep varies from run to run; none without an agent."""
    path = Path(os.environ.get("WANDB_SWEEP_PARAM_PATH", ""))
    if not is_present() or not path.is_file():
        return []
    keys = plain_yaml(path.read_text(encoding="utf-8")).keys()
    return [override for override in overrides if key_of(override) in keys]


@contextmanager
def only_for(kind: str) -> Iterator[None]:
    """Hide the variables in the block, as many runs are opened under them.

    The run of the comparison keeps those of the sweep: it is the one that the agent waits for.
    """
    kept = OF_A_SWEEP if kind == "comparison" and is_present() else ()
    hidden = {name: os.environ.pop(name) for name in OF_ONE_RUN if name in os.environ and name not in kept}
    try:
        yield
    finally:
        os.environ |= hidden
