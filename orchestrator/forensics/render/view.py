"""What the command was asked to read, ready to be written, drawn and printed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import RenderableType
from torch import Tensor

from orchestrator.common.errors import UserError
from orchestrator.common.formatting import printable
from orchestrator.forensics.analyze import analyze
from orchestrator.forensics.architecture.anatomy import Anatomy
from orchestrator.forensics.measures.runner import tokens_of
from orchestrator.forensics.render import against as pair
from orchestrator.forensics.render import figure, terminal
from orchestrator.forensics.render import trajectory as run
from orchestrator.forensics.render.export import rows_of
from orchestrator.forensics.render.terminal import Result
from orchestrator.forensics.weights.hub import local
from orchestrator.forensics.weights.sources import checkpoints, single, unit, whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LONGEST = 2**20  # characters of a file that are put into tokens: many times as many as a probe runs


@dataclass(frozen=True)
class View:
    """One document and its forms."""

    document: Mapping[str, Any]  # JSON
    results: Sequence[Result]  # every checkpoint that was read
    rows: Callable[[], list[dict[str, Any]]]  # CSV
    draw: Callable[[], Figure]
    report: Callable[[], RenderableType]

    @property
    def critical(self) -> bool:
        """Whether a critical pathology was found in any of what was read."""
        return any(finding["severity"] == "critical" for result in self.results for finding in result["pathology"])


def view(
    source: str,
    *,
    against: str | None = None,
    optimizer: Path | None = None,
    probe: str | None = None,
    scoring: str = "calibrated",
    device: str = "auto",
    clock: Callable[[], float],
    tell: Callable[[str], None],
) -> View:
    """One checkpoint, two side by side, or a run over its checkpoints, whichever the arguments ask for.

    `probe`: text, or the name of a file of it. `clock`: seconds since the start; `tell`: hears what is being read.
    Raises `UserError` for what cannot be read or does not go together.
    """
    text = None if probe is None else _text(probe)
    where = _device(device)

    def read(path: Path, moments: Path | None = None, reference: Path | None = None) -> dict[str, Any]:
        tell(f"Reading {path}")
        tokens = None if text is None else _tokens(path, text)
        return analyze(path, reference=reference, optimizer=moments, scoring=scoring, tokens=tokens, device=where)

    path = local(source)
    if against is not None:
        a, b = single(path), single(local(against))
        return _pair(pair.against(read(a, optimizer), read(b)), clock)
    found = checkpoints(path)
    if len(found) < 2:
        path = found[0][1] if found else whole(path)
        return _single(read(path, optimizer), sum(layer.parameters for layer in Anatomy(path)), clock)
    if optimizer is not None:
        raise UserError(f"--optimizer {optimizer} belongs to one checkpoint, and {path} holds {len(found)}: name one.")
    counted = unit(found[-1][1])
    results: list[dict[str, Any]] = []
    refused: list[tuple[Path, UserError]] = []
    start = None  # step 0, whose thresholds serve the rest; ours are found beside any of them
    for step, entry in found:
        try:
            results.append(read(entry, reference=start) | {"step": step})
            start = entry if counted == "step" and step == 0 else start
        except UserError as error:
            refused.append((entry, error))
    if not results:
        raise UserError(f"None of the {len(found)} checkpoints in {path} can be read: {refused[0][1]}")
    for entry, reason in refused:
        print(printable(f"{entry} is left out: {reason}"), file=sys.stderr)
    return _run(run.trajectory(str(path), results, counted), clock)


def _single(result: Result, parameters: int, clock: Callable[[], float]) -> View:
    seconds = clock()
    return View(
        document=result,
        results=[result],
        rows=lambda: rows_of(result),
        draw=lambda: figure.single(result),
        report=lambda: terminal.report(result, seconds, parameters),
    )


def _pair(document: Mapping[str, Any], clock: Callable[[], float]) -> View:
    seconds = clock()
    return View(
        document=document,
        results=[document["a"], document["b"]],
        rows=lambda: pair.rows(document),
        draw=lambda: figure.pair(document),
        report=lambda: pair.report(document, seconds),
    )


def _run(document: Mapping[str, Any], clock: Callable[[], float]) -> View:
    seconds = clock()
    return View(
        document=document,
        results=document["checkpoints"],
        rows=lambda: run.rows(document),
        draw=lambda: figure.run(document),
        report=lambda: run.report(document, seconds),
    )


def _text(probe: str) -> str:
    """The content of the file of this name where there is one, else `probe` itself."""
    try:
        named = Path(probe).exists() and not Path(probe).is_dir()  # a pipe is a file too
    except (OSError, ValueError):  # too long for a name, or with a zero byte
        named = False
    if not named and not any(map(str.isspace, probe)) and (Path(probe).suffix or "/" in probe):
        raise UserError(f"--probe {probe} looks like a file and there is none: correct the name, or give a sentence.")
    if not named:
        return probe
    try:
        with Path(probe).open(encoding="utf-8") as file:
            return file.read(LONGEST)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{probe} cannot be read as text ({error}): give a file of UTF-8.") from error


def _tokens(path: Path, text: str) -> Tensor:
    return tokens_of(path if path.is_dir() else path.parent, text)


def _device(name: str) -> str:
    """`auto` is the GPU where torch sees one."""
    there = torch.cuda.is_available()
    if name == "cuda" and not there:
        raise UserError("--device cuda needs a GPU that torch can use, and it sees none: leave it out, or say cpu.")
    return ("cuda" if there else "cpu") if name == "auto" else name
