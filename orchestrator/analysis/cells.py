"""Read an experiment from its directory: every cell (arm × seed) with its metrics log and its readings."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from orchestrator.analysis.sign_flip import Look
from orchestrator.analysis.statistics import MARGIN
from orchestrator.analysis.validation import DESCRIPTION, check_damage, check_description, check_metrics, refusing
from orchestrator.common.errors import UserError, no_experiment
from orchestrator.common.shapes import MAPPING, ShapeError, one_line
from orchestrator.config import load, schema
from orchestrator.experiments import costs, effects, trials
from orchestrator.experiments.corpora import SHOWN, digest_in
from orchestrator.experiments.costs import Cost
from orchestrator.experiments.effects import Effect
from orchestrator.experiments.expectations import Wanted, intended
from orchestrator.experiments.experiment import check_contrasts
from orchestrator.experiments.trials import Trial
from orchestrator.forensics.reading import Reading, read_reading
from orchestrator.storage import metrics_log, steps
from orchestrator.storage.event_log import Entry, EventLog, refuse_older


@dataclass(frozen=True)
class CellResult:
    """One arm at one seed. `missing` says why it cannot be compared; null where it is complete."""

    arm: str
    seed: int
    path: Path
    metrics: list[metrics_log.Record]  # ascending steps
    readings: dict[int, Reading]  # step → reading, ascending steps
    missing: str | None
    environments: list[dict[str, Any]] = field(default_factory=list)  # one per attempt that recorded where it ran
    damages: dict[int, dict[str, Any]] = field(default_factory=dict)  # step → what interventions did, ascending steps
    outdated: list[int] = field(default_factory=list)  # steps whose readings follow older definitions and are left out

    @property
    def label(self) -> str:
        return f"{self.arm}/seed={self.seed}"

    @cached_property
    def config(self) -> schema.Config:
        """The cell's `config.yaml`, read once. Raises `UserError`, naming the file, where it cannot be read."""
        path = self.path / "config.yaml"
        try:
            return load.from_file(path)
        except (UserError, yaml.YAMLError, UnicodeDecodeError) as error:
            raise UserError(f"{path} is not a valid configuration: restore it. {one_line(error)}") from error

    @property
    def cells(self) -> tuple[CellResult, ...]:
        return (self,)

    @property
    def common_steps(self) -> list[int]:
        """Steps at which its layers were read, ascending."""
        return list(self.readings)

    @property
    def last_reading(self) -> Reading | None:
        return self.readings[max(self.readings)] if self.readings else None


@dataclass(frozen=True)
class Model:
    """Size and cost of the model that one arm trains, from experiment.yaml."""

    params: int
    widths: list[int]  # per layer; empty where it is not recorded
    training_flops: float | None  # forward and backward of one run, the sidecar not counted


@dataclass(frozen=True)
class Branch:
    """The trunk that an arm begins from, from experiment.yaml."""

    arm: str
    step: int
    experiment: str | None  # the directory of another experiment; null: the same


@dataclass(frozen=True)
class ExperimentResult:
    """An experiment's description and its cells. The first arm is the baseline."""

    path: Path
    name: str
    question: str
    arms: list[str]
    seeds: list[int]
    cells: list[CellResult]  # arm by arm, seed by seed
    declared: list[str] = field(default_factory=list)
    contrasts: dict[str, dict[str, float]] = field(default_factory=dict)  # name → arm → weight, in order of the tests
    expect: list[Wanted] = field(default_factory=list)  # what the layers of each arm should become
    models: dict[str, Model] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)  # of the first launch; empty if not recorded
    code: list[dict[str, Any]] = field(default_factory=list)  # since, commit, diff, versions: one per change
    history: list[dict[str, Any]] = field(default_factory=list)  # since, seeds, contrasts, expect, …: one per change
    steps: dict[str, int] = field(default_factory=dict)  # arm → steps of a run; empty where they are not recorded
    lineage: dict[str, Branch] = field(default_factory=dict)  # arm → its trunk, for those that have one
    dropped: dict[str, str] = field(default_factory=dict)  # arm that is left out → the day since when, UTC
    decide: dict[str, Any] = field(default_factory=dict)  # `decide` of its newest launch; empty if not recorded
    launcher: dict[str, Any] = field(default_factory=dict)  # of its newest launch; empty if not recorded
    budget: dict[str, Any] = field(default_factory=dict)  # of its newest launch; empty if not recorded
    costs: dict[str, Cost] = field(default_factory=dict)  # cell (`<arm>/seed=<k>`) → all its attempts
    trials: list[Trial] = field(default_factory=list)  # of the search that chose its arms
    effects: list[Effect] = field(default_factory=list)  # of its keys, where it began with a screen
    search_cost: Cost = field(default_factory=Cost)
    looks: list[dict[str, Any]] = field(default_factory=list)  # since, most, seeds: arm → those complete; oldest first
    data: dict[str, str] = field(default_factory=dict)  # arm → the digest of its corpus, where that is known
    finished: str | None = None  # when the first of its cells was done, UTC; null where that is not recorded

    @property
    def parameters(self) -> dict[str, int]:
        """Arm → number of parameters, for the arms whose models are recorded."""
        return {arm: model.params for arm, model in self.models.items()}

    @property
    def margin(self) -> float:
        """Share of the baseline's loss within which a difference counts as none."""
        return float(self.decide.get("margin", MARGIN))

    def looks_at(self, arms: Collection[str], seeds: Collection[int]) -> tuple[list[int], list[Look]]:
        """Return `seeds` in the order of the looks at which all of `arms` had them, and those looks.

        The newest look is at all of them; where no look was recorded, it is the only one.
        """
        ordered, looks = list[int](), list[Look]()
        for look in self.looks:
            complete = [set(look["seeds"].get(arm, ())) for arm in arms if arm != self.arms[0]]
            added = [s for s in seeds if s not in ordered and all(s in own for own in complete)]
            if added:
                ordered += added
                looks.append(Look(len(ordered), max(look["most"], len(ordered))))
        if late := [seed for seed in seeds if seed not in ordered]:
            ordered += late
            most = self.decide.get("max", 0) if self.looks or self.decide.get(schema.AUTO) else 0
            looks.append(Look(len(ordered), max(most, len(ordered))))
        return ordered, looks

    def cell(self, arm: str, seed: int) -> CellResult:
        return next(c for c in self.cells if (c.arm, c.seed) == (arm, seed))


def read_experiment(path: Path) -> ExperimentResult:
    """Read the experiment in `path`, with every cell that `experiment.yaml` names, finished or not.

    Raises `UserError` where the directory is not an experiment or one of its files is invalid.
    """
    refuse_older(path)
    source = path / "experiment.yaml"
    if not path.exists():
        raise UserError(no_experiment(path))
    if not source.is_file():
        raise UserError(f"{path} holds no experiment.yaml: name an experiment's directory, such as outputs/<name>.")
    content = source.read_bytes()
    try:
        spec = load.plain_yaml(content)  # its recorded git diff is one long scalar
        json.dumps(spec, default=str, allow_nan=False)  # refuses NaN, infinity and cycles, which JSON cannot hold
    except Exception as error:  # whatever the constructors of PyYAML raise, from KeyError to OverflowError
        raise UserError(f"{source} is not YAML ({one_line(error)}): restore it or run the experiment again.") from error
    if not isinstance(spec, dict) or not spec.get("arms") or not spec.get("seeds"):
        raise UserError(f"{source} names no arms or no seeds: there is nothing to compare.")
    spec |= {key: {} if kind is MAPPING else [] for key, kind in DESCRIPTION.items() if not spec.get(key)}
    with refusing(source, "restore it, or delete it and run the experiment again"):
        check_description(spec)
    models, contrasts = spec["models"], spec["contrasts"]
    every, seeds, dropped = [str(arm) for arm in spec["arms"]], spec["seeds"], _dropped_since(spec)
    arms = [arm for arm in every if arm not in dropped]
    try:
        check_contrasts(contrasts, arms)
        lines, *_ = [intended(lines, every) for lines in (spec["expect"], *(one["expect"] for one in spec["history"]))]
    except UserError as error:
        raise UserError(f"{source}: {one_line(error)}") from error
    events = EventLog(path)
    last, environments = events.last(), events.environments()
    cells = [
        replace(
            read_cell(path / cell, arm, seed, last.get(cell), spec["steps"].get(arm, 0)),
            environments=environments.get(cell, []),
        )
        for arm in arms
        for seed in seeds
        for cell in [f"{arm}/seed={seed}"]
    ]
    digests = {str(arm): str(of["digest"]) for arm, of in spec["data"].items() if of.get("digest")}
    digests = _begun_with(cells) | digests
    cells = _of_one_version(_of_one_corpus(cells, digests))
    return ExperimentResult(
        path=path, name=str(spec.get("name") or path.name), question=str(spec.get("question") or ""),
        arms=arms, seeds=seeds, declared=[str(key) for key in spec["declared"]], contrasts=contrasts, expect=lines,
        models={
            arm: Model(models[arm]["params"], models[arm].get("widths", []), models[arm].get("training_flops"))
            for arm in arms
            if arm in models
        },
        machine=spec["machine"], code=spec["code"], history=spec["history"], finished=events.first_done(),
        decide=spec["decide"], launcher=spec["launcher"], budget=spec["budget"],
        costs=costs.of_cells(path), trials=trials.read(path), effects=effects.read(path),
        search_cost=costs.of_search(path), looks=spec["looks"],
        steps=spec["steps"], lineage={arm: Branch(**of) for arm, of in spec["lineage"].items() if arm in arms},
        dropped=dropped, cells=cells, data=digests,
    )  # fmt: skip


def _begun_with(cells: list[CellResult]) -> dict[str, str]:
    """Return arm → the digest of the corpus that its first cell began with."""
    found: dict[str, str] = {}
    for cell in cells:
        if cell.metrics and (digest := digest_in(cell.metrics[0])):
            found.setdefault(cell.arm, digest)
    return found


def _of_one_corpus(cells: list[CellResult], digests: Mapping[str, str]) -> list[CellResult]:
    """The cells, but `missing` those that were not trained on their arm's corpus, which would be pooled with it.

    `digests`: arm → that of its corpus.
    """
    found = []
    for cell in cells:
        digest = digest_in(cell.metrics[0]) if cell.metrics else None
        if digest is not None and digest != (expected := digests[cell.arm]):
            reason = f"trained on other data than its arm (digest {digest[:SHOWN]}, not {expected[:SHOWN]})"
            cell = replace(cell, missing=cell.missing or reason)
        found.append(cell)
    return found


def _of_one_version(cells: list[CellResult]) -> list[CellResult]:
    """The cells with their readings by the newest definitions that any has; measures of two versions do not compare."""
    newest = max((r.definitions for cell in cells for r in cell.readings.values()), default=0)
    kept = [{step: r for step, r in cell.readings.items() if r.definitions == newest} for cell in cells]
    return [
        replace(cell, readings=of, outdated=sorted(cell.readings.keys() - of.keys()))
        for cell, of in zip(cells, kept, strict=True)
    ]


def _dropped_since(spec: dict[str, Any]) -> dict[str, str]:
    """Return arm → day (UTC) of the first entry of the history from which on it is dropped."""
    since: dict[str, str] = {}
    for entry in spec["history"]:
        now = entry.get("dropped", [])
        since = {arm: since.get(arm, entry["since"][:10]) for arm in now}
    return {arm: since.get(arm, "") for arm in spec["dropped"]}


def read_cell(path: Path, arm: str, seed: int, entry: Entry | None = None, steps_planned: int = 0) -> CellResult:
    """Read the cell in `path`; `entry`, its last event, explains why it did not finish.

    A cell whose last record is of a step before `steps_planned` is not finished: it is being extended.

    Raises `UserError` where a record of the metrics log or a reading is invalid.
    """
    source = path / "metrics.jsonl"
    records = metrics_log.read(source)
    with refusing(source, f"restore it, or delete {path} and run the experiment again"):
        check_metrics(records)
    readings = {step: read_reading(file) for step, file in steps.readings_in(path).items()}
    if len({len(reading.layers) for reading in readings.values()}) > 1:
        raise UserError(f"{path / 'forensics'} holds readings of unequal depth: remove those of another model.")
    damages = {step: _read_damage(file, step) for step, file in steps.damages_in(path).items()}
    depths = {len(of["layers"]) for of in damages.values()} | {len(reading.layers) for reading in readings.values()}
    if len(depths) > 1:
        raise UserError(f"{path / 'interventions'} holds files of another depth: remove those of another model.")
    return CellResult(arm, seed, path, records, readings, _missing(records, entry, steps_planned), damages=damages)


def _read_damage(path: Path, step: int) -> dict[str, Any]:
    """Read the interventions on one checkpoint. Raises `UserError`, naming the file, where it holds something else."""
    with refusing(path, "delete it, and the experiment's command makes it again"):
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ShapeError(f"is not JSON ({one_line(error)})") from error
        check_damage(document, step)
    return dict(document)


def _missing(records: list[metrics_log.Record], entry: Entry | None, steps_planned: int) -> str | None:
    """Return the reason why a cell with this metrics log cannot be compared; null where it can."""
    final = records[-1] if records else {}
    if "test" in final and final["step"] >= steps_planned:
        return None
    if not final and entry is None:
        return "never started"
    state = "unfinished" if entry is None or entry.state == "done" else entry.state
    where = f"at step {final['step']}" if final else "before its first record"
    return f"{state} {where}" + (f": {entry.reason}" if entry and entry.reason else "")
