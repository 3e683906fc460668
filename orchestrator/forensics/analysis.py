"""One checkpoint, read from end to end: measures, roles, pathology, totals."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from orchestrator.checkpoint import load_decoder
from orchestrator.errors import UserError, nearest
from orchestrator.forensics.anatomy import KINDS, Anatomy
from orchestrator.forensics.measures import Value, measure
from orchestrator.forensics.pathology import findings
from orchestrator.forensics.probe import probe
from orchestrator.forensics.reading import Stack
from orchestrator.forensics.roles import FEATURES, SCORINGS

SCHEMA = 1
DEFINITIONS = 1  # version of SCIENCE's definitions
REFERENCE = "step_00000000"
TOTALS = (
    "saturated", "saturated_expected", "saturated_robust", "saturated_robust_expected",
    "saturated_fixed", "saturated_fixed_expected",
)  # fmt: skip


def analyze(
    source: str | Path,
    *,
    reference: str | Path | None = None,
    scoring: str = "paper",
    resamples: int = 10,
    seed: int = 0,
    tokens: torch.Tensor | Sequence[Sequence[int]] | None = None,
) -> dict[str, Any]:
    """The forensics of a checkpoint as plain JSON values (DESIGN, "The run directory"), never NaN.

    `reference`: the checkpoint whose thresholds `saturated_fixed` uses; by default the step 0 beside one of
    our own. `resamples`, `seed`: size and stream of the null (SCIENCE §3). `tokens` [B, T]: rows to run
    through one of our own; without them the measures that need activations are absent.
    Raises `UserError` for a source that cannot be read or an option that cannot work.
    """
    if scoring not in SCORINGS:
        known = ", ".join(SCORINGS)
        raise UserError(f"scoring={scoring} is unknown{nearest(scoring, SCORINGS)}: choose one of {known}.")
    if resamples < 1:
        raise UserError(f"resamples={resamples} leaves no null to compare with: use 1 or more (10 is the default).")
    anatomy = Anatomy(Path(source))
    reference = first_step(anatomy) if reference is None else Path(reference)
    stack = Stack(
        anatomy,
        reference=None if reference is None else Anatomy(reference),
        resamples=resamples,
        seed=seed,
        probe=None if tokens is None else _probe(anatomy, torch.as_tensor(tokens)),
    )
    rows = [measure(stack.reading(index)) for index in range(len(stack))]
    roles = SCORINGS[scoring](rows)
    by_paper = SCORINGS["paper"](rows)
    return {
        "schema": SCHEMA,
        "definitions": DEFINITIONS,
        "source": str(source),
        "family": anatomy.family_name,
        "step": anatomy.description.step,
        "scoring": scoring,
        "options": {
            "reference": None if reference is None else str(reference),
            "resamples": resamples,
            "seed": seed,
            "probed": tokens is not None,
        },
        "missing": missing(rows),
        "substitutes": _substitutes(anatomy),
        "layers": [
            {
                "layer": layer.index,
                **asdict(roles[layer.index]),
                "role_paper": by_paper[layer.index].role,
                "width": layer.width,
                "measures": rows[layer.index],
            }
            for layer in anatomy
        ],
        "totals": {key: _total([row[key] for row in rows]) for key in TOTALS},
        "pathology": [
            asdict(finding)
            for finding in findings(rows, [{kind: layer.name(kind) for kind in KINDS} for layer in anatomy])
        ],
    }


def missing(rows: Sequence[dict[str, Value]]) -> list[str]:
    """Measures and routed features that no layer has; `momentum_alignment.down` and its kin are one name."""
    present = {key for row in rows for key, value in row.items() if value is not None}
    absent = [key for key in (*rows[0], *FEATURES) if key not in present]
    return sorted({key.split(".")[0] for key in absent} - {key.split(".")[0] for key in present})


def _total(values: Sequence[Value]) -> Value:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def first_step(anatomy: Anatomy) -> Path | None:
    """Step 0 of the run that one of our own checkpoints belongs to, where it is still there."""
    directory = anatomy.directory if anatomy.directory.name else anatomy.directory.resolve()
    if anatomy.description.step is None or not re.fullmatch(r"step_\d+", directory.name):
        return None
    reference = directory.with_name(REFERENCE)
    return reference if reference.is_dir() else None


def _substitutes(anatomy: Anatomy) -> dict[str, str]:
    """Measures that read something else than their definition's first choice, and what."""
    return (
        {}
        if "post_ffn" in anatomy.family.norms
        else {"gamma_concentration": "the FFN's pre-norm: there is no post-norm"}
    )


def _probe(anatomy: Anatomy, tokens: torch.Tensor) -> list[dict[str, float]]:
    spec = anatomy.description.spec
    if spec is None:
        raise UserError(f"{anatomy.directory} is not one of our checkpoints, and only those can be run on tokens.")
    if tokens.ndim != 2 or not tokens.numel() or tokens.is_floating_point():
        raise UserError(
            f"tokens of shape {tuple(tokens.shape)} and type {tokens.dtype} cannot be run: "
            "give integers, [rows, length]."
        )
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= spec["vocab_size"]:
        raise UserError(
            f"tokens range over {low}…{high}, outside the vocabulary of {spec['vocab_size']}: "
            "use the run's own tokenizer."
        )
    return probe(load_decoder(anatomy.directory), tokens.long())
