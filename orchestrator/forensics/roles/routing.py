"""The roles, the features that vote for each, and the vote (SCIENCE §2)."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Annotated

from orchestrator.common.shapes import Kind

# Role → feature → sign of its vote. A feature that a checkpoint lacks does not vote.
ROUTING: dict[str, dict[str, int]] = {
    "hub": {
        "effective_rank.o_fraction": +1,
        "balance": +1,
        "head_evenness": +1,
        "coupling": +1,
        "sink_mean": +1,
        "synapse_mediator": +1,
    },
    "damper": {
        "down_ratio": +1,
        "stuck_fraction": +1,
        "post_norm_damped_fraction": +1,
        "gamma_concentration": +1,
        "depletion_fraction": +1,
        "momentum_alignment.down": -1,
        "effective_rank.down_fraction": -1,
        "source_mean": -1,
    },
    "passthrough": {
        "adjacent_alignment": +1,
        "cv": -1,
        "saturated_robust_fraction": -1,
        "total_write": -1,
    },
    "specialist": {
        "cv": +1,
        "saturated_robust_fraction": +1,
        "head_diversity": +1,
        "unique_roles": +1,
        "ffn_cluster_entropy": +1,
        "copy_density": +1,
        "super_weight_ratio": +1,
    },
}
ROLES = tuple(ROUTING)
# Role → features that have no vote for it in the calibrated scoring.
UNHEARD = {
    "passthrough": ("cv", "saturated_robust_fraction"),  # stand-ins for what the stream shows: of no use beside it
    "specialist": ("ffn_cluster_entropy",),  # it jumps where a cluster appears; `unique_roles` speaks for the clusters
}
CALIBRATED = {
    role: {feature: sign for feature, sign in routes.items() if feature not in UNHEARD.get(role, ())}
    for role, routes in ROUTING.items()
}
TIES = tuple("/".join(sorted(two)) for two in combinations(ROLES, 2))
NONE = "none"  # no role has evidence for it
TIE = "tie"  # of any two
STATES = (*ROLES, TIE, NONE)
RoleName = Annotated[str, Kind("a role, a tie of two or 'none'", (*ROLES, *TIES, NONE).__contains__)]
FEATURES = tuple(dict.fromkeys(feature for routes in ROUTING.values() for feature in routes))

# Role → the matrix that writes for the branch that the role is about; a layer that lacks it cannot have the role.
ABOUT = {"hub": "o", "damper": "down", "specialist": "down"}

MARGIN = 0.05  # a lead that is not larger is a tie
NEUTRAL = 0.5  # a score without evidence
EVIDENCE = 3  # features listed per layer


def state(role: RoleName) -> str:
    """The one of `STATES` that a role is: all ties are one."""
    return TIE if "/" in role else role


@dataclass(frozen=True)
class Role:
    """The role of one layer, and the evidence."""

    role: RoleName  # the leader, the two leaders of a tie in alphabetical order, or none
    margin: float  # lead of the first score over the second
    scores: dict[str, float | None]  # 0…1; None for a role without any available feature
    evidence: list[str]  # features with the largest votes for the leader, with their routed sign: "+cv", "-source_mean"
    coverage: float  # routed features available in this layer over all routed features


def decide(
    z: Mapping[str, float],
    routing: Mapping[str, Mapping[str, int]] = ROUTING,
    above: float = 0.0,
    able: Collection[str] = ROLES,
    silent: Collection[str] = (),
) -> Role:
    """The role of one layer from its z-scores, feature → z; none unless the leader's score is larger than `above`.

    `able`: the roles that the layer can have, by the branches that it has. A role alone leads over 0.5, which is no
    evidence. `silent`: features that count as 0 where z lacks them, so that their absence adds to no role.
    """
    scores: dict[str, float | None] = {}
    for role, routes in routing.items():
        votes = [sign * z[feature] for feature, sign in routes.items() if feature in z and role in able]
        voters = len(votes) + sum(feature not in z for feature in routes if feature in silent)
        scores[role] = 1 / (1 + math.exp(-sum(votes) / voters)) if votes else None
    ranked = sorted(((score, role) for role, score in scores.items() if score is not None), key=lambda s: (-s[0], s[1]))
    routed = {feature for routes in routing.values() for feature in routes}
    coverage = sum(feature in z for feature in routed) / len(routed)
    if not ranked:
        return Role(NONE, 0.0, scores, [], coverage)
    (first, leader), (second, runner_up), *_ = [*ranked, (NEUTRAL, "")]
    name = leader if first - second > MARGIN else "/".join(sorted((leader, runner_up)))
    name = name if first > above and (runner_up or first > NEUTRAL + MARGIN) else NONE
    return Role(name, max(0.0, first - second), scores, _evidence(routing[leader], z), coverage)


def _evidence(routes: Mapping[str, int], z: Mapping[str, float]) -> list[str]:
    """The features with the largest positive contributions to a role of these `routes`, strongest first."""
    votes = sorted(((sign * z[feature], feature) for feature, sign in routes.items() if feature in z), reverse=True)
    return [("+" if routes[feature] > 0 else "-") + feature for vote, feature in votes[:EVIDENCE] if vote > 0]
