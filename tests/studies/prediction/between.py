"""Between runs: do those of equal loss and other roles differ in what deletion, extension and fine-tuning do?

Every pair of runs of a group has a distance in roles, in loss, and in each response. Mantel's test asks whether the
first and the last go together, the distance in loss partialled out, against the runs of each arm dealt at random.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import rankdata, wasserstein_distance

from orchestrator.forensics.roles.routing import ROLES
from tests.studies.prediction.correlation import spearman
from tests.studies.prediction.markdown import signed

PERMUTATIONS = 9_999
EXPERIMENTS = {"tiny": "width_study", "nano": "decay_ablation"}
TUNED = "tuning"  # of `tiny`: arm `<arm>_<seed>` went on from that run, on other text
EQUAL = 0.0025  # of the loss: SCIENCE §8's margin


def mantel(x: np.ndarray, y: np.ndarray, control: np.ndarray, arms: Sequence[str]) -> tuple[float, float]:
    """Spearman's ρ of the distances x and y [N, N], `control`'s partialled out, and its two-sided p.

    p: over permutations of the runs of x within each of `arms` [N], which keep its distances together (Mantel 1967;
    Smouse et al. 1986).
    """
    of_arms = [np.flatnonzero(np.array(arms) == arm) for arm in dict.fromkeys(arms)]
    above = np.triu_indices(len(x), 1)
    draw = np.random.default_rng(0)

    def rho(order: np.ndarray) -> float:
        return spearman(x[np.ix_(order, order)][above], y[above], [control[above]])

    found = rho(np.arange(len(x)))
    others = []
    for _ in range(PERMUTATIONS):
        order = np.arange(len(x))
        for of_arm in of_arms:
            order[of_arm] = draw.permutation(of_arm)
        others.append(abs(rho(order)))
    return found, float((1 + np.sum(np.array(others) >= abs(found) - 1e-12)) / (1 + PERMUTATIONS))


def apart(values: np.ndarray) -> np.ndarray:
    """`|v_i − v_j|` [N, N]."""
    return np.abs(values[:, None] - values[None, :])


def by_scores(runs: list[pd.DataFrame]) -> np.ndarray:
    """Mean over layers of the Euclidean distance of the four role scores (the paper's) [N, N]."""
    scores = np.array([run[[f"paper.{role}" for role in ROLES]].to_numpy(float) for run in runs])
    return np.asarray(np.linalg.norm(scores[:, None] - scores[None, :], axis=-1).mean(-1))


def by_budget(runs: list[pd.DataFrame]) -> np.ndarray:
    """Wasserstein-1 distance of the saturated budgets along depth [N, N] (SCIENCE §4)."""
    found = np.zeros((len(runs), len(runs)))
    for i, j in zip(*np.triu_indices(len(runs), 1), strict=True):
        a, b = (runs[at]["saturated_robust"].to_numpy(float) for at in (i, j))
        found[i, j] = found[j, i] = wasserstein_distance(runs[i]["depth"], runs[j]["depth"], a, b)
    return found


def by_profile(runs: list[pd.DataFrame]) -> np.ndarray:
    """One minus Spearman's ρ of the damage of deletions over the layers [N, N]."""
    ranks = np.array([rankdata(run["damage.layer"].to_numpy(float)) for run in runs])
    return np.asarray(1 - np.corrcoef(ranks))


def last(log: Path, key: str) -> float:
    """Mean over domains of the last record's `test` or `heldout` loss, nats per token."""
    records = [json.loads(line) for line in log.read_text().splitlines()]
    (*_, losses) = (record[key] for record in records if record.get(key))
    return float(np.mean(list(losses.values())))


def told(rho: float, p: float) -> str:
    """`+.28 (p = .042)`."""
    return f"{signed(rho)} (p = {p:.3f})".replace("= 0.", "= .")


def lines(layers: pd.DataFrame, outputs: Path) -> Iterator[str]:
    """The table as Markdown; `layers` are those of each run's last step."""
    yield (
        "\n## Between runs\n\nDistances of all pairs of runs, ρ (p by Mantel's test), the distance in loss partialled "
        f"out. *Equal*: pairs whose losses differ by at most {EQUAL:.2%}.\n"
    )
    yield f"| group | runs | equal | response | with distance of role scores | of budgets |\n{'|---' * 6}|"
    for group, experiment in EXPERIMENTS.items():
        names, runs = zip(*layers[layers["group"] == group].groupby("run"), strict=True)
        loss = np.array([last(outputs / experiment / name / "metrics.jsonl", "test") for name in names])
        responses = {
            "deletion: mean damage": apart(np.array([run["damage.layer"].mean() for run in runs])),
            "deletion: which layers": by_profile(list(runs)),
            "extension: mean damage of a repeat": apart(np.array([run["damage.repeat"].mean() for run in runs])),
        }
        if group == "tiny":
            tuned = [outputs / TUNED / name.replace("/seed=", "_") / "seed=0/metrics.jsonl" for name in names]
            responses["fine-tuning: loss after it"] = apart(np.array([last(log, "test") for log in tuned]))
        pairs, arms = np.triu_indices(len(runs), 1), [name.split("/")[0] for name in names]
        equal = int((apart(loss)[pairs] <= EQUAL * loss.mean()).sum())
        for response, distance in responses.items():
            cells = [told(*mantel(roles(list(runs)), distance, apart(loss), arms)) for roles in (by_scores, by_budget)]
            yield f"| {group} | {len(runs)} | {equal} of {len(pairs[0])} | {response} | {' | '.join(cells)} |"
