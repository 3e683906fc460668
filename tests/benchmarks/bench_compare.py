"""Seconds and peak memory of comparing a long experiment, and of opening its report: `make bench`. Asserts nothing.

24 layers × 20 readings × 8 seeds × 2 arms, with a sidecar's decisions, as training would have left them.
"""

from __future__ import annotations

import json
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from playwright.sync_api import expect, sync_playwright

from orchestrator.analysis import figures, report, tables
from orchestrator.analysis.comparison import compute
from orchestrator.config import load
from orchestrator.config.schema import Config, DataConfig, DomainConfig
from orchestrator.experiments.expectations import ROLES
from orchestrator.forensics.architecture.kinds import KINDS
from orchestrator.forensics.roles.routing import FEATURES
from tests.orchestrator.reading import layer_json, reading_json

LAYERS, READINGS, SEEDS, ARMS = 24, 20, 8, ("uniform", "variable")
EVERY = 500  # steps between readings
INTERVAL = 50  # and between a sidecar's decisions
DOMAINS = ("code", "facts", "math")
COUNTS = ("saturated", "saturated_robust", "saturated_fixed")
LINEAR = (*(f"self_attn.{kind}_proj" for kind in "qkvo"), *(f"mlp.{kind}_proj" for kind in ("gate", "up", "down")))
MEASURES = 76  # of one layer, as many as a reading of ours has


def reading(step: int, rng: np.random.Generator) -> dict[str, Any]:
    layers = []
    for index in range(LAYERS):
        norms = (f"{measure}.{kind}" for measure in ("effective_rank", "spectral_norm") for kind in KINDS)
        names = ["cv", "attention_share", *norms, *FEATURES, *COUNTS, *(f"{c}_expected" for c in COUNTS)]
        names = list(dict.fromkeys(names))
        names += [f"other.{i}" for i in range(MEASURES - len(names))]
        measures = dict(zip(names, rng.uniform(0.1, 1.0, len(names)).tolist(), strict=True))
        measures |= {count: float(rng.poisson(5 + index)) for count in COUNTS}
        layers.append(layer_json(index, str(rng.choice(ROLES)), width=512, measures=measures))
    totals = {count: sum(layer["measures"][count] for layer in layers) for count in COUNTS}
    return reading_json(layers, step, scoring="calibrated", totals=totals)


def records_of(arm: str, seed: int, units: list[str], rng: np.random.Generator) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    for step in range(0, EVERY * (READINGS - 1) + 1, 10):
        record: dict[str, Any] = {"step": step, "loss": 3.0, "digest": f"{seed}-{step}" if step else "corpus"}
        if step % INTERVAL == 0:
            record["heldout"] = {d: 4.0 - 1e-4 * step + rng.normal(0.0, 0.01) for d in DOMAINS}
            values = dict(zip(units, np.exp(rng.normal(0.0, 0.3, len(units))).tolist(), strict=True))
            record["sidecar"] = {"step": step, "evaluations": 2, "backwards": 1, "values": {"decay": values}}
        records.append(record)
    records[-1]["test"] = dict(records[-1]["heldout"])
    return records


def write(root: Path) -> None:
    """The directory of a finished experiment."""
    config = Config(data=DataConfig(domains={domain: DomainConfig() for domain in DOMAINS}))
    config.model.layers = LAYERS
    plain = yaml.safe_load(load.to_yaml(config))
    units = [f"model.layers.{i}.{kind}.weight" for i in range(LAYERS) for kind in LINEAR]
    for arm in ARMS:
        for seed in range(SEEDS):
            cell, rng = root / arm / f"seed={seed}", np.random.default_rng([seed, len(arm)])
            (cell / "forensics").mkdir(parents=True)
            width = plain["width"] | {"start": 1.0 if arm == ARMS[0] else 0.9}
            (cell / "config.yaml").write_text(yaml.safe_dump(plain | {"arm": arm, "seed": seed, "width": width}))
            lines = [json.dumps(record) for record in records_of(arm, seed, units, rng)]
            (cell / "metrics.jsonl").write_text("\n".join(lines) + "\n")
            for step in range(0, EVERY * READINGS, EVERY):
                (cell / f"forensics/step_{step:08d}.json").write_text(json.dumps(reading(step, rng)))
    spec = {
        "name": "long", "question": "Is it quick?", "arms": {arm: [] for arm in ARMS}, "seeds": list(range(SEEDS)),
        "declared": ["width"], "expect": {"late": "specialist", "centre": "> 0.6"},
    }  # fmt: skip
    (root / "experiment.yaml").write_text(yaml.safe_dump(spec, sort_keys=False))


def timed(stage: str, work: Callable[[], Any]) -> Any:
    """Return the result of `work`; print its time and the highest memory so far."""
    started = time.perf_counter()
    result = work()
    seconds, peak = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{stage:<8} {seconds:6.1f} s   peak {peak:,.0f} MiB")
    return result


def opened(page: Path) -> None:
    """Size of the report, and how long a browser takes until it can be read, shows its first figure, shows all."""
    print(f"report.html {page.stat().st_size / 1e6:.1f} MB")
    chromium = shutil.which("chromium")
    if chromium is None:
        return
    with sync_playwright() as playwright:
        tab = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"]).new_page()
        started = time.perf_counter()
        tab.goto(page.as_uri())
        print(f"{'opens':<8} {time.perf_counter() - started:6.2f} s")
        tab.locator(".plot[data-drawn]").first.wait_for()
        print(f"{'figure':<8} {time.perf_counter() - started:6.2f} s")
        expect(tab.locator(".plot:not([data-drawn])")).to_have_count(0, timeout=60_000)
        print(f"{'all':<8} {time.perf_counter() - started:6.2f} s")


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        timed("write", lambda: write(root))
        print(f"{LAYERS} layers × {READINGS} readings × {SEEDS} seeds × {len(ARMS)} arms, {MEASURES} measures a layer")
        comparison = timed("compute", lambda: compute(root))
        drawn = timed("figures", lambda: figures.draw(comparison))
        timed("tables", lambda: tables.write(comparison.tables, comparison.directory / "tables"))
        timed("report", lambda: report.write(comparison, drawn))
        opened(comparison.directory / "report.html")


if __name__ == "__main__":
    main()
