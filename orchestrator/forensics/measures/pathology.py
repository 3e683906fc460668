"""Tensors that are out of proportion to their peers, or that hold nothing of use (SCIENCE §5; the paper, §8)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from orchestrator.common.errors import UserError
from orchestrator.forensics.architecture.kinds import KINDS
from orchestrator.forensics.architecture.model import CheckpointModel
from orchestrator.forensics.architecture.unsupported import OTHER_SENSES
from orchestrator.forensics.measures.finding import Finding
from orchestrator.forensics.weights.tensors import NotFinite

ROWS = 1024  # of a tensor outside the layers, in memory at once
WARN = 10.0
CRITICAL = 30.0
WITHIN = re.compile(r"(^|\.)\d+\.")  # a name within a layer


def findings(
    rows: Sequence[Mapping[str, float | None]],
    names: Sequence[Mapping[str, str]],
    uniform: Sequence[Mapping[str, float]] = (),
) -> list[Finding]:
    """Every matrix at or above `WARN` times its peers, worst first, then those whose entries are all equal.

    `rows`: per layer, its measures; `names`: per layer, kind → tensor name; `uniform`: per layer, kind → the value of
    such a matrix. No norm is found for a model of one layer, or for peers whose median is zero. Where a kind is uniform
    in every layer, as initialisations with zeros leave it, one finding stands for all.
    """
    found = [
        Finding(names[layer][kind], ratio, "critical" if ratio >= CRITICAL else "warn")
        for kind in KINDS
        for layer, ratio in enumerate(ratios([row.get(f"spectral_norm.{kind}") for row in rows]))
        if ratio is not None and ratio >= WARN
    ]
    return [*sorted(found, key=lambda finding: -finding.ratio), *_uniform(names, uniform)]


def unread(model: CheckpointModel, delta: bool = False) -> list[Finding]:
    """Findings in tensors that no measure reads: NaN or infinite values, or a head whose entries are all equal.

    They are those outside the layers (final norm, head, positions), and the vectors within (biases). `delta`: what an
    adapter adds, which is zero wherever it adds nothing.
    """
    found = []
    vocabulary = None if model.embedding_shape is None else model.embedding_shape[0]
    for name in sorted(model.tensors.names):
        shape = model.tensors.shape(name)
        if not shape or 0 in shape or OTHER_SENSES.search(name) or (len(shape) > 1 and WITHIN.search(name)):
            continue
        try:
            value = uniform_value(model.tensors.rows(name, ROWS))
        except NotFinite:
            found.append(Finding(name, 0.0, "critical", "holds NaN or infinite values"))
        except UserError:  # integers, such as the numbers of positions
            continue
        else:
            if value is not None and not delta and len(shape) == 2 and shape[0] == vocabulary:
                found.append(Finding(name, 0.0, "warn", _holds(value)))
    return found


def not_finite(model: CheckpointModel, first: NotFinite) -> UserError:
    """The error for layers with NaN or infinite values: `first`, or the number of such tensors where there are more."""
    found = []
    for name in (name for index in range(len(model)) for name in model.names(index)):
        try:
            for _ in model.tensors.rows(name, ROWS) if model.tensors.shape(name) else ():
                pass
        except NotFinite:
            found.append(name)
        except UserError:  # integers, which no measure reads
            continue
    if len(found) < 2:
        return first
    return UserError(
        f"{model.directory} holds NaN or infinite values in {len(found)} tensors of its layers, such as {found[0]} and "
        f"{found[1]}: use a checkpoint from before they arose."
    )


def uniform_value(blocks: Iterator[Tensor]) -> float | None:
    """The value of a tensor whose entries are all equal, given in blocks; None for any other. Reads all blocks."""
    low, high = np.inf, -np.inf
    for block in blocks:
        if block.numel():
            least, most = torch.aminmax(block)
            low, high = min(low, float(least)), max(high, float(most))
    return low if low == high else None


def _uniform(names: Sequence[Mapping[str, str]], uniform: Sequence[Mapping[str, float]]) -> list[Finding]:
    found = []
    for kind in KINDS:
        layers = [layer for layer, values in enumerate(uniform) if kind in values]
        everywhere = len(layers) > 1 and len(layers) == sum(kind in of for of in names)
        for layer in layers[:1] if everywhere else layers:
            others = ", as in every other layer" if everywhere else ""
            found.append(Finding(names[layer][kind], 0.0, "warn", _holds(uniform[layer][kind]) + others))
    return found


def _holds(value: float) -> str:
    return "is all zeros" if value == 0 else f"holds the value {value:.3g} throughout"


def ratios(norms: Sequence[float | None]) -> list[float | None]:
    """Each layer's norm over the median of the others' that have one; null where it has none, or the median is 0."""
    known = [norm for norm in norms if norm is not None]
    if len(known) < len(norms):
        of_known = iter(ratios(known))
        return [None if norm is None else next(of_known) for norm in norms]
    values = np.array(norms, dtype=np.float64)  # [L]
    layers = values.size
    others = np.tile(values, (layers, 1))[~np.eye(layers, dtype=bool)].reshape(layers, max(0, layers - 1))
    medians = np.median(others, axis=1).tolist() if layers > 1 else [0.0] * layers
    return [float(v / m) if m > 0 and np.isfinite(v) else None for v, m in zip(values, medians, strict=True)]
