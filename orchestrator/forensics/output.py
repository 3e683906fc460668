"""Everything that `python -m orchestrator.forensics` writes and prints."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import RenderableType

from orchestrator.common.errors import UserError
from orchestrator.common.formatting import printable
from orchestrator.forensics.analyzer import analyze
from orchestrator.forensics.architecture.model import CheckpointModel
from orchestrator.forensics.measures.change import added, changes
from orchestrator.forensics.measures.encoding import tokens_of
from orchestrator.forensics.measures.runner import place
from orchestrator.forensics.reading import Reading, rows_with_experts
from orchestrator.forensics.recorded import recorded
from orchestrator.forensics.render import figure, side_by_side, terminal, trajectory
from orchestrator.forensics.render.side_by_side import SideBySide
from orchestrator.forensics.trajectory.losses import read_losses
from orchestrator.forensics.weights.adapters import is_adapter
from orchestrator.forensics.weights.hub import local
from orchestrator.forensics.weights.sources import checkpoints, revisions, single, unit, whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LONGEST = 2**20  # characters of a file that are tokenised: many times what a probe runs


@dataclass(frozen=True)
class Output:
    """The output of one command: of one checkpoint, of two side by side, or of a run's checkpoints."""

    readings: Sequence[Reading]
    document: dict[str, Any]  # JSON
    rows: list[dict[str, Any]]  # CSV
    draw: Callable[[], Figure]
    report: RenderableType

    @property
    def critical(self) -> bool:
        """True where any reading has a critical pathology."""
        return any(finding.severity == "critical" for reading in self.readings for finding in reading.pathology)


def read(
    source: str,
    *,
    against: str | None = None,
    optimizer: Path | None = None,
    probe: str | None = None,
    gradients: str | None = None,
    scoring: str = "calibrated",
    device: str = "auto",
    weights: Sequence[str] = (),
    base: str | None = None,
    delta: bool = False,
    losses: Path | None = None,
    clock: Callable[[], float],
    progress: Callable[[str], None],
) -> Output:
    """Read one checkpoint, two side by side, or a run's checkpoints, whichever the arguments ask for.

    `probe`, `gradients`: text, or the name of a file of it. `clock`: seconds since the start. `progress`: called with a
    line for each checkpoint. `weights`: which of several models in `source`, and in `against`. `base`, `delta`: see
    `analyze`; they concern the sources that are adapters. `losses`: a file of a run's losses.
    Raises `UserError` for what cannot be read or does not go together.
    """
    given = {"tokens": ("--probe", probe), "gradients": ("--gradients", gradients)}
    texts = {name: _text(option, text) for name, (option, text) in given.items() if text is not None}
    where = _device(device)

    chosen, of_other, *more = (*weights, None, None)
    if any(more) or (of_other and against is None):
        raise UserError(
            f"--weights {' --weights '.join(weights)} names more models than there are sources: leave one out."
        )

    under = None if base is None else whole(local(base))

    def read_one(
        path: Path, moments: Path | None = None, reference: Path | None = None, part: str | None = chosen
    ) -> Reading:
        progress(f"Reading {path}")
        rows = {name: tokens_of(place(path), text) for name, text in texts.items()}
        if not rows and moments is None and part is None and (made := recorded(path)):
            return replace(made, source=str(path), key=None).by(scoring)
        on: dict[str, Any] = {"base": under, "delta": delta} if is_adapter(path) else {}
        return analyze(
            path,
            reference=reference,
            optimizer=moments,
            scoring=scoring,
            tokens=rows.get("tokens"),
            gradients=rows.get("gradients"),
            device=where,
            weights=part,
            **on,
        )

    def opened(path: Path, part: str | None) -> CheckpointModel:
        on = under if is_adapter(path) else None
        return CheckpointModel(path, weights=part, base=on, delta=delta and on is not None)

    known = None if losses is None else read_losses(losses)
    found = [] if against is not None else revisions(Path(source))
    path = Path(source) if found else local(source)
    if against is not None:
        a, b = single(path), single(local(against))
        _refuse_needless(base, delta, (a, b))
        readings = read_one(a, optimizer), read_one(b, part=of_other)
        progress("Comparing tensors")
        parts = ((a, chosen), (b, of_other))
        first, second = (opened(of, part) for of, part in parts)
        both = SideBySide(*readings, changes(first, second))
        rows, report = side_by_side.rows(both), side_by_side.report(both, clock())
        return Output([both.a, both.b], both.to_json(), rows, lambda: figure.side_by_side(both), report)
    found = found or checkpoints(path)
    if len(found) < 2 and losses is not None:
        raise UserError(f"--losses {losses} belongs to the checkpoints of a run, and {path} is one: leave it out.")
    if len(found) < 2:
        path = found[0][1] if found else whole(path)
        _refuse_needless(base, delta, (path,))
        reading = read_one(path, optimizer)
        parameters = CheckpointModel(path, weights=chosen, base=under, delta=delta).parameters
        change = None
        if delta and under is not None:
            progress("Comparing tensors")
            change = added(CheckpointModel(under), CheckpointModel(path, weights=chosen, base=under))
        report = terminal.report(reading, clock(), parameters, change)
        document = reading.to_json() | ({} if change is None else {"change": asdict(change)})
        return Output([reading], document, rows_with_experts(reading), lambda: figure.single(reading), report)
    if optimizer is not None:
        raise UserError(f"--optimizer {optimizer} belongs to one checkpoint, and {path} holds {len(found)}: name one.")
    _refuse_needless(base, delta, [entry for _, entry in found])
    counted = unit(found[-1][1])
    run = trajectory.trajectory(str(path), _read_all(path, found, counted, read_one), counted, known)
    rows, report = trajectory.rows(run), trajectory.report(run, clock())
    return Output(run.checkpoints, run.to_json(), rows, lambda: figure.trajectory(run), report)


def _refuse_needless(base: str | None, delta: bool, sources: Sequence[Path]) -> None:
    """Raise `UserError` where a base is named and no source is an adapter, or the change is wanted without a base."""
    if base is not None and not any(map(is_adapter, sources)):
        raise UserError(f"--base {base} is for LoRA adapters, and {sources[0]} is none: leave it out.")
    if delta and base is None:
        raise UserError("--delta needs the model that the adapter was trained on: name it with --base.")


def _read_all(
    path: Path, found: Sequence[tuple[int, Path]], counted: str, read_one: Callable[..., Reading]
) -> list[Reading]:
    """The readings of a run's checkpoints; one that cannot be read is left out with a line on stderr."""
    readings: list[Reading] = []
    refused: list[tuple[Path, UserError]] = []
    start = None  # step 0, whose thresholds serve the rest; ours are found beside any of them
    for step, entry in found:
        try:
            readings.append(replace(read_one(entry, reference=start), step=step))
            start = entry if counted == "step" and step == 0 else start
        except UserError as error:
            refused.append((entry, error))
    if not readings:
        raise UserError(f"None of the {len(found)} checkpoints in {path} can be read: {refused[0][1]}")
    for entry, reason in refused:
        print(printable(f"{entry} is left out: {reason}"), file=sys.stderr)
    return readings


def _text(option: str, probe: str) -> str:
    """The text to run: the content of the file named `probe` where there is one, else `probe` itself."""
    try:
        named = Path(probe).exists() and not Path(probe).is_dir()  # a pipe is a file too
    except (OSError, ValueError):  # too long for a name, or with a zero byte
        named = False
    if not named and not any(map(str.isspace, probe)) and (Path(probe).suffix or "/" in probe):
        raise UserError(f"{option} {probe} looks like a file and there is none: correct the name, or give a sentence.")
    if not named:
        return probe
    try:
        with Path(probe).open(encoding="utf-8") as file:
            return file.read(LONGEST)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{probe} cannot be read as text ({error}): give a file of UTF-8.") from error


def _device(name: str) -> str:
    """The device of this name; `auto` is the GPU where torch sees one."""
    there = torch.cuda.is_available()
    if name == "cuda" and not there:
        raise UserError("--device cuda needs a GPU that torch can use, and it sees none: leave it out, or say cpu.")
    return ("cuda" if there else "cpu") if name == "auto" else name
