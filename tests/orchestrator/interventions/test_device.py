"""A sentence where memory is short, and no other error taken for that."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from orchestrator.common.errors import UserError
from orchestrator.interventions.device import within_memory
from tests.naming import naming


@within_memory
def allocate(source: Path, bytes: int) -> None:
    torch.empty(bytes, dtype=torch.uint8)


@within_memory
def multiply(source: Path) -> None:
    torch.ones(2, 3) @ torch.ones(2, 3)


def test_a_machine_without_enough_memory_is_a_sentence(tmp_path: Path) -> None:
    allocate(tmp_path, 1)
    with pytest.raises(UserError, match=naming(tmp_path, "memory", "machine")):
        allocate(tmp_path, 2**50)


def test_another_error_of_torch_stays_one(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="shapes"):
        multiply(tmp_path)
