"""The predictors that the study compares, and the groups of models in which it compares them."""

from __future__ import annotations

import pandas as pd

from orchestrator.forensics.roles.routing import ROLES
from orchestrator.forensics.roles.scoring import SCORINGS

GROUPS = ("smollm2", "small", "tiny", "nano")  # folds: each is predicted from the others
APART = "minilm"  # six layers: shown, not pooled
SCORES = {f"{role} ({scoring})": f"{scoring}.{role}" for scoring in sorted(SCORINGS) for role in ROLES}
PROBED = {"relative write (probed)": "probe.relative_write", "Block Influence (probed)": "probe.block_influence"}
BASELINES = {
    "depth": "depth",
    "distance to the nearer end": "edge",
    "width": "width",
    "parameter norm": "parameter_norm",
    "WeightWatcher's α": "alpha",
    "stable rank of o": "stable_rank.o",
    "stable rank of k": "stable_rank.k",
    "saturated positions (mean + 3 std)": "saturated",
    "relative write (random tokens)": "total_write",
} | PROBED
OWN = "the same edit, on the model's own samples"
# Measures that say how a checkpoint was made, or what chance gives, or that only some models have.
LEFT_OUT = ("_chance", "_expected", "momentum", "gradient", "stuck", "copy_density", "sink_mass", "_fixed")


def newest(layers: pd.DataFrame) -> pd.DataFrame:
    """The rows of every run's last step."""
    last = layers.groupby("run")["step"].transform("max")
    return layers[layers["step"].isna() | (layers["step"] == last)]


def measures(layers: pd.DataFrame) -> list[str]:
    """The measures of the weights alone that every group of the fit has."""
    first = list(layers.columns).index("calibrated.specialist") + 1
    last = list(layers.columns).index("own.layer")
    of_fit = layers[layers["group"] != APART]
    return [
        name
        for name in layers.columns[first:last]
        if not any(part in name for part in LEFT_OUT)
        and all(group[name].notna().mean() > 0.9 and group[name].nunique() > 1 for _, group in of_fit.groupby("group"))
    ]
