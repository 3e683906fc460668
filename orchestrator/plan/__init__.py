"""The plan that `dry_run=true` prints: what an experiment will cost.

`arm`, `memory` and `footprint` count what a cell computes, holds and writes; `hardware` and `benchmark` give the rates,
measured on this machine or taken from a GPU's data sheet; `cost` multiplies the two and `view` prints the result.
"""

from orchestrator.plan.view import show

__all__ = ["show"]
