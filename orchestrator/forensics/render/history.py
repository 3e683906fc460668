"""The lines of a run's page on its course: commitment, speed, and what happens when the loss drops."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.text import Text

from orchestrator.forensics.trajectory.agreement import ROLE
from orchestrator.forensics.trajectory.commitment import EARLY, LEVELS, Commitment, speed_of
from orchestrator.forensics.trajectory.history import History, Met


def lines(history: History | None, unit: str) -> Mapping[str, Sequence[Text]]:
    """Label → lines; none where there are too few checkpoints."""
    if history is None:
        return {}
    speeds = [line for run in history.commitments if (line := _speed(run, unit))]
    drops = [_met(met) for met in history.meetings if met.meeting.p is not None]
    counted = {met.loss: met.meeting for met in history.meetings}
    heads = [Text(f"{name}: drops in {of.drops} of {of.intervals} intervals") for name, of in counted.items()]
    silent = [Text(history.silent, "dim")] if history.silent else []
    return {
        "commitment": [
            *(_commitment(run, unit) for run in history.commitments),
            *(Text(why, "dim") for why in history.unsettled),
        ],
        "speed": speeds,
        "loss drops": [*heads, *drops, *silent],
    }


def _commitment(run: Commitment, unit: str) -> Text:
    half, most = (f"{run.reached(level):,} ({run.reached_by_chance(level):,.0f})" for level in LEVELS)
    early = f"{run.held[run.at_early]:.2f} ({run.by_chance[:, run.at_early].mean():.2f})"
    at = f"at {EARLY:.0%} of the run {early}, p = {run.p:.2g}"
    if run.kind == ROLE:
        return Text(
            f"{run.scoring}: of {run.layers} layers that end with a role, half keep it from {unit} {half} on, nine "
            f"tenths from {most}; share {at}"
        )
    return Text(
        f"{run.scoring}: scores stay like the last (r ≥ 0.5) from {unit} {half} on, r ≥ 0.9 from {most}; r {at}"
    )


def _speed(run: Commitment, unit: str) -> Text | None:
    speed = speed_of(run.steps, run.changed)
    if speed is None:
        return None
    what = "role changes per layer" if run.kind == ROLE else "1 − r of the scores"
    return Text(
        f"{run.scoring}: {what} and 1000 {unit}s, in the first {EARLY:.0%} of the run {speed.before:.3g}, later "
        f"{speed.after:.3g} (between checkpoints {speed.apart:,} apart)"
    )


def _met(met: Met) -> Text:
    of = met.meeting
    chance = "" if of.expected is None else f", by chance {of.expected:.1f}"
    p = "" if of.p is None else f", p = {of.p:.2g}"
    return Text(f"{met.loss}, {met.event} ({met.scoring}): {of.together} of {of.events} in a drop{chance}{p}")
