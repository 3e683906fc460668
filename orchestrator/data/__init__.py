"""Text → documents → tokens → packed rows → batches, each a pure function of (seed, step, batch size)."""

from orchestrator.data.corpus import Corpus, check, find, prepare

__all__ = ["Corpus", "check", "find", "prepare"]
