"""The statistics of a layer that the measures need, small enough to keep once its weights are freed."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from orchestrator.forensics.architecture.kinds import KINDS
from orchestrator.forensics.architecture.layout import Heads
from orchestrator.forensics.measures.clusters import Clusters, clusters
from orchestrator.forensics.measures.heads import couplings, matches_of
from orchestrator.forensics.measures.pathology import ratios
from orchestrator.forensics.measures.squares import Squares

MAD_TO_STD = 1.4826  # a Gaussian's standard deviation over its MAD


@dataclass
class LayerStatistics:
    """Statistics of one layer's weights, norms folded into what reads them. Arrays are float64, unless a comment says
    otherwise."""

    index: int
    width: int  # residual coordinates d
    heads: Heads | None
    names: dict[str, str]  # kind → tensor name
    shapes: dict[str, tuple[int, int]]  # kind → shape of its matrix
    energy: dict[str, float]  # kind → Σ of squared entries
    head_energy: dict[str, np.ndarray]  # q, k, v, o → Σ of squared entries per head, [heads] or [kv_heads]
    position_energy: dict[str, np.ndarray]  # gate, up, down → Σ of squared entries per FFN position, [f]
    squares: dict[str, Squares]  # gate, up, down → the law of its squared entries
    cosines: dict[tuple[str, str], np.ndarray]  # pair of gate, up, down → cos of each position's vectors, float32 [f]
    written: np.ndarray  # sqrt(Σ_p down[k, p]²·c_p²) of every residual coordinate k, [d]; [0] without an FFN
    loudest: tuple[int, int] | None  # the coordinate k of its maximum, and the position p that contributes most
    fingerprints: np.ndarray | None  # float32 [heads, 2·d]
    readers: np.ndarray | None  # what each head's query and key read, of q_hᵀk_h as fingerprints; float32 [heads, 2·d]
    gammas: dict[str, np.ndarray]  # position of a norm → its scale [d]
    spectra: dict[str, np.ndarray] = field(default_factory=dict)  # kind → singular values, ascending
    alignment: dict[str, float] = field(default_factory=dict)  # kind → cos(−exp_avg, w)
    stuck: float | None = None  # share of entries whose moments have vanished
    streamed: dict[str, float] = field(default_factory=dict)  # measures of the stream of random tokens
    activations: dict[str, float | None] = field(default_factory=dict)  # measures of the activation probe
    gradients: dict[str, float] = field(default_factory=dict)  # kind → cos(−gradient, w)
    threshold: float | None = None  # of `saturated_fixed`, from the reference checkpoint
    uniform: dict[str, float] = field(default_factory=dict)  # kind → the value of a matrix whose entries are all equal
    extremes: dict[str, tuple[float, float]] = field(default_factory=dict)  # kind → max |w| and RMS, as it is stored
    partners: dict[str, int] = field(default_factory=dict)  # "composition", "coupling" → number of partner layers
    chance: dict[str, np.ndarray] = field(default_factory=dict)  # measure → its values by chance alone, [R]

    # A strong reference would keep every drawn stack alive.
    _stack: weakref.ref[Stack] = field(init=False, repr=False)

    @property
    def stack(self) -> Stack:
        """The checkpoint's layers, this one among them."""
        stack = self._stack()
        assert stack is not None, "a layer is measured while its stack is held"
        return stack

    @cached_property
    def co_magnitude(self) -> np.ndarray:
        """`co_magnitude` of every FFN position: [f]."""
        return co_magnitude(self.position_energy)

    @cached_property
    def gain(self) -> np.ndarray:
        """‖gate[p,:]‖·‖up[p,:]‖·‖down[:,p]‖ of every FFN position p, without the gate where there is none: [f]."""
        return np.sqrt(np.prod(list(self.position_energy.values()), axis=0))

    @cached_property
    def clusters(self) -> Clusters | None:
        """The clusters of the FFN positions."""
        energies = list(self.position_energy.values())
        logs = [np.log(np.maximum(energy, np.finfo(float).tiny)) / 2 for energy in energies]
        return clusters(np.stack([*logs, *self.cosines.values()], axis=1), self.gain)


def co_magnitude(position_energy: Mapping[str, np.ndarray]) -> np.ndarray:
    """‖gate[p,:]‖·‖up[p,:]‖ of every FFN position p, or ‖up[p,:]‖·‖down[:,p]‖ where there is no gate: [f]."""
    other = "gate" if "gate" in position_energy else "down"
    return np.asarray(np.sqrt(position_energy[other] * position_energy["up"]))


def literal_threshold(c: np.ndarray) -> float:
    """mean + 3·std of the co-magnitude, as in the paper. At most a tenth of the positions can exceed it (Cantelli)."""
    return float(c.mean() + 3 * c.std())


def robust_threshold(c: np.ndarray) -> float:
    """median + 3·1.4826·MAD of the co-magnitude: outliers do not raise it."""
    median = np.median(c)
    return float(median + 3 * MAD_TO_STD * np.median(np.abs(c - median)))


class Stack:
    """All layers of a checkpoint, and the statistics that compare them."""

    def __init__(self, layers: Sequence[LayerStatistics], compositions: np.ndarray) -> None:
        """`compositions` [L+1, L or L+1]: C(l→m), writers (embedding first) by readers (any head last)."""
        self.layers = list(layers)
        self.compositions = compositions
        for layer in layers:
            layer._stack = weakref.ref(self)

    @cached_property
    def median_gamma(self) -> float | None:
        """Median |γ| of the FFN post-norms of all layers; None where blocks have none."""
        scales = [layer.gammas["post_ffn"] for layer in self.layers if "post_ffn" in layer.gammas]
        return float(np.median(np.abs(np.concatenate(scales)))) if scales else None

    @cached_property
    def median_written(self) -> float:
        """Median of `LayerStatistics.written` over all coordinates of all layers that have an FFN."""
        return float(np.median(np.concatenate([layer.written for layer in self.layers])))

    @cached_property
    def max_abs_ratios(self) -> dict[tuple[str, int], float | None]:
        """Kind and layer → its max |w| over the median of the others'; None where that is 0 or there are none."""
        found: dict[tuple[str, int], float | None] = {}
        for kind in KINDS:
            held = [layer for layer in self.layers if kind in layer.extremes]
            of_kind = ratios([layer.extremes[kind][0] for layer in held])
            found |= {(kind, layer.index): ratio for layer, ratio in zip(held, of_kind, strict=True)}
        return found

    @cached_property
    def matches(self) -> np.ndarray:
        """The best match of a head in one layer with a head in another (`heads.matches_of`): [L, L], NaN if absent."""
        return matches_of([layer.fingerprints for layer in self.layers])

    @cached_property
    def head_writes(self) -> list[np.ndarray | None]:
        """Per layer, the direction that each head writes: [heads, d]."""
        return [None if x is None else x[:, : x.shape[1] // 2] for x in (layer.fingerprints for layer in self.layers)]

    @cached_property
    def head_reads(self) -> list[np.ndarray | None]:
        """Per layer, the directions that each head's query, key and value read: [3·heads, d]."""
        return [
            None
            if layer.fingerprints is None or layer.readers is None
            else np.concatenate([*np.split(layer.readers, 2, axis=1), np.split(layer.fingerprints, 2, axis=1)[1]])
            for layer in self.layers
        ]

    @cached_property
    def couplings(self) -> np.ndarray:
        """Per layer, the mean over the others of their best head match (`heads.couplings`): [L], NaN where absent."""
        return couplings(self.matches)
