"""Order the report's chapters and the tables of each, a line per chapter."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from orchestrator.analysis.comparison import Comparison
from orchestrator.analysis.figures import FIGURES
from orchestrator.analysis.sections import expectations, layers, losses, many_arms, provenance, search, trajectory
from orchestrator.analysis.sections.costs import verdict_costs
from orchestrator.analysis.sections.forks import horizons
from orchestrator.analysis.sections.lineage import lineage
from orchestrator.analysis.sections.section import Section

Build = Callable[[Comparison], list[Section]]


@dataclass(frozen=True)
class Chapter:
    """A heading with figures and tables under it."""

    key: str
    title: str
    figures: list[str]
    sections: list[Section]


def _per_arm(*builders: Callable[[Comparison, str], Section | list[Section]]) -> Build:
    """Return a function that builds these tables for every compared arm."""

    def build(c: Comparison) -> list[Section]:
        built = [builder(c, arm) for arm in c.compared for builder in builders]
        return [section for one in built for section in (one if isinstance(one, list) else [one])]

    return build


def _losses(c: Comparison) -> list[Section]:
    return [
        *([losses.arm_losses(c)] if many_arms(c) else []),
        losses.contrasts(c),
        *([] if c.pairs else [losses.cell_losses(c)]),
        *_per_arm(losses.paired_losses, losses.equal_cost, losses.every_loss)(c),
    ]


def _roles(c: Comparison) -> list[Section]:
    if c.pairs:
        of_arms = _per_arm(lambda c, arm: layers.by_layer(c, [c.baseline, arm]), layers.role_shifts)(c)
    else:
        of_arms = [layers.by_layer(c, [arm]) for arm in c.experiment.arms]
    return [*of_arms, layers.persistence(c)]


def _layers(c: Comparison) -> list[Section]:
    return [layers.spreads(c), layers.write_spreads(c), *_per_arm(layers.flattening)(c)]


# key, title, tables; `figures.FIGURES` names the chapter of each figure
CHAPTERS: tuple[tuple[str, str, Build], ...] = (
    ("roles", "Roles", _roles),
    (
        "trajectory",
        "Trajectory",
        trajectory.tables,
    ),
    ("loss", "Loss", _losses),
    ("budget", "Specialist budget", _per_arm(layers.budgets)),
    ("layers", "Inside the layers", _layers),
    ("damage", "What the layers are worth", _per_arm(layers.damages)),
    ("intended", "Intended organisation", lambda c: [expectations.verdicts(c)]),
    ("sidecar", "Sidecar", _per_arm(layers.multipliers, horizons)),
    ("shape", "Shape and cost", lambda c: [lineage(c), provenance.costs(c), verdict_costs(c)]),
    ("health", "Health", lambda c: [layers.pathologies(c)]),
    ("search", "Search", lambda c: [search.trials(c), search.screened(c)]),
    ("differences", "What differs", lambda c: [provenance.differing(c), provenance.shared(c)]),
)
if strays := {chapter for chapter, _ in FIGURES.values()} - {key for key, _, _ in CHAPTERS}:
    raise ValueError(f"FIGURES has figures in {', '.join(sorted(strays))}, which is not a chapter: add it to CHAPTERS.")


def chapters(c: Comparison, drawn: Collection[str]) -> list[Chapter]:
    """Return every chapter that has figures or tables, with the figures that were drawn and the tables with rows."""
    found = [
        Chapter(
            key,
            title,
            [name for name, (chapter, _) in FIGURES.items() if chapter == key and name in drawn],
            [section for section in build(c) if section.rows],
        )
        for key, title, build in CHAPTERS
    ]
    return [chapter for chapter in found if chapter.figures or chapter.sections]
