"""Count the FLOPs of a cell by step, its sidecar included, and compare losses at equal FLOPs."""

from __future__ import annotations

import numpy as np

from orchestrator.analysis.cells import CellResult
from orchestrator.experiments.experiment import decoder_spec, sidecar_flops, training_flops

EQUAL_WITHIN = 0.005  # relative, as close as two widths are matched (SCIENCE §7)


def spent(cell: CellResult) -> dict[int, float]:
    """Return step → FLOPs up to it: forward and backward, the sidecar's held-out passes and forks."""
    config = cell.config
    spec, total = decoder_spec(config), {}
    per_step = training_flops(config, spec) / config.train.steps
    beside = 0.0
    for record in cell.metrics:
        if decision := record.get("sidecar"):
            forked = decision.get("fork_steps", 0)
            beside = sidecar_flops(config, spec, decision["evaluations"], decision["backwards"], forked)
        total[record["step"]] = record["step"] * per_step + beside
    return total


def at_equal_flops(*runs: tuple[dict[int, float], list[tuple[int, float]]]) -> tuple[float, ...] | None:
    """Return the losses of several runs where the cheapest ends, from (FLOPs by step, validation curve) of each.

    The loss of a more expensive run is interpolated between its evaluations. None where the runs cost the same.
    """
    ends = [flops[curve[-1][0]] for flops, curve in runs]
    if max(ends) - min(ends) <= EQUAL_WITHIN * min(ends):
        return None
    return tuple(
        float(np.interp(min(ends), [flops[step] for step, _ in curve], [loss for _, loss in curve]))
        for flops, curve in runs
    )
