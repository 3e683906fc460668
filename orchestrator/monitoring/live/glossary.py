"""The definitions of the live page."""

from __future__ import annotations

from orchestrator.common.web.pages import Term
from orchestrator.monitoring.states import SHOWN

GLOSSARY = {
    "state": Term("state of a cell", "; ".join(f"{state}: {shown.meaning}" for state, shown in SHOWN.items()) + "."),
    "so_far": Term("so far",
        "The comparison of the cells that have finished, made anew in memory while more of them do. Only complete "
        "pairs count: two arms at one seed, both done. Nothing is written; the report on disk is that of the newest "
        "comparison that was asked for, or that followed the last cell."),
    "role": Term("role",
        "What a layer does at the newest reading of the cell, by its weights: H a hub, D a damper, P a passthrough, "
        "S a specialist, in two colours a tie, – none (SCIENCE §3). Changed counts the layers whose role differs "
        "from that of the reading before."),
    "loss": Term("training and held-out loss",
        "Nats per token. Training: the mean of the records of each hundredth of the steps. Held-out: the mean over the "
        "domains, at every `train.eval_every`. A thin line is a cell, a thick one the mean of an arm's cells that are "
        "done. The first twentieth of the steps may lie above the frame."),
    "left": Term("time left",
        "At the pace so far, with as many cells at once as run now. Cells that failed or were stopped are left out, "
        "and so are pairs that `seeds=auto` may add."),
}  # fmt: skip
