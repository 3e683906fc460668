"""An experiment's directory, written by hand from the contract: no training, every number known."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.config import load
from orchestrator.config.schema import Config, DataConfig, DomainConfig
from tests.orchestrator.reading import layer_json, reading_json

DOMAINS = ("code", "facts")
ROLE_CYCLE = ("hub", "damper", "passthrough", "specialist", "hub/specialist")
Budget = Callable[[str, int, int], Sequence[float | None]]  # arm, seed, step → saturated positions per layer
Loss = Callable[[str, int, int, str], float]  # arm, seed, step, domain → nats/token


def make_reading(
    step: int, budget: Sequence[float | None], *, shift: int = 0, chance: float | None = 1.0
) -> dict[str, Any]:
    """A forensics result whose saturation counts are `budget` under every reference."""
    layers = []
    for index, count in enumerate(budget):
        role = ROLE_CYCLE[(index + shift) % len(ROLE_CYCLE)]
        counts = dict.fromkeys(("saturated", "saturated_robust", "saturated_fixed"), count)
        measures = {
            "cv": 0.1 * (index + 1), "attention_share": 0.4, "head_diversity": None,
            **{f"effective_rank.{kind}": 20.0 + index + shift for kind in ("o", "gate", "down")},
            **{f"spectral_norm.{kind}": 1.0 + index for kind in ("q", "k", "v", "o", "gate", "up", "down")},
            "momentum_alignment.down": -0.01, **counts, **{f"{name}_expected": chance for name in counts},
        }  # fmt: skip
        scores = {"hub": 0.4, "damper": 0.3, "passthrough": 0.2, "specialist": 0.6}
        layers.append(layer_json(index, role, scores=scores, measures=measures))
    totals = {name: None if None in budget else sum(b for b in budget if b) for name in counts}
    return reading_json(layers, step, missing=["head_diversity"], totals=totals)


def damage_of(arm: str, seed: int, step: int, layer: int) -> float:
    """The rise of the loss when a layer is deleted: layers of `variable` are worth 0.2 more, but for layer 3."""
    return 0.1 * (layer + 1) + 0.001 * step + 0.01 * seed + (0.2 if arm == "variable" and layer < 3 else 0.0)


def make_damage(arm: str, seed: int, step: int, roles: Sequence[str]) -> dict[str, Any]:
    """The file of interventions on a checkpoint; the domains lie 0.05 on either side of their mean."""

    def deleted(layer: int) -> dict[str, Any]:
        mean = damage_of(arm, seed, step, layer)
        rises = dict(zip(DOMAINS, (mean - 0.05, mean + 0.05), strict=True))
        return {domain: {"mean": rise, "low": None, "high": None, "kl": 0.1} for domain, rise in rises.items()}

    layers = [
        {"layer": layer, "role": role, "damage": {"delete": deleted(layer), "swap": None}}
        for layer, role in enumerate(roles)
    ]
    return {"schema": 2, "step": step, "documents": {"code": 4, "facts": 4}, "layers": layers}


def flat_loss(arm: str, seed: int, step: int, domain: str) -> float:
    """Falls with the steps; `variable` ends 0.1 lower, seeds differ a little."""
    return 5.0 - 0.02 * step + 0.01 * seed - (0.001 * step if arm == "variable" else 0.0) + (domain == "facts")


def learned(seed: int, step: int, tensor: str) -> float:
    """Layer 0 has twice and layer 1 half the decay; the seeds part on layer 2; layer 3 is left alone."""
    return {"0": 2.0, "1": 0.5, "2": 2.0 if seed else 0.5, "3": 1.0}[tensor.split(".")[2]]


TENSORS = [f"model.layers.{i}.{kind}.weight" for i in range(4) for kind in ("self_attn.q_proj", "mlp.down_proj")]


def decision(step: int, number: int, values: dict[str, float]) -> dict[str, Any]:
    """The decay channel's part of `Sidecar.record`."""
    return {
        "step": step, "reward": 0.1, "baseline": 0.1, "deviation": 0.0, "advantage": 0.0, "evaluations": 2 * number,
        "backwards": number, "sigma": {"decay": 0.3}, "entropy": {"decay": 0.2}, "summary": {},
        "values": {"decay": values},
    }  # fmt: skip


def even_budget(arm: str, seed: int, step: int) -> Sequence[float | None]:
    return [10.0 + seed] * 4


@cache
def resolved() -> dict[str, Any]:
    """A whole cell's configuration as `config.yaml` holds it."""
    config = Config(data=DataConfig(domains={domain: DomainConfig() for domain in DOMAINS}))
    config.sidecar.reward_rows = config.train.batch_size
    return yaml.safe_load(load.to_yaml(config))


@pytest.fixture(scope="session")
def reading() -> Callable[..., dict[str, Any]]:
    return make_reading


@pytest.fixture
def experiment(tmp_path: Path) -> Callable[..., Path]:
    """Write an experiment and return its directory; every argument has a plain default."""

    def write(
        *,
        arms: Sequence[str] = ("uniform", "variable"),
        seeds: Sequence[int] = (0, 1),
        steps: Sequence[int] = (0, 50, 100),
        read_at: Sequence[int] | None = None,
        loss: Loss = flat_loss,
        budget: Budget = even_budget,
        chance: float | None = 1.0,
        sidecar: bool = False,
        interventions: bool = False,
        contrasts: dict[str, dict[str, float]] | None = None,
        name: str = "width_ablation",
        question: str = "Does width decide?",
    ) -> Path:
        root = tmp_path / name
        for arm in arms:
            for seed in seeds:
                cell = root / arm / f"seed={seed}"
                (cell / "forensics").mkdir(parents=True)
                start = 1.0 if arm == arms[0] else 0.9
                config = resolved() | {"name": name, "arm": arm, "seed": seed}
                config["width"] = config["width"] | {"start": start}
                (cell / "config.yaml").write_text(json.dumps(config))  # JSON is YAML
                records = []
                for step in steps:
                    losses = {domain: loss(arm, seed, step, domain) for domain in DOMAINS}
                    records.append(
                        {"step": step, "tokens": step * 8, "lr": 1e-3, "loss": 3.0 if step else None, "heldout": losses,
                         "grad_norm": 1.0, "digest": f"{seed}-{step}" if step else "corpus", "seconds": float(step),
                         "tokens_per_second": 8.0, "attempt": 1}
                    )  # fmt: skip
                    if sidecar and arm != arms[0]:
                        values = {tensor: learned(seed, step, tensor) for tensor in TENSORS}
                        records[-1]["sidecar"] = decision(step, len(records), values)
                records[-1]["test"] = {domain: loss(arm, seed, steps[-1], domain) + 0.5 for domain in DOMAINS}
                (cell / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
                for step in steps if read_at is None else read_at:
                    result = make_reading(step, budget(arm, seed, step), shift=step // 50, chance=chance)
                    (cell / f"forensics/step_{step:08d}.json").write_text(json.dumps(result))
                    if interventions:
                        (cell / "interventions").mkdir(exist_ok=True)
                        damaged = make_damage(arm, seed, step, [layer["role"] for layer in result["layers"]])
                        (cell / f"interventions/step_{step:08d}.json").write_text(json.dumps(damaged))
        spec = {
            "name": name, "question": question, "arms": {arm: [] for arm in arms}, "seeds": list(seeds),
            "declared": ["width"], "contrasts": contrasts or {},
            "models": {
                arm: {"params": 1_000_000 + i, "widths": [64 - 8 * i, 64, 64, 64 + 8 * i], "training_flops": 1e12}
                for i, arm in enumerate(arms)
            },
        }  # fmt: skip
        (root / "experiment.yaml").write_text(yaml.safe_dump(spec, sort_keys=False))
        return root

    return write


@pytest.fixture
def edit_config() -> Callable[[Path, str, Any], None]:
    """Set one dotted key of a cell's configuration."""

    def edit(cell: Path, key: str, value: Any) -> None:
        path = cell / "config.yaml"
        config = node = json.loads(path.read_text())
        *branch, leaf = key.split(".")
        for name in branch:
            node = node[name]
        node[leaf] = value
        path.write_text(json.dumps(config))

    return edit


@pytest.fixture
def declare() -> Callable[..., None]:
    """Set the keys that an experiment declares."""

    def edit(root: Path, *keys: str) -> None:
        path = root / "experiment.yaml"
        path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"declared": list(keys)}, sort_keys=False))

    return edit


@pytest.fixture
def edit_metrics() -> Callable[[Path, Callable[[list[dict[str, Any]]], Any]], None]:
    """Change a cell's records in place."""

    def edit(cell: Path, change: Callable[[list[dict[str, Any]]], Any]) -> None:
        path = cell / "metrics.jsonl"
        records = [json.loads(line) for line in path.read_text().splitlines()]
        change(records)
        path.write_text("".join(json.dumps(record) + "\n" for record in records))

    return edit
