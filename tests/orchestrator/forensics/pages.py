"""What a reader sees: a page as lines of text, and results whose roles the test decides."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from io import StringIO
from typing import Any

from rich.console import Console, RenderableType

ROLES = ("hub", "damper", "passthrough", "specialist")
Result = dict[str, Any]


def printed(page: RenderableType, width: int = 100) -> list[str]:
    """The lines of a page in a terminal of this many columns, without colour."""
    file = StringIO()
    Console(file=file, width=width).print(page)
    return [line.rstrip() for line in file.getvalue().splitlines()]


def entry(lines: Sequence[str], label: str) -> str:
    """What stands behind a label of the summary, on one line."""
    start = next(i for i, line in enumerate(lines) if line.startswith(f"{label} "))
    end = next((i for i in range(start + 1, len(lines)) if not lines[i].startswith(" ")), len(lines))
    return " ".join(" ".join([lines[start].removeprefix(label), *lines[start + 1 : end]]).split())


def with_roles(result: Result, roles: Sequence[str], by_paper: Sequence[str] | None = None) -> Result:
    """The result with these roles above chance, and those by the paper's rule; evidence for the former."""
    copy = deepcopy(result)
    for layer, role, rival in zip(copy["layers"], roles, by_paper or roles, strict=True):
        evidence = [] if role == "damper/hub" else ["+cv", "-source_mean"]
        layer.update(role=role, margin=0.01 if "/" in role else 0.25, evidence=evidence, role_paper=rival)
        layer["scorings"]["calibrated"]["role"] = role
        layer["scorings"]["paper"]["role"] = rival
    return copy
