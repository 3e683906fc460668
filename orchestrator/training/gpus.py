"""GPUs by their data sheets, and the share of such a peak that training reaches (MFU)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from orchestrator.config.schema import Gpu


@dataclass(frozen=True)
class Sheet:
    """A GPU's data sheet, without sparsity."""

    name: str
    flops: float  # peak bf16 tensor FLOP/s
    bandwidth: float  # bytes/s of its memory
    memory: float  # bytes
    devices: tuple[str, ...]  # what torch calls GPUs with this peak; other variants and MIG slices have another


SHEETS = {
    Gpu.a100: Sheet(  # NVIDIA A100 datasheet, June 2021
        "A100 SXM 80 GB", 312e12, 2.039e12, 80e9,
        ("NVIDIA A100-SXM4-80GB", "NVIDIA A100-SXM4-40GB", "NVIDIA A100 80GB PCIe", "NVIDIA A100-PCIE-40GB"),
    ),
    Gpu.h100: Sheet("H100 SXM 80 GB", 989.4e12, 3.35e12, 80e9, ("NVIDIA H100 80GB HBM3",)),  # H100 whitepaper, table 2
    Gpu.h200: Sheet("H200 SXM 141 GB", 989.4e12, 4.8e12, 141e9, ("NVIDIA H200",)),  # NVIDIA H200 datasheet
    Gpu.b200: Sheet("B200 SXM 180 GB", 2250e12, 8.0e12, 180e9, ("NVIDIA B200",)),  # Blackwell datasheet (HGX B200)
    Gpu.l40s: Sheet("L40S 48 GB", 362e12, 0.864e12, 48e9, ("NVIDIA L40S",)),  # NVIDIA L40S datasheet
    Gpu.rtx4090: Sheet(  # NVIDIA Ada whitepaper, appendix A
        "RTX 4090 24 GB", 165.2e12, 1.008e12, 24e9, ("NVIDIA GeForce RTX 4090",)
    ),
    Gpu.mi300x: Sheet(  # AMD Instinct MI300X data sheet
        "MI300X 192 GB", 1307.4e12, 5.3e12, 192e9, ("AMD Instinct MI300X", "AMD Instinct MI300X OAM")
    ),
}  # fmt: skip


def sheet_of(device_name: str) -> Sheet | None:
    """The data sheet of the GPU that torch calls `device_name`; None where we have none."""
    return next((sheet for sheet in SHEETS.values() if device_name in sheet.devices), None)


def peak_flops(device: torch.device) -> float | None:
    """Peak dense bf16 FLOP/s of `device`; None for a CPU and for a GPU whose data sheet we do not have."""
    sheet = sheet_of(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    return sheet.flops if sheet else None
