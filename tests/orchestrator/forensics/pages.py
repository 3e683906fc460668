"""A page as lines of text, and readings whose roles the test decides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from io import StringIO

from rich.console import Console, RenderableType

from orchestrator.forensics.reading import LayerReport, Reading


def printed(page: RenderableType, width: int = 100) -> list[str]:
    """The lines of a page in a terminal of this many columns, without colour."""
    file = StringIO()
    Console(file=file, width=width).print(page)
    return [line.rstrip() for line in file.getvalue().splitlines()]


def entry(lines: Sequence[str], label: str) -> str:
    """The entry behind a label of the summary, on one line."""
    start = next(i for i, line in enumerate(lines) if line.startswith(f"{label} "))
    end = next((i for i in range(start + 1, len(lines)) if not lines[i].startswith(" ")), len(lines))
    return " ".join(" ".join([lines[start].removeprefix(label), *lines[start + 1 : end]]).split())


def with_roles(reading: Reading, roles: Sequence[str], by_paper: Sequence[str] | None = None) -> Reading:
    """The reading with these roles above chance, and those by the paper's rule; evidence for the former."""
    named = zip(reading.layers, roles, by_paper or roles, strict=True)
    return replace(reading, layers=[_with_role(layer, role, rival) for layer, role, rival in named])


def _with_role(layer: LayerReport, role: str, rival: str) -> LayerReport:
    scorings = {
        "calibrated": replace(layer.scorings["calibrated"], role=role),
        "paper": replace(layer.scorings["paper"], role=rival),
    }
    return replace(
        layer,
        role=role,
        margin=0.01 if "/" in role else 0.25,
        evidence=[] if role == "damper/hub" else ["+cv", "-source_mean"],
        role_paper=rival,
        scorings=scorings,
        measures=dict(layer.measures),
    )
