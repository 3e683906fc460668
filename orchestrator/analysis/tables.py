"""Build the tables of an experiment, with the same name and columns in parquet, CSV and W&B.

Add one as a function, its columns in `COLUMNS` and a line in `BUILDERS`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from orchestrator.analysis.cells import CellResult
from orchestrator.analysis.conservation import conservation
from orchestrator.analysis.contrasts import Contrast, contrast_rows
from orchestrator.analysis.damage import damage_rows
from orchestrator.analysis.flattening import flattening
from orchestrator.analysis.migration import role_migration
from orchestrator.analysis.multipliers import THIRDS, sidecar_rows
from orchestrator.analysis.pairs import Pair, domains_of, pair_losses
from orchestrator.analysis.trajectory import ArmTrajectory, coincidence_rows, curve_rows
from orchestrator.forensics.roles.routing import ROLES
from orchestrator.storage.files import write_whole

Rows = list[dict[str, Any]]
Build = Callable[[list[CellResult], list[Pair]], Rows]

# In `layers` every measure follows. Tables without `arm` begin with it where several arms are compared.
COLUMNS = {
    "layers": ["arm", "seed", "step", "layer", "role", "margin",
               *(f"score_{role}" for role in ROLES)],
    "role_migration": ["arm", "seed", "step_from", "step", "layer",
                       "role_from", "role_to", "margin_from", "margin_to", "changed"],
    "conservation": ["arm", "seed", "step", "reference", "budget", "expected", "excess",
                     "early", "middle", "late", "centre"],
    "flattening": ["seed", "step", "layer", "cv_a", "cv_b", "flattening", "saturated_a", "saturated_b",
                   "max_abs_a", "max_abs_b", "effective_rank_o_a", "effective_rank_o_b", "attention_share_a",
                   "attention_share_b"],
    "trajectory": ["arm", "seed", "scoring", "kind", "step", "layers", "held", "by_chance", "change"],
    "loss_drops": ["arm", "event", "scoring", "domain", "intervals", "drops", "events", "together", "expected", "p",
                   "smallest_p"],
    "damage": ["arm", "seed", "step", "layer", "role", "edit", "domain", "rise", "low", "high", "kl"],
    "paired_eval": ["metric", "domain", "seed", "a", "b", "delta"],
    "contrasts": ["contrast", "metric", "seed", "value"],
    "sidecar": ["arm", "seed", "channel", "layer", "kind", "unit", "mean", *THIRDS],
}  # fmt: skip
TEXT = {
    "arm",
    "role",
    "role_from",
    "role_to",
    "reference",
    "contrast",
    "metric",
    "domain",
    "channel",
    "kind",
    "unit",
    "edit",
    "scoring",
    "event",
}
OUTSIDE = {"sidecar": ("layer",)}  # table → integer columns that are null for what lies outside the layers
INTEGER = {"seed", "step", "step_from", "layer", "layers", "intervals", "drops", "events", "together"}


def layer_rows(cell: CellResult) -> Rows:
    """Return a row per reading and layer of a cell."""
    return [
        {
            "arm": cell.arm, "seed": cell.seed, "step": step, "layer": layer.layer, "role": layer.role,
            "margin": layer.margin, **{f"score_{role}": score for role, score in layer.scores.items()},
            **layer.measures,
        }
        for step, reading in cell.readings.items()
        for layer in reading.layers
    ]  # fmt: skip


def paired_eval_rows(cells: list[CellResult], pairs: list[Pair]) -> Rows:
    """Return a row per metric, domain and complete pair; losses in nats/token, delta = b − a."""
    return [
        {"arm": pair.arm, "metric": metric, "domain": domain, "seed": pair.seed, "a": x, "b": y, "delta": y - x}
        for domains in [domains_of(cells)]
        for pair in pairs
        for (metric, domain), (x, y) in pair_losses(pair, domains).items()
    ]


def _per_cell(rows: Callable[[CellResult], Rows]) -> Build:
    return lambda cells, _: [row for cell in cells for row in rows(cell)]


BUILDERS: dict[str, Build] = {
    "layers": _per_cell(layer_rows),
    "role_migration": _per_cell(role_migration),
    "conservation": _per_cell(conservation),
    "flattening": lambda _, pairs: [row for pair in pairs for row in flattening(pair)],
    "damage": _per_cell(damage_rows),
    "paired_eval": paired_eval_rows,
    "sidecar": _per_cell(sidecar_rows),
}


def build(
    cells: list[CellResult], pairs: list[Pair], contrasts: list[Contrast], trajectories: list[ArmTrajectory]
) -> dict[str, pd.DataFrame]:
    """Build every table by name. Per-cell tables hold every cell that was read, paired tables complete pairs only."""
    several = len({pair.arm for pair in pairs}) > 1
    tables = {name: frame(name, rows(cells, pairs), several=several) for name, rows in BUILDERS.items()}
    computed = {
        "contrasts": contrast_rows(contrasts),
        "trajectory": curve_rows(trajectories),
        "loss_drops": coincidence_rows(trajectories),
    }
    return tables | {name: frame(name, rows) for name, rows in computed.items()}


def frame(name: str, rows: Rows, *, several: bool = False) -> pd.DataFrame:
    """Return the rows as a table with the columns and types of `name`, even without rows."""
    columns = list(COLUMNS[name])
    if several and "arm" not in columns:
        columns.insert(0, "arm")
    if name == "layers":
        columns += sorted({key for row in rows for key in row} - set(columns))
    table = pd.DataFrame(rows, columns=columns)
    types = {
        c: "string" if c in TEXT else "int64" if c in INTEGER else "bool" if c == "changed" else "float64"
        for c in columns
    }
    return table.astype(types | dict.fromkeys(OUTSIDE.get(name, ()), "Int64"))


def write(tables: dict[str, pd.DataFrame], directory: Path) -> None:
    """Write each table as `<name>.parquet` and `<name>.csv`. Raises `UserError` or `OSError` where the disk refuses."""
    for name, table in tables.items():
        write_whole(directory / f"{name}.csv", table.to_csv(index=False))
        partial = directory / f".{name}.parquet.partial"
        table.to_parquet(partial, index=False)
        partial.replace(directory / f"{name}.parquet")
