"""What the measures read: a layer with the quantities that several of them share, inside its stack."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, cached_property

import numpy as np

from orchestrator.errors import UserError
from orchestrator.forensics.anatomy import KINDS, Anatomy, Layer
from orchestrator.forensics.saturation import co_magnitude, literal_threshold, resampled
from orchestrator.forensics.spectrum import singular_values


class Stack:
    """All layers of a checkpoint, and what a layer can only be measured against: peers, reference, probe."""

    def __init__(
        self,
        anatomy: Anatomy,
        *,
        reference: Anatomy | None = None,
        resamples: int = 10,
        seed: int = 0,
        probe: Sequence[dict[str, float]] | None = None,
    ) -> None:
        """`probe`: one dict of activation measures per layer (`probe.probe`), or None without activations."""
        if reference is not None and len(reference) != len(anatomy):
            raise UserError(
                f"{reference.directory} has {len(reference)} layers, {anatomy.directory} has {len(anatomy)}: "
                "the reference must be a checkpoint of the same run."
            )
        self.anatomy = anatomy
        self.reference = reference
        self.resamples = resamples
        self.seed = seed
        self.probe = probe

    def __len__(self) -> int:
        return len(self.anatomy)

    def reading(self, index: int) -> Reading:
        """Layer `index`, ready to be measured. Drop it before the next to hold one layer in memory."""
        return Reading(Layer(self.anatomy, index), self)

    @cached_property
    def median_gamma(self) -> float | None:
        """Median |γ| of the FFN post-norms of all layers; None where blocks have none."""
        scales = [gamma for layer in self.anatomy if (gamma := layer.norm("post_ffn")) is not None]
        return float(np.median(np.abs(np.concatenate(scales)))) if scales else None

    @cached_property
    def moment_medians(self) -> dict[str, tuple[float, float]] | None:
        """Kind → (median |exp_avg|, median √exp_avg_sq) over all layers.

        None without moments, or where a kind has not been updated yet. Read kind by kind, so that one kind of
        the stack is in memory at once, in the file's own fp32.
        """
        medians = {}
        for kind in KINDS:
            first = self._pooled(kind, "exp_avg", np.abs)
            second = self._pooled(kind, "exp_avg_sq", np.sqrt)
            if first is None or second is None or not second.any():
                return None
            medians[kind] = (float(np.median(first)), float(np.median(second)))
        return medians

    def _pooled(self, kind: str, which: str, transform: np.ufunc) -> np.ndarray | None:
        pooled = []
        for layer in self.anatomy:
            moment = layer.moment(kind, which)
            if moment is None:
                return None
            pooled.append(transform(moment).astype(np.float32).ravel())
        return np.concatenate(pooled)


class Reading:
    """One layer under measurement. Shared quantities are computed once, on first use."""

    def __init__(self, layer: Layer, stack: Stack) -> None:
        self.layer, self.stack, self.index = layer, stack, layer.index
        self.spectrum = cache(lambda kind: singular_values(layer.weight(kind)))  # kind → σ ascending [min(m, n)]
        self.energy = cache(lambda kind: float(np.square(layer.weight(kind)).sum()))  # kind → Σ of squared entries

    @cached_property
    def co_magnitude(self) -> np.ndarray:
        """SCIENCE §1 `co_magnitude`: [f]."""
        return co_magnitude(self.layer.weight("gate"), self.layer.weight("up"))

    @cached_property
    def resampled_co_magnitudes(self) -> list[np.ndarray]:
        """The same of the layer with its entries redrawn (SCIENCE §3): `resamples` arrays [f]."""
        gate, up = self.layer.weight("gate"), self.layer.weight("up")
        return list(resampled(gate, up, self.stack.resamples, (self.stack.seed, self.index)))

    @cached_property
    def fixed_threshold(self) -> float | None:
        """T_l: mean + 3·std of the reference checkpoint's same layer's co-magnitude; None without one."""
        if self.stack.reference is None:
            return None
        layer = Layer(self.stack.reference, self.index)
        return literal_threshold(co_magnitude(layer.weight("gate"), layer.weight("up")))
