"""The device on which interventions and traces run: the GPU, where torch sees one."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

import torch

from orchestrator.common.errors import UserError
from orchestrator.common.formatting import size

P = ParamSpec("P")
T = TypeVar("T")

NO_MEMORY = "DefaultCPUAllocator"  # in the RuntimeError by which torch says that the machine has no memory left


def default_device() -> torch.device:
    """The GPU, or the CPU where torch sees none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def within_memory(run: Callable[Concatenate[Path, P], T]) -> Callable[Concatenate[Path, P], T]:
    """The function of a source, which raises `UserError` where memory cannot hold what it computes."""

    @wraps(run)
    def wrapped(source: Path, /, *args: P.args, **named: P.kwargs) -> T:
        try:
            return run(source, *args, **named)
        except torch.OutOfMemoryError as error:
            held = torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else None
            raise UserError(
                f"{source} and what is computed with it need more memory than the GPU has"
                f"{f' ({size(held)}, other processes included)' if held else ''}: give shorter text, or write "
                "CUDA_VISIBLE_DEVICES= before the command, which then runs on the CPU."
            ) from error
        except RuntimeError as error:
            if NO_MEMORY not in str(error):
                raise
            raise UserError(
                f"{source} and what is computed with it need more memory than this machine has free: give shorter "
                "text, or use a machine with more."
            ) from error

    return wrapped
