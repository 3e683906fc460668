"""Layer-wise learning rates: a factor for every parameter, by a formula of depth and kind (SCIENCE §6)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from sidecar.channels.decay import embedding_weights
from sidecar.coefficients import log_multipliers, moves
from sidecar.units import make_units, place_of


def lr_factors(coefficients: Mapping[str, float], model: nn.Module) -> dict[str, float]:
    """Parameter → `exp(Σ_k c_k·φ_k)`, the factor of its learning rate; empty without coefficients.

    The terms are those of `coefficients.TERMS`, and kinds of parameters, vectors too. Raises `ValueError` for an
    unknown term, one of time, and a coefficient that is no number.
    """
    if not coefficients:
        return {}
    if moving := [term for term in coefficients if moves(term)]:
        raise ValueError(f"the term {moving[0]} depends on time, and a layer's factor is constant: leave it out.")
    embeddings, rows = embedding_weights(model), []
    for name, parameter in model.named_parameters():
        is_matrix = parameter.ndim >= 2
        kind, layer = place_of(name, name in embeddings)
        if layer is None and not is_matrix:
            kind = name  # the final norm is no head
        rows.append((name, kind, layer, parameter.numel(), parameter.shape[1] if is_matrix else 0))
    units = make_units(rows)
    factors = log_multipliers(coefficients, units, 0.0).exp().tolist()
    return {unit.name: factor for unit, factor in zip(units, factors, strict=True)}
