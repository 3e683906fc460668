"""Features of units, the input of the policy: one function and one line in `FEATURES` each (SCIENCE §6)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sidecar.sharded import gather
from sidecar.units import Unit


@dataclass(frozen=True)
class Observation:
    """The state of training that features are computed from."""

    units: Sequence[Unit]
    weights: Sequence[Sequence[Tensor]]  # the parameters of each unit
    momenta: Mapping[Tensor, Tensor]  # parameter → Adam's exp_avg, where the optimizer has one
    progress: float  # share of the run that is over


def depth(seen: Observation) -> Tensor:
    """0 at the first layer, 1 at the last."""
    return torch.tensor([[unit.depth] for unit in seen.units], dtype=torch.float64)


def kind(seen: Observation) -> Tensor:
    """One-hot: the kind of tensor, layer or branch."""
    return _one_hot([unit.kind for unit in seen.units])


def unit(seen: Observation) -> Tensor:
    """One-hot: the unit itself, which makes a linear policy a table."""
    return _one_hot([unit.name for unit in seen.units])


def log_norm(seen: Observation) -> Tensor:
    """ln of the Frobenius norm, standardised over units."""
    return _standardised([_norm(group).log() for group in seen.weights])


def momentum_alignment(seen: Observation) -> Tensor:
    """cos(−exp_avg, w) (SCIENCE §1), standardised over units; 0 without an optimizer that has momentum."""
    return _standardised([_alignment(group, seen.momenta) for group in seen.weights])


def row_cv(seen: Observation) -> Tensor:
    """Coefficient of variation of row norms, mean over the unit's matrices, standardised over units."""
    return _standardised([_spread(group) for group in seen.weights])


def progress(seen: Observation) -> Tensor:
    """Share of the run that is over."""
    return torch.full((len(seen.units), 1), seen.progress, dtype=torch.float64)


FEATURES: dict[str, Callable[[Observation], Tensor]] = {
    "depth": depth,
    "kind": kind,
    "unit": unit,
    "log_norm": log_norm,
    "momentum_alignment": momentum_alignment,
    "row_cv": row_cv,
    "progress": progress,
}


@torch.no_grad()
def features_of(names: Sequence[str], seen: Observation) -> Tensor:
    """[units, 1 + features], float64 on the CPU: a bias and the features in `names`."""
    bias = torch.ones(len(seen.units), 1, dtype=torch.float64)
    return torch.cat([bias, *(FEATURES[name](seen) for name in names)], dim=1)


def _one_hot(labels: Sequence[str]) -> Tensor:
    known = sorted(set(labels))
    return torch.tensor([[float(label == other) for other in known] for label in labels], dtype=torch.float64)


def _standardised(values: Sequence[Tensor]) -> Tensor:
    if values[0].is_meta:  # a model that has only shapes
        return torch.zeros(len(values), 1, dtype=torch.float64)
    column = torch.stack([value.float() for value in values]).double().cpu()
    column = torch.where(column.isfinite(), column, column[column.isfinite()].mean().nan_to_num())
    return ((column - column.mean()) / column.std(correction=0).clamp_min(1e-12))[:, None]


def _norm(group: Sequence[Tensor]) -> Tensor:
    return torch.stack([gather(t.detach().float().square().sum()) for t in group]).sum().sqrt()


def _alignment(group: Sequence[Tensor], momenta: Mapping[Tensor, Tensor]) -> Tensor:
    pairs = [(t.detach().float(), momenta[t].float()) for t in group if t in momenta]
    if not pairs:
        return torch.zeros((), device=group[0].device)
    inner = torch.stack([gather(-(t * m).sum()) for t, m in pairs]).sum()
    return inner / (_norm([t for t, _ in pairs]) * _norm([m for _, m in pairs])).clamp_min(1e-30)


def _spread(group: Sequence[Tensor]) -> Tensor:
    rows = [gather(t.detach().float().norm(dim=1)) for t in group if t.ndim == 2]
    if not rows:
        return torch.zeros((), device=group[0].device)
    return torch.stack([r.std(correction=0) / r.mean().clamp_min(1e-30) for r in rows]).mean()
