"""The number of cells that run at once on this machine, and their GPUs."""

from __future__ import annotations

import os

from orchestrator.common.errors import UserError
from orchestrator.config.schema import Config, Device


def machine_slots(config: Config) -> list[str | None]:
    """One slot for each cell that may run at once: its GPUs as CUDA_VISIBLE_DEVICES names them, or None on the CPU.

    A cell of several ranks has a GPU for each. Raises `UserError` where there are not as many.
    """
    import torch  # takes a second, which the command `status` does without

    from orchestrator.common.environment import usable_cores

    each = config.launcher.ranks
    if config.train.device == Device.cpu or not torch.cuda.is_available():
        return [None] * (config.launcher.parallel or max(1, usable_cores() // (config.train.threads * each)))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]
    names = names[: torch.cuda.device_count()]
    gpus = [",".join(names[i : i + each]) for i in range(0, len(names) - each + 1, each)]
    if not gpus:
        raise UserError(
            f"launcher.ranks={each} needs {each} GPUs for each cell, and torch sees {len(names)} here: "
            "lower launcher.ranks, or set train.device=cpu."
        )
    return [gpus[i % len(gpus)] for i in range(config.launcher.parallel or len(gpus))]
