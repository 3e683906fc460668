"""The lines of a page that tell which tensors change most between two models."""

from __future__ import annotations

import numpy as np
from rich.text import Text

from orchestrator.common.formatting import counted, printable
from orchestrator.forensics.measures.change import Change, Changes

LARGEST = 3  # changes that are printed
LEGEND = "‖B − A‖ / ‖A‖ of a tensor; RMS drift: root mean square of the entries of B − A"
OF_ADAPTER = "‖Δ‖ / ‖W‖ of a tensor that the adapter changes; RMS drift: root mean square of the entries of Δ"

NOTHING = {LEGEND: "A and B have no tensor of one name and shape", OF_ADAPTER: "none: what the adapter adds is zero"}


def change_lines(change: Changes, legend: str = LEGEND) -> list[Text]:
    """The largest changes, the median, the number that cannot be compared, and what the numbers are."""
    if not change.tensors:
        return [Text(NOTHING[legend], "dim")]
    known = [of.relative for of in change.tensors if of.relative is not None]
    lines = [_changed(of) for of in change.tensors[:LARGEST]]
    if known:
        lines.append(Text(f"median {np.median(known):.3g} over {counted(len(known), 'tensor')}", "dim"))
    if change.left:
        which = f"{', '.join(change.left[:LARGEST])}{' …' if len(change.left) > LARGEST else ''}"
        lines.append(Text(printable(f"{counted(len(change.left), 'tensor')} cannot be compared: {which}"), "yellow"))
    return [*lines, Text(legend, "dim")]


def _changed(of: Change) -> Text:
    relative = "from zero" if of.relative is None else f"{of.relative:.3g}"
    drift = f"  RMS drift {of.rms:.2g}"
    if of.of_consistent is not None:
        drift += f", {of.of_consistent:.2g} of what the learning rates allow"
    return Text.assemble((f"{relative}  ", "bold"), printable(of.tensor), (drift, "dim"), overflow="fold")
