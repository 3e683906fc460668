"""Measures of attention heads, and of their likeness to those of other layers."""

from __future__ import annotations

import numpy as np

from orchestrator.forensics.measures.entry import Value, entry
from orchestrator.forensics.measures.head_pairs import clusters, top_pair_share
from orchestrator.forensics.measures.heads import diversity
from orchestrator.forensics.measures.spectrum import perplexity
from orchestrator.forensics.measures.statistics import LayerStatistics


@entry("head_evenness", "H", of="attention")
def head_evenness(layer: LayerStatistics) -> Value:
    """exp of the entropy of the heads' shares of energy, over the number of heads: 1/heads…1.

    A key/value head that several query heads share counts for each of them in equal parts.
    """
    if layer.heads is None:
        return None
    group = layer.heads.heads // layer.heads.kv_heads
    shared = sum(np.repeat(layer.head_energy[kind] / group, group) for kind in ("k", "v"))
    even = perplexity(layer.head_energy["q"] + layer.head_energy["o"] + shared)
    return None if even is None else even / layer.heads.heads


@entry("head_diversity", "H", of="attention")
def head_diversity(layer: LayerStatistics) -> Value:
    """1 − mean |cos| between the fingerprints of the layer's heads."""
    return None if layer.fingerprints is None else diversity(layer.fingerprints)


@entry("coupling", "H", of="attention")
def coupling(layer: LayerStatistics) -> Value:
    """Mean over the other layers of the best match between a head here and a head there."""
    return float(layer.stack.couplings[layer.index])


@entry("coupling_partners", "L", of="attention")
def coupling_partners(layer: LayerStatistics) -> Value:
    """Number of layers whose heads match this layer's more than the spread of all pairs of layers."""
    return layer.partners.get("coupling")


@entry("head_clusters", "H", of="attention")
def head_clusters(layer: LayerStatistics) -> Value:
    """Number of groups of heads that are linked by fingerprints more alike than chance gives: 1…heads."""
    return None if layer.fingerprints is None or layer.heads is None else clusters(layer.fingerprints, layer.heads)


@entry("head_composition_top", "H", of="attention")
def head_composition_top(layer: LayerStatistics) -> Value:
    """Share of the squared cosines between what heads write and later heads read that the top 1 % of pairs hold.

    Of the pairs with a head of this layer. Chance gives 0.084, the share of the top 1 % of χ² variables.
    """
    return top_pair_share(layer.index, layer.stack.head_writes, layer.stack.head_reads)
