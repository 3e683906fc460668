"""The predictors that the study compares, and the groups of models in which it compares them."""

from __future__ import annotations

from itertools import product

import pandas as pd

from orchestrator.forensics.architecture.kinds import KINDS
from orchestrator.forensics.measures.table import MEASURES
from orchestrator.forensics.roles.routing import ROLES
from orchestrator.forensics.roles.scoring import SCORINGS
from tests.studies.prediction.correlation import of_group
from tests.studies.prediction.tables import TARGETS

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
OTHER = "damage on other text"  # of half of a model's domains, with that on the others
# Measures that say how a checkpoint was made, or what chance gives, or that only some models have.
LEFT_OUT = ("_chance", "_expected", "momentum", "gradient", "stuck", "copy_density", "sink_mass", "_fixed")
MEASURED = {pattern.replace("*", kind) for pattern in MEASURES for kind in KINDS}


def correlations(layers: pd.DataFrame) -> pd.DataFrame:
    """One row per target, predictor and group: ρ at the last step, raw and with depth partialled out."""
    last = newest(layers)
    rows = []
    for target in TARGETS:
        named = SCORES | BASELINES | {OWN: f"own.{target}"} | {name: name for name in measures(layers)}
        named |= {OTHER: f"damage.{target}.a"}
        for (name, column), (group, of) in product(named.items(), last.groupby("group")):
            outcome = f"damage.{target}.b" if name == OTHER else f"damage.{target}"
            raw, partial = (of_group(of, column, outcome, controls) for controls in ((), ("depth",)))
            rows.append(
                {"target": target, "predictor": name, "group": group, "models": raw.models, "defined": raw.defined}
                | {"raw": raw.value, "raw_low": raw.low, "raw_high": raw.high}
                | {"partial": partial.value, "partial_low": partial.low, "partial_high": partial.high}
            )
    return pd.DataFrame(rows).round(4)


def newest(layers: pd.DataFrame) -> pd.DataFrame:
    """The rows of every run's last step."""
    last = layers.groupby("run")["step"].transform("max")
    return layers[layers["step"].isna() | (layers["step"] == last)]


def measures(layers: pd.DataFrame) -> list[str]:
    """The measures of the weights alone that every group of the fit has."""
    of_fit = layers[layers["group"] != APART]
    return [
        name
        for name in layers.columns
        if name in MEASURED
        and not any(part in name for part in LEFT_OUT)
        and all(group[name].notna().mean() > 0.9 and group[name].nunique() > 1 for _, group in of_fit.groupby("group"))
    ]
