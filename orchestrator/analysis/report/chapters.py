"""The report's chapters in their order: which figures and which tables stand together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from orchestrator.analysis.comparison import Comparison
from orchestrator.analysis.sections import inside, many_arms, origins, outcomes
from orchestrator.analysis.sections.delivery import delivery
from orchestrator.analysis.sections.section import Section

Build = Callable[[Comparison], list[Section]]


@dataclass(frozen=True)
class Chapter:
    """A heading with figures and tables under it."""

    key: str
    title: str
    figures: tuple[str, ...]
    sections: list[Section] = field(default_factory=list)


def per_arm(*builders: Callable[[Comparison, str], Section | list[Section]]) -> Build:
    """The same tables for every compared arm."""

    def build(c: Comparison) -> list[Section]:
        found = []
        for arm in c.compared:
            for builder in builders:
                made = builder(c, arm)
                found += made if isinstance(made, list) else [made]
        return found

    return build


def _losses(c: Comparison) -> list[Section]:
    across = [outcomes.arm_losses(c)] if many_arms(c) else []
    alone = [] if c.pairs else [outcomes.cell_losses(c)]
    return [
        *across,
        outcomes.contrasts(c),
        *alone,
        *per_arm(outcomes.paired_losses, outcomes.equal_cost, outcomes.every_loss)(c),
    ]


def _layers(c: Comparison) -> list[Section]:
    if c.pairs:
        return per_arm(lambda c, arm: inside.layers(c, [c.baseline, arm]), inside.shifts)(c)
    return [inside.layers(c, [arm]) for arm in c.experiment.arms]


def _roles(c: Comparison) -> list[Section]:
    return [*_layers(c), inside.persistence(c), inside.coincidences(c)]


# key, title, figures, tables
CHAPTERS: tuple[tuple[str, str, tuple[str, ...], Build], ...] = (
    ("roles", "Roles", ("layers", "role_migration"), _roles),
    ("loss", "Loss", ("paired_eval",), _losses),
    ("budget", "Specialist budget", ("conservation", "budget_over_time"), per_arm(inside.budgets)),
    ("body", "Inside the layers", ("flattening", "effective_rank", "attention_share"), lambda c: [inside.spreads(c)]),
    ("intended", "Intended organisation", (), lambda c: [delivery(c)]),
    ("sidecar", "Sidecar", ("sidecar",), per_arm(inside.multipliers)),
    ("shape", "Shape and cost", ("width",), lambda c: [origins.costs(c)]),
    ("health", "Health", ("pathology",), lambda c: [inside.pathologies(c)]),
    ("origins", "What differs", (), lambda c: [origins.differing(c), origins.shared(c)]),
)


def chapters(c: Comparison) -> list[Chapter]:
    """Every chapter, with those of its tables that have rows."""
    return [
        Chapter(key, title, figures, [section for section in build(c) if section.rows])
        for key, title, figures, build in CHAPTERS
    ]
