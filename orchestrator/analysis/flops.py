"""FLOPs that a cell had spent by every step, its sidecar included, and losses at equal FLOPs."""

from __future__ import annotations

import numpy as np

from orchestrator.analysis.cells import CellResult
from orchestrator.experiments.experiment import decoder_spec, sidecar_flops, training_flops

EQUAL_WITHIN = 0.005  # of each other, as close as two widths are matched (SCIENCE §7)


def spent(cell: CellResult) -> dict[int, float]:
    """Step → floating-point operations up to it: forward and backward, and the sidecar's held-out passes."""
    config = cell.config
    spec, total = decoder_spec(config), {}
    per_step = training_flops(config, spec) / config.train.steps
    beside = 0.0
    for record in cell.metrics:
        if decision := record.get("sidecar"):
            beside = sidecar_flops(config, spec, decision["evaluations"], decision["backwards"])
        total[record["step"]] = record["step"] * per_step + beside
    return total


def at_equal_flops(*runs: tuple[dict[int, float], list[tuple[int, float]]]) -> tuple[float, ...] | None:
    """The losses of several runs where the cheapest ends, from (FLOPs by step, validation curve) of each.

    A more expensive run's loss is interpolated between its evaluations, before its learning-rate schedule has ended.
    None where the runs cost the same.
    """
    ends = [flops[curve[-1][0]] for flops, curve in runs]
    if max(ends) - min(ends) <= EQUAL_WITHIN * min(ends):
        return None
    return tuple(
        float(np.interp(min(ends), [flops[step] for step, _ in curve], [loss for _, loss in curve]))
        for flops, curve in runs
    )
