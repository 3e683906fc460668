"""Print the plan of `dry_run=true`: what an experiment will cost.

`arm`, `memory` and `footprint` count what a cell computes, holds and writes; `hardware` and `benchmark` give the rates,
measured on this machine or from a GPU's data sheet; `cost` divides counts by rates and `view` prints the result.
"""

from orchestrator.plan.view import show

__all__ = ["show"]
