"""Data sheets by torch's names of devices."""

from __future__ import annotations

import pytest
import torch

from orchestrator.config.schema import Gpu
from orchestrator.training.gpus import SHEETS, peak_flops, sheet_of


def test_every_gpu_that_a_plan_can_name_has_a_sheet_and_its_own_devices() -> None:
    assert set(SHEETS) == set(Gpu)
    names = [name for sheet in SHEETS.values() for name in sheet.devices]
    assert len(names) == len(set(names))
    assert all(sheet_of(name) is sheet for sheet in SHEETS.values() for name in sheet.devices)


@pytest.mark.parametrize(
    "name",
    ["NVIDIA H100 PCIe", "NVIDIA H100 NVL", "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA GeForce RTX 4090 D", ""],
)
def test_a_variant_with_another_peak_has_no_sheet(name: str) -> None:
    assert sheet_of(name) is None


def test_a_cpu_has_no_published_peak() -> None:
    assert peak_flops(torch.device("cpu")) is None
