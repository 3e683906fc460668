"""The reading of one checkpoint: measures, null, roles, pathology, totals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from orchestrator.common.errors import UserError, nearest
from orchestrator.forensics.architecture.live import Live, live
from orchestrator.forensics.architecture.model import CheckpointModel
from orchestrator.forensics.measures.composition import Compositions, add_embedding, add_head, written_before
from orchestrator.forensics.measures.entry import Value
from orchestrator.forensics.measures.expert_report import ExpertReport
from orchestrator.forensics.measures.experts import read_experts
from orchestrator.forensics.measures.momentum import medians
from orchestrator.forensics.measures.pathology import findings, not_finite, unread
from orchestrator.forensics.measures.reduction import reduce_layer, threshold
from orchestrator.forensics.measures.statistics import LayerStatistics, Stack
from orchestrator.forensics.measures.stream import STREAMED, random_stream
from orchestrator.forensics.measures.table import measure
from orchestrator.forensics.measures.tokens import of_tokens, token_rows, unprobed
from orchestrator.forensics.measures.workers import workers
from orchestrator.forensics.null.drawn import Chance, by_chance
from orchestrator.forensics.null.partners import partners
from orchestrator.forensics.reading import (
    COUNTS,
    DEFINITIONS,
    SCHEMA,
    TOTALS,
    LayerReport,
    Matrices,
    Options,
    Reading,
    SuperWeight,
)
from orchestrator.forensics.roles.routing import Role
from orchestrator.forensics.roles.scoring import SCORINGS
from orchestrator.forensics.roles.treatments import SHAPED
from orchestrator.forensics.weights.adapters import is_adapter
from orchestrator.forensics.weights.memory import trim
from orchestrator.forensics.weights.sources import recorded_step
from orchestrator.forensics.weights.tensors import NotFinite
from orchestrator.storage.steps import name_of, step_in

Source = str | Path | Mapping[str, torch.Tensor] | nn.Module
COUNTED = (*COUNTS, "super_weight_ratio")  # measures that are shown beside what chance gives
SHAPES = 4  # draws behind the expected values of layers of different shapes


def analyze(
    source: Source,
    *,
    config: Any = None,
    reference: str | Path | None = None,
    optimizer: str | Path | None = None,
    scoring: str = "calibrated",
    resamples: int = 10,
    seed: int = 0,
    tokens: torch.Tensor | Sequence[Sequence[int]] | None = None,
    gradients: torch.Tensor | Sequence[Sequence[int]] | None = None,
    device: str = "cpu",
    weights: str | None = None,
    base: str | Path | None = None,
    delta: bool = False,
) -> Reading:
    """The reading of a checkpoint, a state dict or a live module; no value is NaN.

    `source`: a path; or tensors by name, on any device, which are copied one at a time; or a module: a transformers
    model, ours, or a wrapper around one. `config`: the description of a model in memory, by default the module's own: a
    configuration of transformers, or a dict with the keys of a config.json. Without it the family is inferred.
    `reference`: the checkpoint whose thresholds `saturated_fixed` uses; by default the step 0 beside one of
    our own. `optimizer`: a file of Adam's moments; by default those beside the weights, where they name their
    parameters.
    `resamples`, `seed`: size and stream of the null (SCIENCE §3). `tokens` [B, T]: rows to run through the model;
    without them the measures that need activations are absent. `gradients` [B, T]: rows on whose next-token loss the
    model is run backwards, for `gradient_alignment`. `device`: where weights are reduced.
    `weights`: which of several models `source` holds, by a part of its tensors' names, such as `ema` or `teacher`.
    `base`: the model that a LoRA adapter, `source`, is added to; with `delta`, what it adds is read by itself.
    Raises `UserError` for a source that cannot be read or an option that cannot work.
    """
    _refuse_options(scoring, resamples, weights, probed=tokens is not None or gradients is not None)
    named = _named(source, config)
    _refuse_base(named, base, delta)
    choice: dict[str, Any] = {"weights": weights, "base": None if base is None else Path(base), "delta": delta}
    model = CheckpointModel(named, None if optimizer is None else Path(optimizer), **choice)
    compared, thresholds = _reference(model, None if reference is None else Path(reference), choice)
    forwards, backwards = token_rows(tokens), token_rows(gradients)
    run = of_tokens(named, model, forwards, backwards)

    try:
        stack = read_stack(model, torch.device(device))
        experts, of_experts = read_experts(model, torch.device(device))
    except NotFinite as error:
        raise not_finite(model, error) from error
    for layer, threshold_of, of_layer in zip(stack.layers, thresholds, run, strict=True):
        layer.threshold = threshold_of
        layer.activations, layer.gradients = of_layer

    chance = by_chance(stack, COUNTED, resamples, seed, whole=False)
    for layer, by, of_partners in zip(stack.layers, chance, partners(stack), strict=True):
        layer.chance, layer.partners = by, of_partners
    rows = [measure(layer) for layer in stack.layers]
    expected = expected_by_shape(stack, seed)
    headless = {layer.index for layer in stack.layers if layer.heads is None and "o" in layer.shapes}
    roles = {name: score(rows, expected, headless) for name, score in SCORINGS.items()}

    options = Options(
        reference=None if compared is None else str(compared),
        optimizer=None if optimizer is None else str(optimizer),
        resamples=resamples,
        seed=seed,
        weights=weights,
        base=None if base is None else str(base),
        delta=delta,
        probed=tokens is not None,
        tokens=None if forwards is None else forwards.numel(),
        gradients=None if backwards is None else backwards.numel(),
        unprobed=unprobed(named) if weights is None else _of_several(weights),
    )
    absent = missing(rows)
    uniform = [{} if delta else layer.uniform for layer in stack.layers]  # an adapter adds nothing to most
    return Reading(
        schema=SCHEMA,
        definitions=DEFINITIONS,
        source=named.name if isinstance(named, Live) else str(source),
        family=model.family_name,
        assumed=model.assumed,
        heads_assumed=model.heads_assumed,
        step=_step(named, model),
        declared=model.description.declared,
        scoring=scoring,
        options=options,
        missing=absent,
        substitutes={name: of for name, of in _substitutes(stack).items() if name not in absent},
        layers=_reports(model, stack, rows, roles, scoring, experts),
        totals={key: _total([row[key] for row in rows if row["saturated"] is not None]) for key in TOTALS},
        matrices=Matrices(_digits(written_before(stack.compositions)), _digits(stack.matches)),
        pathology=[
            *unread(model, delta),
            *findings(rows, [layer.names for layer in stack.layers], uniform),
            *of_experts,
        ],
    )


def _step(source: Path | Live, model: CheckpointModel) -> int | None:
    """The step that our checkpoint, or another's, says or is named for; None for a model in memory."""
    if model.description.step is not None or isinstance(source, Live):
        return model.description.step
    return recorded_step(source, model.tensors.metadata)


def _refuse_options(scoring: str, resamples: int, weights: str | None, probed: bool) -> None:
    """Raise `UserError` for options that cannot work, whatever the source is."""
    if scoring not in SCORINGS:
        known = ", ".join(SCORINGS)
        raise UserError(f"scoring={scoring} is unknown{nearest(scoring, SCORINGS)}: choose one of {known}.")
    if resamples < 2:
        raise UserError(f"resamples={resamples} has no spread to compare with: use 2 or more (10 is the default).")
    if weights is not None and probed:
        raise UserError(_of_several(weights))


def _of_several(weights: str) -> str:
    return f"weights={weights} is one of several models, and a probe runs one that is whole: leave one out."


def _refuse_base(source: Path | Live, base: str | Path | None, delta: bool) -> None:
    """Raise `UserError` for a base of what is no adapter, and for a change without one."""
    if base is not None and not (isinstance(source, Path) and is_adapter(source)):
        raise UserError(f"base={base} is for LoRA adapters on disk, and the source is none: leave it out.")
    if delta and base is None:
        raise UserError("delta=True needs the adapter's base, whose shapes it is read in: name it (--base).")


def _named(source: Source, config: Any) -> Path | Live:
    """The path, or the model in memory. Raises `UserError` for anything else."""
    if isinstance(source, nn.Module | Mapping):
        return live(source, config)
    if not isinstance(source, str | Path):
        raise UserError(f"A {type(source).__name__} cannot be read: give a path, a state dict or a module.")
    if config is not None:
        raise UserError(
            f"config={type(config).__name__} describes a model in memory, and {source} is a path: "
            "put its config.json beside the weights."
        )
    return Path(source)


def read_stack(model: CheckpointModel, device: torch.device) -> Stack:
    """Every layer's statistics and their compositions, with one layer's weights in memory at a time."""
    typical = medians(model)
    compositions = Compositions(max(layer.width for layer in model))
    layers: list[LayerStatistics] = []
    with workers() as pool:
        add_head(model, compositions, device, add_embedding(model, compositions, device))
        stream = random_stream(model, device)
        for layer in model:
            layers.append(reduce_layer(layer, compositions, device, pool, stream, typical))
            pool.submit(getattr, layers[-1], "clusters")  # needs no weights: beside the next layer's reading
            del layer
            trim()
        return Stack(layers, compositions.matrix())


def expected_by_shape(stack: Stack, seed: int) -> Chance:
    """Values by chance of the measures that depend on a layer's shape; empty where each kind has one shape."""
    shapes = {(kind, shape) for layer in stack.layers for kind, shape in layer.shapes.items()}
    if len(shapes) == len({kind for kind, _ in shapes}):
        return [{} for _ in stack.layers]
    return by_chance(stack, SHAPED, SHAPES, seed, whole=True)


def missing(rows: Sequence[dict[str, Value]]) -> list[str]:
    """Names of the measures that no layer has; all of `momentum_alignment.*` are one."""
    present = {key.split(".")[0] for row in rows for key, value in row.items() if value is not None}
    return sorted({key.split(".")[0] for key in rows[0]} - present)


def _total(values: Sequence[Value]) -> Value:
    known = [value for value in values if value is not None]
    return sum(known) if known and len(known) == len(values) else None


def _digits(matrix: np.ndarray) -> list[list[Value]]:
    """Rows of the matrix, to four digits; None for NaN."""
    return [[float(f"{value:.4g}") if np.isfinite(value) else None for value in row] for row in matrix.tolist()]


def first_step(model: CheckpointModel) -> Path | None:
    """Step 0 beside one of our own checkpoints; None where it is gone."""
    directory = model.directory if model.directory.name else model.directory.resolve()
    if model.description.step is None or step_in(directory.name) is None:
        return None
    reference = directory.with_name(name_of(0))
    return reference if reference.is_dir() else None


def _reference(
    model: CheckpointModel, named: Path | None, choice: dict[str, Any]
) -> tuple[Path | None, list[float | None]]:
    """The reference and its threshold of `saturated_fixed` for every layer; none where the implied step 0 is broken."""
    path = first_step(model) if named is None else named
    nothing: list[float | None] = [None] * len(model)
    if path is None:
        return None, nothing
    try:
        reference = CheckpointModel(path, **choice)
        if len(reference) != len(model):
            raise UserError(
                f"{reference.directory} has {len(reference)} layers, {model.directory} has {len(model)}: "
                "the reference must be a checkpoint of the same run."
            )
        return path, [threshold(layer) for layer in reference]
    except UserError:
        if named is not None:
            raise
        return None, nothing


def _reports(
    model: CheckpointModel,
    stack: Stack,
    rows: Sequence[dict[str, Value]],
    roles: Mapping[str, Sequence[Role]],
    scoring: str,
    experts: Sequence[list[ExpertReport]],
) -> list[LayerReport]:
    """The layer reports, from the measures of each layer, its role by each scoring, and its experts."""
    bars = _super_weight_bars([layer.chance.get("super_weight_ratio") for layer in stack.layers])
    return [
        LayerReport(
            layer=layer.index,
            **vars(roles[scoring][layer.index]),
            role_paper=roles["paper"][layer.index].role,
            scorings={name: by_layer[layer.index] for name, by_layer in roles.items()},
            width=layer.width,
            super_weight=_super_weight(layer, row, bar),
            measures=row,
            holds=model.holdings(layer.index),
            experts=experts[layer.index],
        )
        for layer, row, bar in zip(stack.layers, rows, bars, strict=True)
    ]


def _super_weight_bars(draws: Sequence[np.ndarray | None]) -> list[Value]:
    """The largest `super_weight_ratio` by chance, per layer: the largest of all drawn layers' over its own median.

    So no bar hangs on the scale of another layer, which may have exploded.
    """
    typical = [None if of is None else float(np.median(of)) for of in draws]
    both = zip(draws, typical, strict=True)
    largest = max((float(of.max()) / median for of, median in both if of is not None and median), default=1.0)
    return [None if median is None else largest * median for median in typical]


def _super_weight(layer: LayerStatistics, row: dict[str, Value], bar: Value) -> SuperWeight | None:
    """The entry of `down` that writes most; None where any drawn layer has one as strong."""
    ratio = row["super_weight_ratio"]
    if layer.loudest is None or ratio is None or bar is None or ratio <= bar:
        return None
    return SuperWeight(*layer.loudest)


def _substitutes(stack: Stack) -> dict[str, str]:
    """Measure → its substitute, for measures that were not read from the first choice of their definition."""
    first, found = stack.layers[0], {}
    if not any("post_ffn" in layer.gammas for layer in stack.layers) and "pre_ffn" in first.gammas:
        found["gamma_concentration"] = "the FFN's pre-norm: there is no post-norm"
    kinds = {kind for layer in stack.layers for kind in layer.shapes}
    if "down" in kinds and "gate" not in kinds:
        found["co_magnitude"] = "‖up‖·‖down‖ of each position: there is no gate"
        found["down_ratio"] = "down over up: there is no gate"
    if first.streamed and not first.activations:
        found |= dict.fromkeys(STREAMED, "a stream of random tokens: there is no activation probe")
    return found
