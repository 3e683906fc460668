"""Build the tables of a search: the settings it tried with their losses, and what its screen found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import takewhile

from orchestrator.analysis.comparison import Comparison
from orchestrator.analysis.sections.section import Section, TableCell
from orchestrator.experiments import effects

FEW_ROWS, FEW_KEYS = 8, 6  # that a terminal shows


def trials(c: Comparison, *, whole: bool = True) -> Section:
    """Return a row per trial, the one that was trained longest and is best first; empty where there was no search.

    Without `whole`, it has the first `FEW_ROWS` rows alone, and no keys where there are more than `FEW_KEYS`.
    """
    every = c.experiment.trials
    lengths = sorted({steps for one in every for steps in one.losses})
    ranked = sorted(every, key=lambda one: [one.losses.get(steps, float("inf")) for steps in reversed(lengths)])
    settings = list(dict.fromkeys(key for one in every for key in one.settings))
    common = shared_prefix(settings)
    told = settings if whole or len(settings) <= FEW_KEYS else []
    rows: list[list[TableCell]] = [
        [
            one.name,
            *(f"{one.losses[steps]:.4f}" if steps in one.losses else "–" for steps in lengths),
            "failed" if one.failed else "chosen" if one.chosen else "",
            *(one.settings.get(key, "–") for key in told),
        ]
        for one in (ranked if whole else ranked[:FEW_ROWS])
    ]
    notes = [
        "One run each, at a seed that no pair has: they propose what is compared, and no verdict rests on them.",
        *([f"Keys are those of {common.rstrip('.')}."] if common and told else []),
        *([] if told else [_listed(one.name, one.settings) for one in ranked if one.chosen]),
        *([f"{len(ranked) - len(rows)} more are in the report."] if len(rows) < len(ranked) else []),
        *(f"{one.name} failed: {one.failed}" for one in ranked if one.failed),
    ]
    columns = ["trial", *(f"after {steps:,}" for steps in lengths), "", *(key.removeprefix(common) for key in told)]
    return Section("Explored settings, validation loss after so many steps", columns, rows, notes)


def shared_prefix(keys: Sequence[str]) -> str:
    """The sections of the configuration that two or more keys have in common, such as `optim.`."""
    sections = [key.split(".")[:-1] for key in keys] if len(keys) > 1 else [[]]
    shared = [names[0] for names in takewhile(lambda names: len(set(names)) == 1, zip(*sections, strict=False))]
    return "".join(f"{name}." for name in shared)


def _listed(name: str, settings: Mapping[str, str]) -> str:
    common = shared_prefix(list(settings))
    return f"{name}: {', '.join(f'{key.removeprefix(common)} {value}' for key, value in settings.items())}."


def screened(c: Comparison) -> Section:
    """Return a row per key of a search that began with a screen, the clearest effect first."""
    ranked = effects.ranked(c.experiment.effects)
    common = shared_prefix([one.key for one in ranked])
    rows = [[one.key.removeprefix(common), *one.written()[1:]] for one in ranked]
    notes = [
        *([f"Keys are those of {common.rstrip('.')}."] if common else []),
        "Effect of a key on the validation loss, nats, on average over the other keys at both values; ± is one "
        "standard error, which interactions of keys inflate.",
    ]
    return Section("Effects of the explored keys", effects.HEADS, rows, notes)
