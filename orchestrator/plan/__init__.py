"""What an experiment will cost, before it costs anything: `dry_run=true`.

What an arm computes and writes is counted (`arm`, `volume`, `memory`), how fast is measured on this machine or taken
from a GPU's data sheet (`hardware`, `sample`), both make the cost (`cost`), which `view` shows.
"""

from orchestrator.plan.view import show

__all__ = ["show"]
