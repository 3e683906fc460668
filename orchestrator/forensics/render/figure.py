"""Figures of a reading, of two side by side, and of a trajectory: roles and the main measures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from orchestrator.common.palette import arm_line
from orchestrator.forensics.architecture.kinds import KINDS
from orchestrator.forensics.reading import LayerReport, Reading
from orchestrator.forensics.render import panels
from orchestrator.forensics.render.panels import INK, MANY, PALE, QUIET, styled
from orchestrator.forensics.render.side_by_side import SideBySide
from orchestrator.forensics.render.terminal import RIVALS, leads, nothing
from orchestrator.forensics.render.trajectory import Trajectory, mean_cv, ratios, step_of, worst
from orchestrator.forensics.roles.palette import colour
from orchestrator.forensics.roles.routing import ROLES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LONGEST = 84  # characters of a source in the title

CV = "Spread (CV) of FFN co-magnitude"
SATURATED = "Saturated FFN positions"
NORMS = "Largest spectral norm over its peers'"
RANK = "Effective rank of o over full rank"
ATTENTION = "Attention's share of energy"
COMPOSITION = "Composition"
RULES = {"calibrated": "roles above chance", "paper": "roles by the paper's rule"}
DASH = "a letter: that role leads · –: none does"


@styled
def single(reading: Reading) -> Figure:
    """Role scores of one checkpoint over depth, and six measures."""
    layers = reading.layers
    subtitle = f"Layer by layer: {RULES[reading.scoring]} · the fuller the colour, the higher the score · {DASH}"
    figure, (strip,), below = panels.page(_named(reading), subtitle, 2.4, rows=2)
    _scores(strip, reading)
    shades = [colour(layer.role) for layer in layers]
    panels.bars(below[0], _values(layers, "cv"), shades)
    below[0].set_title(CV)
    by_chance = _values(layers, "saturated_robust_expected")
    panels.bars(below[1], _values(layers, "saturated_robust"), shades, by_chance)
    below[1].set_title(f"{SATURATED} (black: by chance)")
    panels.norms(below[2], {INK: _worst_by_layer(layers)})
    below[2].set_title(NORMS)
    for axes, key, title in ((below[3], "effective_rank.o_fraction", RANK), (below[4], "attention_share", ATTENTION)):
        panels.line(axes, _values(layers, key), INK)
        axes.set_title(title)
    panels.line(below[5], _values(layers, "sink_mean"), arm_line(0).colour, "reads from below")
    panels.line(below[5], _values(layers, "source_mean"), arm_line(1).colour, "is read above")
    below[5].set_title(COMPOSITION)
    panels.over_depth(below, len(layers))
    return figure


@styled
def side_by_side(both: SideBySide) -> Figure:
    """Roles and measures of two models over depth."""
    arms = {"A": both.a, "B": both.b}
    title = "\n".join(f"{arm}   {_named(reading)}" for arm, reading in arms.items())
    subtitle = f"Side by side: {RULES[both.a.scoring]} · {DASH}"
    figure, (strip,), below = panels.page(title, subtitle, 1.3, rows=2)
    depth = max(len(reading.layers) for reading in arms.values())
    roles = [[layer.role for layer in reading.layers] for reading in arms.values()]
    panels.cells(strip, roles, list(arms), depth)
    lines = {  # title → what is drawn in full, and what is dotted
        CV: ("cv", None),
        f"{SATURATED} (dotted: by chance)": ("saturated_robust", "saturated_robust_expected"),
        RANK: ("effective_rank.o_fraction", None),
        ATTENTION: ("attention_share", None),
        "Composition: reads from below, is read above (dotted)": ("sink_mean", "source_mean"),
    }
    for axes, (title, (solid, dotted)) in zip([*below[:2], *below[3:]], lines.items(), strict=True):
        axes.set_title(title)
        for index, (arm, reading) in enumerate(arms.items()):
            panels.line(axes, _values(reading.layers, solid), arm_line(index).colour, arm if solid == "cv" else "")
            if dotted is not None:
                panels.line(axes, _values(reading.layers, dotted), arm_line(index).colour, style=":")
    panels.norms(below[2], {arm_line(i).colour: _worst_by_layer(arms[arm].layers) for i, arm in enumerate("AB")})
    below[2].set_title(NORMS)
    panels.over_depth(below, depth)
    return figure


@styled
def trajectory(run: Trajectory) -> Figure:
    """Roles and spread over layers and checkpoints, and the run's totals."""
    readings = run.checkpoints
    steps = [step_of(reading) for reading in readings]
    depth = len(readings[0].layers)
    subtitle = f"Over training: {RULES[readings[0].scoring]} · {DASH}"
    tall = max(2.4, 0.24 * depth)
    figure, strip, below = panels.page(_short(run.source), subtitle, tall, rows=1, strips=2)
    roles = [[reading.layers[layer].role for reading in readings] for layer in range(depth)]
    panels.cells(strip[0], roles, range(depth))
    strip[0].set_title("Roles")
    strip[0].set_ylabel("layer")
    panels.heat(strip[1], np.array([_values(reading.layers, "cv") for reading in readings]).T, CV)
    for axes in strip:
        panels.over_checkpoints(axes, steps, run.unit)
    below[0].plot(steps, [mean_cv(reading) for reading in readings], "o-", color=INK)
    below[0].set_title(f"{CV}, mean")
    for key, style, label in (("saturated_robust", "o-", "counted"), ("saturated_robust_expected", "o:", "by chance")):
        totals = np.array([reading.totals[key] for reading in readings], dtype=float)
        below[1].plot(steps, totals, style, color=INK if style == "o-" else QUIET, label=label)
    below[1].set_title(SATURATED)
    panels.norms(below[2], {INK: [worst(reading) for reading in readings]}, at=steps)
    below[2].set_title(NORMS)
    for axes in below:
        panels.finish(axes, run.unit)
    return figure


def _scores(axes: Axes, reading: Reading) -> None:
    """Roles down, layers across: the stronger a score above ½, the fuller its role's colour; then the other rule's."""
    layers = reading.layers
    rivals = [layer.scorings[RIVALS[reading.scoring]].role for layer in layers]
    strength = _strengths(layers)
    shades = [[panels.tint(colour(role), s) for s in row] for role, row in zip(ROLES, strength, strict=True)]
    panels.image(axes, [*shades, [panels.tint(colour(role), 0.3) for role in rivals]])
    if len(layers) <= MANY:
        for x, (layer, rival) in enumerate(zip(layers, rivals, strict=True)):
            if leads(layer.role):
                y = ROLES.index(layer.role)
                panels.mark(axes, x, y, layer.role, "white" if strength[y, x] > 0.6 else INK, fontweight="bold")
            panels.mark(axes, x, len(ROLES), rival, QUIET)
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
    """[4, L] in 0…1: how far each score is above ½, against the strongest."""
    scores = np.array([[layer.scores[role] for layer in layers] for role in ROLES], dtype=float)
    excess = np.clip(np.nan_to_num(scores, nan=0.5) - 0.5, 0, None)
    strength = excess / max(0.1, excess.max())
    leading = np.array([[layer.role == role for layer in layers] for role in ROLES])
    strength[leading] = np.maximum(strength[leading], 0.35)  # a role may lead because the others are lower
    return np.asarray(strength)


def _worst_by_layer(layers: Sequence[LayerReport]) -> list[float]:
    """Per layer, the largest ratio of any of its matrices."""
    return [max(of_layer) for of_layer in zip(*(ratios(layers, kind) for kind in KINDS), strict=True)]


def _values(layers: Sequence[LayerReport], key: str) -> np.ndarray:
    """[L]; NaN where a layer lacks the measure."""
    return np.array([layer.measures[key] for layer in layers], dtype=float)


def _named(reading: Reading) -> str:
    step = "" if reading.step is None else f" · step {reading.step:,}"
    return f"{_short(reading.source)} · {reading.family}{step}"


def _short(source: str) -> str:
    return source if len(source) <= LONGEST else f"…{source[1 - LONGEST :]}"
