"""The live page: experiments in a browser of this machine, while they run.

`server` answers requests and `served` refreshes one experiment for all viewers; `state` is what the page shows as plain
data, with the `curves` of the losses and the comparison `so_far`. The page's scripts draw it.
"""

from orchestrator.monitoring.live.server import PORT, serve

__all__ = ["PORT", "serve"]
