"""The numbers of one reading, as loggers take them: name → value."""

from __future__ import annotations

from collections import Counter

from orchestrator.forensics.reading import COUNTS, Reading, centre, profile, roles_of
from orchestrator.forensics.roles.routing import STATES, state

PER_LAYER = ("cv", "saturated_robust", "effective_rank.o", "attention_share", "momentum_alignment.down")
STEP = "forensics/step"  # the axis of readings


def reading_row(reading: Reading) -> dict[str, float]:
    """Role counts, budgets and their centres, each layer's scores and main measures; without those that are absent.

    Names begin with `forensics/` and hold no dot, which W&B would read as nesting.
    """
    row: dict[str, float | None] = {f"roles/{role}": count for role, count in role_counts(reading).items()}
    row |= reading.totals
    row |= {f"centre/{name}": centre(budget) for name in COUNTS if (budget := profile(reading, name)) is not None}
    row["pathology"] = len(reading.pathology)
    for layer in reading.layers:
        values = {f"score_{role}": score for role, score in layer.scores.items()} | {"margin": layer.margin}
        values |= {name: layer.measures.get(name) for name in PER_LAYER}
        row |= {f"{name}/layer_{layer.layer:02d}": value for name, value in values.items()}
    return {f"forensics/{name.replace('.', '_')}": value for name, value in row.items() if value is not None}


def role_counts(reading: Reading) -> dict[str, int]:
    """Role → number of layers, of every role; ties count as `tie`, layers without a role as `none`."""
    counts = Counter(map(state, roles_of(reading)))
    return {name: counts[name] for name in STATES}
