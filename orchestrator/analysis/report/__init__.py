"""Write `verdict.json` for programs and `report.html` for people."""

from __future__ import annotations

import json

from orchestrator.analysis.comparison import Comparison
from orchestrator.analysis.figures import Drawing
from orchestrator.analysis.report.page import page
from orchestrator.analysis.report.verdict import verdict
from orchestrator.storage.files import write_whole

__all__ = ["page", "verdict", "write"]


def write(c: Comparison, drawings: dict[str, Drawing]) -> None:
    """Write both files into the comparison's directory."""
    content = json.dumps(verdict(c), indent=1, ensure_ascii=False, allow_nan=False)
    write_whole(c.directory / "verdict.json", content + "\n")
    write_whole(c.directory / "report.html", page(c, drawings))
