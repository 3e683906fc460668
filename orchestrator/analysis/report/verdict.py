"""Collect every result of a comparison as plain JSON values."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from orchestrator.analysis.comparison import Comparison
from orchestrator.analysis.findings import findings
from orchestrator.analysis.multipliers import agreement
from orchestrator.forensics.reading import roles_of


def verdict(c: Comparison) -> dict[str, Any]:
    """Return the content of `verdict.json`; null means not known."""
    e = c.experiment
    return {
        "schema": 2,
        "name": e.name,
        "question": e.question,
        "arms": e.arms,
        "parameters": e.parameters,
        "seeds": e.seeds,
        "findings": [asdict(finding) for arm in c.compared for finding in findings(c, arm)],
        "pairs": [{"arm": pair.arm, "seed": pair.seed} for pair in c.pairs],
        "incomplete": [asdict(pair) for pair in c.left_out],
        "cells": {cell.label: cell.missing or "complete" for cell in e.cells},
        "costs": {cell: asdict(cost) for cell, cost in e.costs.items()} | {"search": asdict(e.search_cost)},
        "trials": [asdict(trial) for trial in e.trials],
        "losses": [asdict(result) for result in c.statistics],
        "contrasts": [asdict(result) for result in c.contrasts],
        "expectations": [asdict(result) for result in c.expectations],
        "sidecar": {
            arm: {
                channel: {"units": len(a.units), "agreeing": a.agreeing, "by_chance": a.by_chance, "seeds": a.seeds}
                for channel, a in agreement(c.cells_of(arm)).items()
            }
            for arm in e.arms
        },
        "symmetry": [asdict(result) for result in c.symmetry],
        "write_symmetry": [asdict(result) for result in c.write_symmetry],
        "conservation": [asdict(result) for result in c.conservation],
        "transitions": [asdict(result) for result in c.transitions],
        "role_shifts": [asdict(result) for result in c.role_shifts],
        "trajectories": {
            of_arm.arm: {
                "commitments": [asdict(result) for result in of_arm.commitments],
                "coincidences": [asdict(result) for result in of_arm.coincidences],
            }
            for of_arm in c.trajectories
        },
        "roles": {
            arm: {
                str(cell.seed): {"step": reading.step, "roles": roles_of(reading)}
                for cell in e.cells
                if cell.arm == arm and (reading := cell.last_reading) is not None
            }
            for arm in e.arms
        },
        "notes": c.notes,
    }
