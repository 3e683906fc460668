"""A stub trainer: what an experiment of any size leaves on disk, without training it.

Everything is written by the product's own functions, but for two that sync every line or file: a metrics log is
written in one go, and a cell's checkpoints are hard links to those of its arm, which `checkpoint.save` made once.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from models.transformer import Decoder, init_weights
from orchestrator.config.compose import CONF, compose
from orchestrator.config.schema import Config
from orchestrator.experiments import readings
from orchestrator.experiments.experiment import Cell, Experiment, decoder_spec, experiment_of
from orchestrator.experiments.run_directory import open_directory
from orchestrator.forensics.analyzer import analyze
from orchestrator.forensics.reading import Reading
from orchestrator.forensics.roles.routing import ROLES
from orchestrator.storage import checkpoint
from orchestrator.storage.event_log import EventLog

EVERY = 20  # steps between checkpoints, each of which is read
NAMES = (*ROLES, "hub/specialist")
GAIN = 0.1  # nats/token by which the second arm ends lower, in the mean over seeds


def leave_behind(root: Path, small: Sequence[str], *, seeds: int, checkpoints: int, log_every: int = 10) -> Experiment:
    """Two arms × `seeds` finished cells under `root`, with so many checkpoints and readings each."""
    steps = EVERY * (checkpoints - 1)
    overrides = [
        *small, "name=scale", "++arms={uniform: ['width=uniform'], variable: ['width=ramp']}", "declared=[width]",
        f"seeds=[{','.join(map(str, range(seeds)))}]", f"root={root}", f"train.steps={steps}",
        f"train.checkpoint_every={EVERY}", f"forensics.every={EVERY}", f"train.eval_every={EVERY}",
        f"train.log_every={log_every}",
    ]  # fmt: skip
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        experiment = experiment_of(overrides, compose)
    open_directory(experiment)
    templates = {arm: _template(root / ".templates" / arm, config) for arm, config in experiment.arms.items()}
    events = EventLog(experiment.directory)
    for cell in experiment.cells:
        for state in ("submitted", "running", "done"):
            events.append(cell.id, state, attempt=1, job="1")
        paths, found = templates[cell.config.arm]
        _link(cell, paths)
        _write_readings(cell, paths, found)
        _write_metrics(cell)
    return experiment


def final_loss(cell: Cell, domain: str) -> float:
    """The last test loss in the cell's metrics log, nats/token."""
    rng = np.random.default_rng([cell.config.seed, len(domain), cell.config.arm == "variable"])
    return float(2.0 + 0.05 * rng.normal() - GAIN * (cell.config.arm == "variable"))


def _template(directory: Path, config: Config) -> tuple[list[Path], Reading]:
    """The arm's checkpoints, of random weights, and the reading of one of them."""
    spec = decoder_spec(config)
    model = Decoder(spec)
    init_weights(model, 0)
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    moments = {
        f"{name}.{kind}": weight.square() for name, weight in weights.items() for kind in ("exp_avg", "exp_avg_sq")
    }
    paths = []
    for step in range(0, config.train.steps + 1, EVERY):
        state = {"schema": 1, "step": step, "spec": spec.to_dict(), "optim": asdict(config.optim), "trace": {}}
        tensors: dict[str, dict[str, torch.Tensor]] = {"model": weights, "optimizer": moments}
        paths.append(checkpoint.save(directory, step, tensors, state))
    return paths, analyze(paths[1], resamples=config.forensics.resamples)


def _link(cell: Cell, paths: Sequence[Path]) -> None:
    for path in paths:
        target = cell.directory / "checkpoints" / path.name
        target.mkdir(parents=True)
        for file in path.iterdir():
            os.link(file, target / file.name)


def _write_readings(cell: Cell, paths: Sequence[Path], found: Reading) -> None:
    """The arm's reading with other roles and counts at every step and seed."""
    rng = np.random.default_rng([cell.config.seed, cell.config.arm == "variable"])
    (cell.directory / "forensics").mkdir()
    for path in paths:
        layers = []
        for layer in found.layers:
            measures = {
                name: value * float(rng.uniform(0.9, 1.1)) if isinstance(value, float) else value
                for name, value in layer.measures.items()
            }
            counts = {name: int(rng.poisson(3)) for name in ("saturated", "saturated_robust", "saturated_fixed")}
            role = str(rng.choice(NAMES))
            layers.append(replace(layer, role=role, role_paper=role, measures=measures | counts))
        totals = found.totals | {
            name: sum(layer.measures[name] or 0 for layer in layers)
            for name in ("saturated", "saturated_robust", "saturated_fixed")
        }
        step = checkpoint.step_of(path)
        reading = replace(found, step=step, layers=layers, totals=totals, key=readings.key(path))
        (cell.directory / "forensics" / f"{path.name}.json").write_text(json.dumps(reading.to_json(), indent=1))


def _write_metrics(cell: Cell) -> None:
    """Records as `WriteMetrics` has them; the digests of a seed's batches are the same in both arms."""
    train, domains, lines = cell.config.train, list(cell.config.data.domains), []
    for step in sorted({*range(0, train.steps, train.log_every), *range(0, train.steps, EVERY), train.steps}):
        done = step / train.steps
        record: dict[str, Any] = {
            "step": step, "tokens": step * train.batch_size * train.seq_len, "lr": 1e-3,
            "loss": 5.0 - 3.0 * done if step else None, "grad_norm": 1.0 if step else None,
        }  # fmt: skip
        final = {domain: final_loss(cell, domain) for domain in domains}
        if step % EVERY == 0 or step == train.steps:
            record["heldout"] = {domain: loss + 3.0 * (1 - done) for domain, loss in final.items()}
        if step == train.steps:
            record["test"] = final
        digest = hashlib.sha256((f"{cell.config.seed}/{step}" if step else "corpus").encode()).hexdigest()
        record |= {"digest": digest, "seconds": float(step), "tokens_per_second": 64.0, "attempt": 1}
        lines.append(json.dumps(record) + "\n")
    (cell.directory / "metrics.jsonl").write_text("".join(lines))
