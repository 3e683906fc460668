"""Pairs of heads: clusters of heads within a layer, and composition between heads of two layers (SCIENCE §1)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from orchestrator.forensics.architecture.layout import Heads
from orchestrator.forensics.measures.extremes import normal_quantile
from orchestrator.forensics.measures.heads import cosines

ERROR = 0.01  # probability that any two heads of a layer by chance count as alike
TOP = 0.01  # share of the pairs that are the top ones


def clusters(prints: np.ndarray, heads: Heads) -> int:
    """Number of groups of heads that are linked by a |cos| of fingerprints [heads, 2·d] above chance: 1…heads.

    Heads that share a value head read within one small space, so that what they write alone tells them apart.
    """
    width, count = prints.shape[1] // 2, len(prints)
    bar = -normal_quantile(ERROR / max(1, count * (count - 1)))  # two-sided, over all pairs
    group = np.arange(count) // (heads.heads // heads.kv_heads)
    written = prints[:, :width]
    cos = np.where(group[:, None] == group, math.sqrt(1 / 2) * np.abs(written @ written.T), cosines(prints, prints))
    alike = np.nan_to_num(cos) > bar / math.sqrt(2 * width)
    return components(alike)


def components(linked: np.ndarray) -> int:
    """Number of connected components of an undirected graph, from its matrix of links, bool [n, n]."""
    reached = linked | linked.T | np.eye(len(linked), dtype=bool)
    while (further := reached.astype(np.float32) @ reached > 0).sum() > reached.sum():  # paths twice as long
        reached = further
    return len(np.unique(reached, axis=0))


def top_pair_share(layer: int, writes: Sequence[np.ndarray | None], reads: Sequence[np.ndarray | None]) -> float | None:
    """Share of the squared cosines between heads of the layer and of others that the top 1 % of the pairs hold.

    `writes`: per layer, the direction that each head writes, [heads, d]; `reads`: the directions that each head's
    query, key and value read, [3·heads, d]. A pair is a head that writes and one direction of a head of a later layer.
    None where heads are unknown, or there is no other layer.
    """
    own, into = writes[layer], reads[layer]
    if own is None or into is None:
        return None
    pairs = [_squares(own, read) for read in reads[layer + 1 :] if read is not None]
    pairs += [_squares(write, into) for write in writes[:layer] if write is not None]
    values = np.concatenate(pairs) if pairs else np.empty(0)
    count = math.ceil(TOP * len(values))
    total = float(values.sum())
    return float(np.partition(values, -count)[-count:].sum()) / total if total else None


def _squares(write: np.ndarray, read: np.ndarray) -> np.ndarray:
    """Squared cosines of all pairs on the coordinates both have, flat; 0 where a vector is 0 there."""
    d = min(write.shape[1], read.shape[1])
    unit = [x[:, :d] / np.maximum(np.linalg.norm(x[:, :d], axis=1, keepdims=True), 1e-30) for x in (write, read)]
    return np.asarray(np.square(unit[0] @ unit[1].T).ravel())
