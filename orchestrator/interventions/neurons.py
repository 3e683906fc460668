"""FFN positions as memories: the key is what opens a position, the value is what it then writes (Geva et al. 2021)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from orchestrator.interventions.attribution import BranchShare
from orchestrator.interventions.readout import Readout
from orchestrator.interventions.writes import Branch

PROMOTED = 6  # tokens of a position that are kept


@dataclass(frozen=True)
class Neuron:
    """An FFN position of one layer at a text.

    `why`: "saturated", far louder than its peers in its weights (SCIENCE §1, `saturated_robust`); "active", it writes
    most at this text; "answer", it adds most to the answer's logit.
    """

    position: int
    why: list[str]
    activations: Tensor  # at each of the text's tokens [T]
    opened_by: int  # place of the token where it is largest, in magnitude
    logit: float | None  # what it adds to the answer's logit, at the last position
    promoted: Tensor | None  # tokens whose logits it raises most where it opens, most first, int64 [PROMOTED]


def neurons(
    ffn: Branch, share: BranchShare | None, readout: Readout | None, sets: Mapping[str, np.ndarray], few: int
) -> list[Neuron]:
    """At most `few` positions for each reason: the saturated ones, the loudest first, then the others.

    `sets`: the layer's positions as `calibration.ffn_positions` has them. Empty where the FFN's positions are not
    told, as in a mixture of experts.
    """
    if ffn.inner is None or ffn.output is None:
        return []
    chosen = _chosen(ffn, share, sets, few)
    places = torch.tensor(list(chosen), device=ffn.inner.device)
    of_chosen = ffn.inner[:, places]  # [T, n]
    opened_by = of_chosen.abs().argmax(0)  # [n]
    signs = of_chosen.gather(0, opened_by[None])[0].sign()
    promoted = None if readout is None else _promoted(ffn, readout, places, signs)
    return [
        Neuron(
            position=position,
            why=why,
            activations=of_chosen[:, place],
            opened_by=int(opened_by[place]),
            logit=None if share is None or share.inner is None else float(share.inner[position]),
            promoted=None if promoted is None else promoted[place],
        )
        for place, (position, why) in enumerate(chosen.items())
    ]


def _chosen(ffn: Branch, share: BranchShare | None, sets: Mapping[str, np.ndarray], few: int) -> dict[int, list[str]]:
    """Position → why, in the order of the reasons."""
    assert ffn.inner is not None
    assert ffn.output is not None
    loudness = ffn.inner.double().abs().amax(0) * ffn.output.lengths  # [f]
    reasons: dict[str, Sequence[int]] = {
        "saturated": [int(p) for p in sets.get("saturated", [])[:few]],
        "active": loudness.topk(min(few, len(loudness))).indices.tolist(),
    }
    if share is not None and share.inner is not None:
        reasons["answer"] = share.inner.topk(min(few, len(share.inner))).indices.tolist()
    chosen: dict[int, list[str]] = {}
    for why, positions in reasons.items():
        for position in positions:
            chosen.setdefault(position, []).append(why)
    return chosen


def _promoted(ffn: Branch, readout: Readout, places: Tensor, signs: Tensor) -> Tensor:
    """The tokens that the positions raise most [n, PROMOTED], with the sign that each has where it opens."""
    assert ffn.inner is not None
    assert ffn.output is not None
    alone = torch.zeros(len(places), ffn.inner.shape[-1], dtype=ffn.inner.dtype, device=places.device)
    alone[torch.arange(len(places)), places] = torch.where(signs == 0, 1, signs).to(alone.dtype)
    raised = readout.promoted(ffn.output.writes(alone))  # [n, V]
    return raised.topk(min(PROMOTED, raised.shape[-1])).indices
