"""Text → documents → tokens → packed rows → batches, each a pure function of (seed, step, batch size)."""

from orchestrator.data.corpus import Corpus, check, prepare

__all__ = ["Corpus", "check", "prepare"]
