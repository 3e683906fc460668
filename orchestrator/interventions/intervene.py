"""Interventions on every layer of a checkpoint, and what each costs."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from orchestrator.common.errors import UserError, nearest
from orchestrator.common.formatting import counted, duration
from orchestrator.config.schema import DomainConfig
from orchestrator.forensics.measures.runner import place
from orchestrator.forensics.reading import Reading
from orchestrator.forensics.recorded import origin, reading_of
from orchestrator.forensics.weights.sources import whole
from orchestrator.interventions.calibration import Calibration, calibrate, ffn_parameters, ffn_positions
from orchestrator.interventions.damage import Damage, Results, Trial, measure
from orchestrator.interventions.device import default_device, within_memory
from orchestrator.interventions.documents import AT_ONCE, Document, batches, chosen, digest
from orchestrator.interventions.edits import CORE, EDITS, Edit, block
from orchestrator.interventions.intervals import mean_and_interval
from orchestrator.interventions.measured import SCHEMA, known
from orchestrator.interventions.partial import Partial
from orchestrator.interventions.passes import Pass, refuse_entangled
from orchestrator.interventions.progress import Progress
from orchestrator.interventions.samples import sampled
from orchestrator.interventions.subject import Subject, load

LONG = 60.0  # seconds from which on a run that cannot go on is told so


@dataclass(frozen=True)
class Options:
    """The edits, and the text on which they are judged.

    `blocks`: also delete so many consecutive layers. `texts`: domain → its text; without any, the held-out rows of our
    own checkpoints, and the built-in `code` and `prose` for others. `own`: what the model itself says is the text.
    `documents`: most per domain. `length`: most tokens of one (128, or the context where that is shorter).
    """

    edits: tuple[str, ...] = CORE
    blocks: int | None = None
    texts: Mapping[str, DomainConfig] = field(default_factory=dict)
    documents: int = 64
    length: int | None = None
    own: bool = False


@within_memory
def intervene(
    source: Path,
    options: Options,
    progress: Progress,
    partial: Partial | None = None,
    device: str = "auto",
    reading: Reading | None = None,
) -> dict[str, Any]:
    """The damage of every edit to every layer, as plain JSON values.

    `partial`: keeps the results so far, from which a run that was interrupted goes on. `device`: `auto` is the GPU
    where torch sees one. `reading`: the checkpoint's, where there is one already. Raises `UserError` for a source or a
    text that cannot be used, and where the memory of the GPU does not suffice.
    """
    path = place(whole(source))
    edits = _edits(options)
    documents = [] if options.own else chosen(path, options.texts, options.documents, options.length)
    subject = load(path, default_device() if device == "auto" else torch.device(device))
    if (options.blocks or 0) > len(subject.layers):
        raise UserError(f"--blocks {options.blocks} is more than the {len(subject.layers)} layers of {path}: lower it.")
    files = _files(path)
    if options.own:
        samples = ["own samples", *files, options.documents, options.length, subject.device.type]
        done = None if partial is None else partial.of(samples)
        documents = sampled(subject, options.documents, options.length, progress.announce, done)
    groups = batches(documents, AT_ONCE)
    refuse_entangled(subject, groups[-1].tokens[:1])
    start = time.perf_counter()
    calibration = calibrate((Pass(subject, of.tokens, of.mask) for of in groups), ffn_positions(path))
    seconds = time.perf_counter() - start
    trials = [
        Trial(name, layer)
        for layer in range(len(subject.layers))
        for name, edit in edits.items()
        if edit.has(subject, layer, calibration)
    ]
    results: Results = {} if partial is None else partial.of(_identity(files, documents, trials))
    total, known = len(trials) * len(groups), sum(trial is not None for _, trial in results)
    if partial is not None and known:
        progress.announce(f"Goes on from {known:,} of {total:,} results in {partial.path}.")
    seconds *= _passes(subject, trials) * (1 - known / max(1, total))
    progress.announce(_cost(documents, trials, seconds))
    if partial is None and seconds > LONG:
        progress.announce("Where it is stopped, it begins anew: with --json FILE the same command goes on.")
    progress.begin(total)
    damage = measure(subject, groups, edits, trials, calibration, results, progress.advance)
    reading = reading or reading_of(path)
    return _result(path, reading, subject, edits, documents, calibration, damage)


def _edits(options: Options) -> dict[str, Edit]:
    for name in options.edits:
        if name not in EDITS:
            raise UserError(f"There is no edit '{name}'{nearest(name, EDITS)}: choose among {', '.join(EDITS)}.")
    edits = {name: EDITS[name] for name in options.edits}
    return edits if options.blocks is None else edits | {f"delete_{options.blocks}": block(options.blocks)}


def _passes(subject: Subject, trials: Sequence[Trial]) -> float:
    """Passes over the text that the trials take: each runs the layers from its own on, and the head."""
    depth = len(subject.layers)
    return sum(1 - trial.layer / depth for trial in trials)


def _cost(documents: Sequence[Document], trials: Sequence[Trial], seconds: float) -> str:
    """The sentence that says how long it will take."""
    tokens = sum(len(document.tokens) for document in documents)
    return (
        f"{counted(len(trials), 'trial')} on {counted(len(documents), 'document')} of {tokens:,} tokens: "
        f"about {duration(seconds)}."
    )


def _files(path: Path) -> list[list[Any]]:
    """The files of the model by name, size and time."""
    files = [path] if path.is_file() else sorted(file for file in path.iterdir() if file.is_file())
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]


def _identity(files: list[list[Any]], documents: Sequence[Document], trials: Sequence[Trial]) -> dict[str, Any]:
    """The model, the text in its batches and the trials: the results depend on these."""
    return {
        "schema": SCHEMA,
        "files": files,
        "text": digest(documents),
        "at_once": AT_ONCE,
        "trials": [[trial.name, trial.layer] for trial in trials],
    }


def _result(
    path: Path,
    reading: Reading,
    subject: Subject,
    edits: Mapping[str, Edit],
    documents: Sequence[Document],
    calibration: Calibration,
    damage: Damage,
) -> dict[str, Any]:
    names = np.array([of.domain for of in documents])
    domains = {name: names == name for name in dict.fromkeys(names.tolist())}
    of_layers: list[dict[str, Any]] = [{name: {} for name in edits} for _ in subject.layers]
    for domain, where in domains.items():
        tokens = damage.tokens[where]
        rises = mean_and_interval(damage.effects["rise"][:, where], tokens)
        totals = {name: of[:, where].sum(1) for name, of in damage.effects.items()}
        with np.errstate(divide="ignore", invalid="ignore"):  # an edit that changes nothing
            breadth = totals["absolute"] ** 2 / totals["squared"] / tokens.sum()
        for row, (trial, (mean, low, high)) in enumerate(zip(damage.trials, rises, strict=True)):
            of_layers[trial.layer][trial.name][domain] = {
                "mean": known(mean), "low": known(low), "high": known(high),
                "kl": known(totals["divergence"][row] / tokens.sum()),
                "breadth": known(breadth[row]),
                "lengthening": known(totals["lengthening"][row] / tokens.sum()),
            }  # fmt: skip
    return {
        "schema": SCHEMA,
        **origin(path, reading),
        "unit": "nats/token" if subject.is_causal else "1 − cosine",
        "edits": list(edits),
        "text": digest(documents),
        "documents": {domain: int(where.sum()) for domain, where in domains.items()},
        "tokens": {domain: int(damage.tokens[where].sum()) for domain, where in domains.items()},
        "intact": {
            domain: float(damage.intact[where].sum() / damage.tokens[where].sum()) if subject.is_causal else None
            for domain, where in domains.items()
        },
        "layers": [
            {
                "layer": layer.layer,
                "role": layer.role,
                "margin": layer.margin,
                "relative_write": known(calibration.relative_write[layer.layer]),
                "block_influence": known(calibration.block_influence[layer.layer]),
                "ffn_parameters": ffn,
                "damage": {name: of or None for name, of in edits_of_layer.items()},  # None: nothing to change
            }
            for layer, ffn, edits_of_layer in zip(reading.layers, ffn_parameters(path), of_layers, strict=True)
        ],
    }
