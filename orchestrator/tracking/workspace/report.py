"""Write the comparison as a W&B report: question, findings and tables, with live panels of the runs."""

from __future__ import annotations

from html import escape
from typing import Any

import wandb_workspaces.reports.v2 as wr

from orchestrator.analysis.comparison import Comparison
from orchestrator.analysis.findings import findings
from orchestrator.analysis.sections import sections
from orchestrator.analysis.sections.section import Link, Roles, Section, TableCell
from orchestrator.common.palette import arm_line
from orchestrator.config.schema import Config
from orchestrator.forensics.roles.palette import letter
from orchestrator.tracking.workspace import charts

LONGEST_TITLE = 128  # most characters that W&B accepts


def report_of(c: Comparison, config: Config, entity: str = "") -> wr.Report:
    """Return the unsaved report. Without an entity its runs are those of the project that it is pushed to."""
    names, group = charts.logged(c), str(config.name)
    where: dict[str, Any] = {"entity": entity, "project": config.tracker.project if entity else ""}
    cells = charts.only(wr.Runset(name="cells", groupby=["config.arm"], **where), group=group, jobType="train")
    each = charts.only(wr.Runset(name="cells", **where), group=group, jobType="train")
    comparison = charts.only(wr.Runset(name="comparison", **where), group=group, jobType="comparison")
    others = charts.only(wr.Runset(name="experiments", **where), jobType="comparison")
    colours: dict[Any, Any] = {
        wr.RunsetGroup("cells", (wr.RunsetGroupKey(wr.Config("arm"), arm),)): arm_line(i).colour
        for i, arm in enumerate(c.experiment.arms)
    }
    blocks: list[Any] = [wr.P(found) for found in answers(c)]
    blocks += [wr.H2("Read with care"), wr.UnorderedList(list(c.notes))] if c.notes else []
    blocks += [
        block for section in sections(c) for block in (wr.H2(section.title), wr.MarkdownBlock(markdown(section)))
    ]
    for one in (*charts.LOSSES, charts.DELTAS, *charts.LAYERS):
        runs = comparison if one is charts.DELTAS else cells
        blocks += _grid(one.title, runs, charts.panels(one, names), colours if runs is cells else {})
    blocks += _grid("Figures", comparison, charts.figure_panels(c), {})
    blocks += _grid("Tables", comparison, charts.table_panels(c), {})
    blocks += _grid("Differences between the runs", each, [wr.RunComparer(diff_only="split")], {})
    title = f"The project's other experiments: {charts.PAIRS.title.lower()}"
    blocks += _grid(title, others, charts.panels(charts.PAIRS, names, by_arm=False), {})
    return wr.Report(
        project=config.tracker.project,
        entity=entity or config.tracker.entity or "",
        title=(c.experiment.question or c.experiment.name)[:LONGEST_TITLE],
        description=c.experiment.name,
        blocks=blocks,
        width="fluid",
    )


def answers(c: Comparison) -> list[str]:
    """Return a text per finding and arm."""
    found = [
        f"{arm} against {c.baseline}: {finding.question} {finding.answer}. {finding.sentence}"
        for arm in c.compared
        for finding in findings(c, arm)
    ]
    return found or ["No pair is complete: nothing can be said about a difference between the arms."]


def markdown(section: Section) -> str:
    """Write the section's table and notes as Markdown, escaped so that no name makes a column or a tag."""
    rows = [section.columns, ["---"] * len(section.columns), *(list(map(_cell, row)) for row in section.rows)]
    table = "\n".join(f"| {' | '.join(map(_plain, row))} |" for row in rows)
    return "\n\n".join([table, *map(_plain, section.notes)])


def _cell(value: TableCell) -> str:
    if isinstance(value, Roles):
        return " ".join(map(letter, value.roles))
    return value.text if isinstance(value, Link) else value


def _plain(text: str) -> str:
    return " ".join(escape(text, quote=False).replace("|", "&#124;").replace("`", "&#96;").split())


def _grid(title: str, runs: wr.Runset, panels: list[Any], colours: dict[Any, Any]) -> list[Any]:
    """Return a heading and its panels; empty without panels."""
    return [wr.H2(title), wr.PanelGrid(runsets=[runs], panels=panels, custom_run_colors=colours)] if panels else []
