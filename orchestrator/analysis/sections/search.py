"""Build the tables of a search: the settings it tried with their losses, and what its screen found."""

from __future__ import annotations

from orchestrator.analysis.comparison import Comparison
from orchestrator.analysis.sections.section import Section, TableCell
from orchestrator.experiments import effects


def trials(c: Comparison) -> Section:
    """Return a row per trial, the one that was trained longest and is best first; empty where there was no search."""
    every = c.experiment.trials
    lengths = sorted({steps for one in every for steps in one.losses})
    ranked = sorted(every, key=lambda one: [one.losses.get(steps, float("inf")) for steps in reversed(lengths)])
    settings = list(dict.fromkeys(key for one in every for key in one.settings))
    rows: list[list[TableCell]] = [
        [
            one.name,
            *(one.settings.get(key, "–") for key in settings),
            *(f"{one.losses[steps]:.4f}" if steps in one.losses else "–" for steps in lengths),
            "failed" if one.failed else "chosen" if one.chosen else "",
        ]
        for one in ranked
    ]
    notes = [
        "One run each, at a seed that no pair has: they propose what is compared, and no verdict rests on them.",
        *(f"{one.name} failed: {one.failed}" for one in ranked if one.failed),
    ]
    columns = ["trial", *settings, *(f"after {steps:,}" for steps in lengths), ""]
    return Section("Explored settings, validation loss after so many steps", columns, rows, notes)


def screened(c: Comparison) -> Section:
    """Return a row per key of a search that began with a screen, the clearest effect first."""
    rows = [one.written() for one in effects.ranked(c.experiment.effects)]
    notes = [
        "Effect of a key on the validation loss, nats, on average over the other keys at both values; ± is one "
        "standard error, which interactions of keys inflate."
    ]
    return Section("Effects of the explored keys", effects.HEADS, rows, notes)
