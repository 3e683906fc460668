"""Held-out loss over training, per domain."""

from __future__ import annotations

from html import escape

import numpy as np

from orchestrator.compare.comparison import Comparison
from orchestrator.compare.figures.panels import Drawing, focus, guide, label, panels, runs_and_mean
from orchestrator.compare.pairs import shown, validation_curves


def heldout_curves(c: Comparison) -> Drawing | None:
    """Validation loss per domain, and under it every other arm's paired difference with its pointwise interval."""
    domains = shown(c.domains)
    curves = {
        x.label: validation_curves(x, c.domains) for arm in c.experiment.arms for x in c.cells_of(arm) if x.ledger
    }
    if not any(curve for found in curves.values() for curve in found.values()):
        return None
    rows = 2 if c.pairs else 1
    titles = [escape(c.name_of(domain)) for domain in domains] + [""] * len(domains) * (rows - 1)
    figure = panels(rows, len(domains), 230, titles, "Held-out loss, and its difference from the baseline", gap=40)
    texts = []
    for col, domain in enumerate(domains, start=1):
        differences: list[float] = []
        for index, arm in enumerate(c.experiment.arms):
            runs = [dict(curves[x.label][domain]) for x in c.cells_of(arm) if x.label in curves]
            runs_and_mean(figure, runs, escape(arm), index, 1, col)
            if ends := [run[max(run)] for run in runs if run]:
                texts.append(f"{arm} ends at {np.mean(ends):.4f} on {c.name_of(domain)}.")
            own = [(dict(curves[p.a.label][domain]), dict(curves[p.b.label][domain])) for p in c.pairs if p.arm == arm]
            gaps = [{step: b[step] - a[step] for step in a if step in b} for a, b in own]
            runs_and_mean(figure, gaps, escape(arm), index, 2, col, band=True)
            differences += [abs(gap) for run in gaps for step, gap in run.items() if step > 0]
        if rows == 2:
            guide(figure, 0.0, 2, col)
            focus(figure, differences, 1e-6, 2, col)
    label(figure, rows, len(domains), "step", "loss (nats/token)")
    if rows == 2:
        figure.update_yaxes(title_text="Δ (nats/token)", row=2, col=1)
    return Drawing(figure, " ".join(texts), ("heldout", "delta", "band"))
