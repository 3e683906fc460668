"""Figures of one reading, of two side by side, and of a trajectory: roles and the main measures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from orchestrator.common.palette import arm_line
from orchestrator.forensics.architecture.holdings import USUAL
from orchestrator.forensics.architecture.kinds import KINDS
from orchestrator.forensics.reading import LayerReport, Matrices, Reading
from orchestrator.forensics.render import panels
from orchestrator.forensics.render.panels import INK, MANY, PALE, QUIET, styled
from orchestrator.forensics.render.side_by_side import SideBySide
from orchestrator.forensics.render.terminal import RIVALS, leads, nothing, shown
from orchestrator.forensics.render.trajectory import Trajectory, mean_cv, ratios, step_of, worst
from orchestrator.forensics.roles.palette import colour
from orchestrator.forensics.roles.routing import ROLES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PALEST = 0.15  # strength of a score in a layer without a role: a dark cell would look like one
LONGEST = 84  # characters of a source in the title

CV = "Spread (CV) of FFN co-magnitude"
SATURATED = "Saturated FFN positions"
NORMS = "Largest spectral norm over its peers'"
RANK = "Effective rank of o over full rank"
ATTENTION = "Attention's share of energy"
HEATS = (("cv", CV), ("effective_rank.o_fraction", RANK))  # over layers and checkpoints: the first that layers have
RULES = {"calibrated": "roles above chance", "paper": "roles by the paper's rule"}
LETTERS = "a letter: that role leads · two letters: a tie · –: no role"
STRIPES = "a letter: that role leads · a tie of two: striped, in the last row half and half"


@styled
def single(reading: Reading) -> Figure:
    """Role scores of one checkpoint over depth, six measures, and where it has them the values of pairs of layers."""
    layers = reading.layers
    subtitle = f"Layer by layer: {RULES[reading.scoring]} · the fuller the colour, the higher the score · {STRIPES}"
    title = "\n".join(filter(None, [_named(reading), _held(layers)]))
    drawn = [panel for panel in _panels(reading) if panel.values.size and np.isfinite(panel.values).any()]
    figure, (strip,), below = panels.page(title, subtitle, 2.4, len(drawn))
    _scores(strip, reading)
    for axes, panel in zip(below, drawn, strict=True):
        panel.draw(axes)
        if panel.over_depth:
            panels.over_depth([axes], [panel.title], len(layers))
    return figure


@dataclass(frozen=True)
class Panel:
    """A panel of a page, which is left out where none of its values is known."""

    title: str
    values: np.ndarray
    draw: Callable[[Axes], object]
    over_depth: bool = True  # its x is the layer


def _panels(reading: Reading) -> list[Panel]:
    """The panels of one reading, in order, whether they have values or not."""
    layers = reading.layers
    shades = [colour(shown(layer)) for layer in layers]
    cv, saturated, by_chance, rank, attention, *composed = (
        _values(layers, key)
        for key in ("cv", "saturated_robust", "saturated_robust_expected", "effective_rank.o_fraction",
                    "attention_share", "sink_mean", "source_mean")
    )  # fmt: skip
    norms = np.array([value or np.nan for value in _worst_by_layer(layers)])
    found = [
        Panel(CV, cv, lambda axes: panels.bars(axes, cv, shades)),
        Panel(
            f"{SATURATED} (black: by chance)", saturated, lambda axes: panels.bars(axes, saturated, shades, by_chance)
        ),
        *_of_experts(layers),
        Panel(NORMS, norms, lambda axes: panels.norms(axes, {INK: norms.tolist()})),
        Panel(RANK, rank, lambda axes: panels.line(axes, rank, INK)),
        Panel(ATTENTION, attention, lambda axes: panels.line(axes, attention, INK)),
        _lines("Composition", {"reads below": composed[0], "is read above": composed[1]}),
    ]
    if reading.matrices is not None and len(layers) > 1:
        found += _pairs(layers, reading.matrices)
    return found


def _of_experts(layers: Sequence[LayerReport]) -> list[Panel]:
    """The least and the largest value over a mixture's experts, per layer."""
    routed = [[expert for expert in layer.experts if expert.expert is not None] for layer in layers]
    found = []
    for title, values in (
        ("Router's share of the places: least to most", [[of.router_share for of in experts] for experts in routed]),
        (
            "Spread (CV) within the experts: least to most",
            [[of.measures.get("cv") for of in experts] for experts in routed],
        ),
    ):
        known = [np.array([value for value in of if value is not None], dtype=float) for of in values]
        ends = np.array([(of.min(), of.max()) if of.size else (np.nan, np.nan) for of in known])  # [L, 2]
        found.append(Panel(title, ends, partial(panels.ranges, ends=ends)))
    return found


def _pairs(layers: Sequence[LayerReport], matrices: Matrices) -> list[Panel]:
    """Composition and coupling of all pairs of layers, and the number of each layer's partners."""
    composed, coupled = (np.array(of, dtype=float) for of in (matrices.composition, matrices.coupling))
    composed = composed[1:, : len(layers)]  # beside a tied embedding and head, whose composition is large, all is pale
    names = [str(layer.layer) for layer in layers]
    partners = {of: _values(layers, f"{of}_partners") for of in ("composition", "coupling")}
    return [
        Panel(
            title,
            values,
            partial(panels.pairs, values=values, title=title, down=names, across=names),
            False,
        )
        for title, values in (
            ("Composition: down, who writes; across, who reads", composed),
            ("Coupling: best match of two heads", coupled),
        )
    ] + [_lines("Partners", partners, "no layer has partners beyond chance")]


def _lines(title: str, lines: Mapping[str, np.ndarray], empty: str = "") -> Panel:
    """A panel of two lines, label → values; `empty` is written in it where all of them are 0."""
    values = np.array(list(lines.values()))

    def draw(axes: Axes) -> None:
        for index, (label, of) in enumerate(lines.items()):
            if np.isfinite(of).any():
                panels.line(axes, of, arm_line(index).colour, label)
        if empty and not np.nan_to_num(values).any():
            axes.text(0.5, 0.5, empty, transform=axes.transAxes, ha="center", va="center", color=QUIET)

    return Panel(title, values, draw)


@styled
def side_by_side(both: SideBySide) -> Figure:
    """Roles and measures of two models over depth."""
    arms = {"A": both.a, "B": both.b}
    title = "\n".join(f"{arm}   {_named(reading)}" for arm, reading in arms.items())
    subtitle = f"Side by side: {RULES[both.a.scoring]} · {LETTERS}"
    depth = max(len(reading.layers) for reading in arms.values())
    roles = [[shown(layer) for layer in reading.layers] for reading in arms.values()]
    lines = {  # title → the measure in full, and the dotted one
        CV: ("cv",),
        f"{SATURATED} (dotted: by chance)": ("saturated_robust", "saturated_robust_expected"),
        NORMS: (),
        RANK: ("effective_rank.o_fraction",),
        ATTENTION: ("attention_share",),
        "Composition: reads from below, is read above (dotted)": ("sink_mean", "source_mean"),
    }
    norms = {arm: _worst_by_layer(reading.layers) for arm, reading in arms.items()}
    lines = {
        title: keys
        for title, keys in lines.items()
        if any(np.isfinite(_values(reading.layers, key)).any() for key in keys for reading in arms.values())
        or (title == NORMS and any(any(of) for of in norms.values()))
    }
    figure, (strip,), below = panels.page(title, subtitle, 1.3, len(lines))
    panels.cells(strip, roles, list(arms), depth)
    named = next((title for title in (CV, RANK, ATTENTION) if title in lines), "")  # short: the legend stands beside it
    for index, (arm, reading) in enumerate(arms.items()):
        for axes, (title, keys) in zip(below, lines.items(), strict=True):
            for key, style in zip(keys, "-:", strict=False):
                label = arm if title == named and style == "-" else ""
                panels.line(axes, _values(reading.layers, key), arm_line(index).colour, label, style)
    if NORMS in lines:
        panels.norms(below[list(lines).index(NORMS)], {arm_line(i).colour: of for i, of in enumerate(norms.values())})
    panels.over_depth(below, lines, depth)
    return figure


@styled
def trajectory(run: Trajectory) -> Figure:
    """Roles and spread over layers and checkpoints, and the run's totals."""
    readings = run.checkpoints
    steps = [step_of(reading) for reading in readings]
    depth = len(readings[0].layers)
    subtitle = f"Over training: {RULES[readings[0].scoring]} · {LETTERS}"
    tall = max(2.4, 0.24 * depth)
    heats = ((title, np.array([_values(reading.layers, key) for reading in readings]).T) for key, title in HEATS)
    known = next(((title, values) for title, values in heats if np.isfinite(values).any()), None)
    drawn = [panel for panel in _over_time(readings, steps) if np.isfinite(panel.values).any()]
    figure, strip, below = panels.page(_short(run.source), subtitle, tall, len(drawn), strips=1 + (known is not None))
    roles = [[shown(reading.layers[layer]) for reading in readings] for layer in range(depth)]
    panels.cells(strip[0], roles, range(depth))
    strip[0].set_title("Roles")
    strip[0].set_ylabel("layer")
    if known is not None:
        panels.heat(strip[1], known[1], known[0])
    for axes in strip:
        panels.over_checkpoints(axes, steps, run.unit)
    for axes, panel in zip(below, drawn, strict=True):
        panel.draw(axes)
        panels.finish(axes, panel.title, run.unit)
    return figure


def _over_time(readings: Sequence[Reading], steps: Sequence[int]) -> list[Panel]:
    """The panels of a run, in order, whether they have values or not."""
    spread = np.array([mean_cv(reading) for reading in readings], dtype=float)
    saturated, by_chance = (
        np.array([reading.totals[key] for reading in readings], dtype=float)
        for key in ("saturated_robust", "saturated_robust_expected")
    )
    norms = [worst(reading) for reading in readings]

    def counts(axes: Axes) -> None:
        axes.plot(steps, saturated, "o-", color=INK, label="counted")
        axes.plot(steps, by_chance, "o:", color=QUIET, label="by chance")

    return [
        Panel(f"{CV}, mean", spread, lambda axes: axes.plot(steps, spread, "o-", color=INK)),
        Panel(SATURATED, saturated, counts),
        Panel(NORMS, np.array(norms), lambda axes: panels.norms(axes, {INK: norms}, at=steps)),
    ]


def _scores(axes: Axes, reading: Reading) -> None:
    """Draw the scores, roles down and layers across: the higher above ½, the fuller the colour; then the other rule.

    The cells of a tie are striped, each with its letter.
    """
    layers = reading.layers
    rivals = [shown(layer.scorings[RIVALS[reading.scoring]]) for layer in layers]
    strength = _strengths(layers)
    shades = [[panels.tint(colour(role), s) for s in row] for role, row in zip(ROLES, strength, strict=True)]
    panels.image(axes, [*shades, [panels.tint(colour(role), 0.3) for role in rivals]])
    for x, (layer, rival) in enumerate(zip(layers, rivals, strict=True)):
        leaders = shown(layer).split("/") if shown(layer) else []
        for role in leaders:
            y = ROLES.index(role)
            if len(leaders) > 1:
                panels.hatch(axes, x, y)
            if len(layers) <= MANY:
                shade = "white" if strength[y, x] > 0.6 and len(leaders) == 1 else INK
                panels.mark(axes, x, y, role, shade, fontweight="bold")
        panels.mark(axes, x, len(ROLES), rival, QUIET, write=len(layers) <= MANY)
    axes.axhline(len(ROLES) - 0.5, color="white", linewidth=6)
    others = {"calibrated": "paper's rule", "paper": "above chance"}[reading.scoring]
    axes.set_yticks(range(len(ROLES) + 1), [*ROLES, others])
    for tick, role in zip(axes.get_yticklabels(), ROLES, strict=False):
        tick.set_color(colour(role))
    if not any(leads(layer.role) for layer in layers):
        ground = {"facecolor": PALE, "edgecolor": "none", "pad": 6}
        middle = (len(layers) - 1) / 2
        axes.text(middle, 1.5, nothing(reading), ha="center", va="center", color=QUIET, fontsize=12, bbox=ground)
    panels.whole_numbers(axes)


def _strengths(layers: Sequence[LayerReport]) -> np.ndarray:
    """Each score's excess over ½, relative to the largest, [4, L] in 0…1; pale where the layer has no role."""
    scores = np.array([[layer.scores[role] for layer in layers] for role in ROLES], dtype=float)
    excess = np.clip(np.nan_to_num(scores, nan=0.5) - 0.5, 0, None)
    strength = excess / max(0.1, excess.max())
    leading = np.array([[role in shown(layer).split("/") for layer in layers] for role in ROLES])
    strength[leading] = np.maximum(strength[leading], 0.35)  # a role may lead because the others are lower
    return np.asarray(np.where(leading.any(axis=0), strength, np.minimum(strength, PALEST)))


def _worst_by_layer(layers: Sequence[LayerReport]) -> list[float]:
    """Per layer, the largest ratio of a matrix's spectral norm to its peers'."""
    return [max(of_layer) for of_layer in zip(*(ratios(layers, kind) for kind in KINDS), strict=True)]


def _values(layers: Sequence[LayerReport], key: str) -> np.ndarray:
    """One measure of every layer, [L]; NaN where a layer lacks it."""
    return np.array([layer.measures[key] for layer in layers], dtype=float)


def _held(layers: Sequence[LayerReport]) -> str:
    """The number of layers that hold each thing, `3 × attention, FFN`; empty where all hold the usual."""
    counts = Counter(", ".join(layer.holds) for layer in layers)
    unusual = any(layer.holds not in ([], USUAL) for layer in layers)
    return " · ".join(f"{count} × {holds}" for holds, count in counts.items()) if unusual else ""


def _named(reading: Reading) -> str:
    step = "" if reading.step is None else f" · step {reading.step:,}"
    return f"{_short(reading.source)} · {reading.family_and_layout}{step}"


def _short(source: str) -> str:
    return source if len(source) <= LONGEST else f"…{source[1 - LONGEST :]}"
