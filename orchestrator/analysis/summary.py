"""Print the comparison in a terminal, legible at 80 columns."""

from __future__ import annotations

from rich import box
from rich.console import Console, Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from orchestrator.analysis.comparison import Comparison
from orchestrator.analysis.findings import Finding, findings
from orchestrator.analysis.formatting import seed_list
from orchestrator.analysis.sections import brief, many_arms, sections
from orchestrator.analysis.sections.costs import whole_cost, written
from orchestrator.analysis.sections.section import Link, Roles, Section, TableCell
from orchestrator.experiments.costs import Cost
from orchestrator.forensics.roles.palette import colour, letter
from orchestrator.forensics.roles.routing import ROLES

VERDICTS = {
    "better": "bold green",
    "worse": "bold red",
    "negative": "bold",
    "positive": "bold",
    "equivalent": "cyan",
    "inconclusive": "yellow",
    "conserved": "cyan",
    "not conserved": "bold red",
    "no larger than chance": "yellow",
    "delivered": "bold green",
    "not delivered": "bold red",
    "not claimed": "dim",
    "not tested": "dim",
    "not measured": "dim",
    "baseline": "dim",
}
WORD = 11  # columns of the longest role
VERDICT = 13  # least columns of a verdict, so that it breaks between words


def print_summary(c: Comparison, console: Console, *, full: bool = False) -> None:
    """Print question, pairs, findings, losses, layers and caveats; with `full` every table."""
    with console:  # one write, as several jobs may share the terminal
        console.print()
        console.print(Text(c.experiment.question or c.experiment.name, style="bold"))
        console.print(_header(c))
        for arm in () if many_arms(c) else c.compared:
            console.print()
            if len(c.experiment.arms) > 2:
                console.print(Text(f"{arm} against {c.baseline}", style="bold"))
            for finding in findings(c, arm):
                console.print(_finding(finding))
        for section in sections(c) if full else brief(c):
            console.print()
            console.print(Text(section.title, style="bold"))
            table = _table(section, words=True)
            if console.measure(table).maximum >= console.width:
                table = _table(section, words=False)
            console.print(Padding(table, (0, 0, 0, 1)))
            for note in section.notes:
                console.print(Padding(Text(note, style="dim"), (0, 0, 0, 1)))
        console.print()
        for note in c.notes:
            console.print(_bullet(Text(note)))
        if not full:
            console.print(_bullet(Text(f"All tables: python -m orchestrator.compare {c.experiment.path} --full")))
        report = str(c.directory / "report.html")
        console.print(_bullet(Text.assemble("Figures and definitions: ", (report, "cyan"), overflow="fold")))


def _header(c: Comparison) -> Table:
    e, many = c.experiment, many_arms(c)
    lines = Table.grid(padding=(0, 2))
    if many:
        sizes = sorted(set(e.parameters.values()))
        parameters = f"{' … '.join(f'{size:,}' for size in {sizes[0]: 0, sizes[-1]: 0})} parameters" if sizes else ""
        lines.add_row(Text("arms", style="dim"), Text(str(len(e.arms))), Text(parameters, style="dim"))
    for index, arm in enumerate(e.arms if not many else ()):
        parameters = f"{e.parameters[arm]:,} parameters" if arm in e.parameters else ""
        lines.add_row(Text("baseline" if index == 0 else "arm", style="dim"), Text(arm), Text(parameters, style="dim"))
    lines.add_row(Text("seeds", style="dim"), Text(seed_list(e.seeds)))
    if len(e.arms) > 1:
        lines.add_row(Text("pairs", style="dim"), Text(c.completeness))
    if (cost := whole_cost(c)) != Cost():
        lines.add_row(Text("cost", style="dim"), Text(written(cost)))
    for cells, reason in c.incomplete_cells:
        lines.add_row(Text("left out", style="red"), Text(cells), Text(reason))
    return lines


def _finding(finding: Finding) -> Group:
    """Return the question and its answer on one line, with the sentence under it."""
    style = VERDICTS.get(finding.answer, "bold")
    line = Text.assemble("● " if finding.sure else "○ ", (f"{finding.question} ", "bold"), (finding.answer, style))
    return Group(line, Padding(Text(finding.sentence, style="dim"), (0, 0, 0, 2)))


def _table(section: Section, *, words: bool) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim", show_edge=False)
    for index, name in enumerate(section.columns):
        cells = [row[index] for row in section.rows]
        verdicts = any(isinstance(cell, str) and cell in VERDICTS for cell in cells)
        long = index == 0 and any(isinstance(cell, str) and len(cell) > VERDICT for cell in cells)
        left = index == 0 or verdicts or any(isinstance(cell, Roles) for cell in cells)
        table.add_column(
            Text(name),
            justify="left" if left else "right",
            no_wrap=not (verdicts or long),
            min_width=VERDICT if verdicts or long else None,
        )
    for row in section.rows:
        table.add_row(*(_cell(cell, words) for cell in row))
    return table


def _cell(cell: TableCell, words: bool) -> Text:
    """Write roles as a coloured word or letter per seed; a tie is the letters of its two leaders, or a dot."""
    if isinstance(cell, str):
        return Text(cell, style=VERDICTS.get(cell, ""))
    if isinstance(cell, Link):
        return Text(cell.text)
    text = Text()
    for role in cell.roles:
        tie = "/".join(letter(part) for part in role.split("/"))
        word = f"{role if role in ROLES else tie:<{WORD}}" if cell.words and words else letter(role)
        text.append(f"{word} ", style=f"bold {colour(role)}" if role in ROLES else "dim")
    text.rstrip()
    return text


def _bullet(text: Text) -> Table:
    grid = Table.grid(padding=(0, 1))
    grid.add_row(Text("•", style="dim"), text)
    return grid
