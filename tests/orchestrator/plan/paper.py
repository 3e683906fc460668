"""The paper's model of 11 layers."""

from __future__ import annotations

from orchestrator.config.schema import HeadFit, Match, ModelConfig

PAPER = ModelConfig(11, 1168, 64, HeadFit.nearest, vocab_size=117_000, tie_embeddings=False, match=Match.none)
