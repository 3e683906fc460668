"""One page per document: roles over depth or over time, and the measures behind them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any

import numpy as np

from orchestrator.compare.palette import ROLES, arm_colour, colour, letter
from orchestrator.forensics.anatomy import KINDS
from orchestrator.forensics.pathology import CRITICAL, WARN
from orchestrator.forensics.terminal import Layer, Result, has_role
from orchestrator.forensics.trajectory import mean_cv, ratios, worst

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, DPI = 14.0, 100  # inches, dots per inch: 1400 pixels
PANEL = 2.6  # inches of a row of panels
HEADING = 1.0  # inches
MANY = 48  # cells in a row from which letters would touch
LONGEST = 110  # characters of a source in the title
INK, QUIET, PALE = "#222222", "#777777", "#F3F3F3"
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": "#BBBBBB",
    "axes.labelcolor": QUIET,
    "axes.labelsize": 9,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid.axis": "y",
    "grid.color": "#ECECEC",
    "xtick.color": "#BBBBBB",
    "ytick.color": "#BBBBBB",
    "xtick.labelcolor": QUIET,
    "ytick.labelcolor": QUIET,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.5,
    "lines.markersize": 4,
}

CV = "Spread (CV) of FFN co-magnitude"
SATURATED = "Saturated FFN positions"
NORMS = "Largest spectral norm over its peers'"
RANK = "Effective rank of o over full rank"
ATTENTION = "Attention's share of energy"
COMPOSITION = "Composition with other layers"
RULES = {"calibrated": "roles above chance", "paper": "roles by the paper's rule"}


def styled(draw: Callable[[Mapping[str, Any]], Figure]) -> Callable[[Mapping[str, Any]], Figure]:
    """`draw` in this page's style, whatever the user's own matplotlib settings are."""

    @wraps(draw)
    def drawn(document: Mapping[str, Any]) -> Figure:
        import matplotlib

        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(STYLE)
            return draw(document)

    return drawn


@styled
def single(result: Result) -> Figure:
    """Role scores of one checkpoint over depth, and six measures."""
    layers = result["layers"]
    figure, strip, panels = _page(_named(result), f"Layer by layer: {RULES[result['scoring']]}", 2.4, rows=2)
    _scores(strip[0], result)
    _bars(panels[0], layers, "cv")
    panels[0].set_title(CV)
    _bars(panels[1], layers, "saturated_robust", "saturated_robust_expected")
    panels[1].set_title(f"{SATURATED}, and what chance gives (–)")
    _norms(panels[2], _worst_by_layer(layers), INK)
    panels[2].set_title(NORMS)
    for axes, key, title in ((panels[3], "effective_rank.o_fraction", RANK), (panels[4], "attention_share", ATTENTION)):
        _line(axes, _values(layers, key), INK)
        axes.set_title(title)
    _line(panels[5], _values(layers, "sink_mean"), arm_colour(0), "reads from below")
    _line(panels[5], _values(layers, "source_mean"), arm_colour(1), "is read above")
    panels[5].set_title(COMPOSITION)
    _over_depth(panels, len(layers))
    return figure


@styled
def pair(document: Mapping[str, Any]) -> Figure:
    """Roles and measures of two models over depth."""
    arms = {"A": document["a"], "B": document["b"]}
    title = "\n".join(f"{arm}   {_named(result)}" for arm, result in arms.items())
    figure, strip, panels = _page(title, f"Side by side: {RULES[document['a']['scoring']]}", 1.3, rows=2)
    depth = max(len(result["layers"]) for result in arms.values())
    roles = [[layer["role"] for layer in result["layers"]] for result in arms.values()]
    _cells(strip[0], roles, list(arms), depth)
    lines = [
        ("cv", None, CV),
        ("saturated_robust", "saturated_robust_expected", f"{SATURATED} (dotted: by chance)"),
        (None, None, NORMS),
        ("effective_rank.o_fraction", None, RANK),
        ("attention_share", None, ATTENTION),
        ("sink_mean", "source_mean", "Composition: reads from below, is read above (dotted)"),
    ]
    for axes, (solid, dotted, title) in zip(panels, lines, strict=True):
        axes.set_title(title)
        for index, (arm, result) in enumerate(arms.items()):
            if solid is None:
                _norms(axes, _worst_by_layer(result["layers"]), arm_colour(index))
                continue
            _line(axes, _values(result["layers"], solid), arm_colour(index), arm if solid == "cv" else "")
            if dotted is not None:
                _line(axes, _values(result["layers"], dotted), arm_colour(index), style=":")
    _over_depth(panels, depth)
    return figure


@styled
def run(document: Mapping[str, Any]) -> Figure:
    """Roles and spread over layers and checkpoints, and what the run as a whole does."""
    results = document["checkpoints"]
    depth = len(results[0]["layers"])
    tall = max(2.4, 0.24 * depth)
    source = _short(document["source"])
    figure, strip, panels = _page(source, f"Over training: {RULES[results[0]['scoring']]}", tall, rows=1, strips=2)
    _cells(strip[0], np.array([[layer["role"] for layer in r["layers"]] for r in results]).T.tolist(), range(depth))
    strip[0].set_title("Roles")
    strip[0].set_ylabel("layer")
    _heat(strip[1], np.array([_values(result["layers"], "cv") for result in results]).T, CV)
    for axes in strip:
        _over_checkpoints(axes, results)
    steps = [result["step"] for result in results]
    panels[0].plot(steps, [mean_cv(result) for result in results], "o-", color=INK)
    panels[0].set_title("Mean spread (CV) of FFN co-magnitude")
    for key, style, label in (("saturated_robust", "o-", "counted"), ("saturated_robust_expected", "o:", "by chance")):
        totals = np.array([result["totals"][key] for result in results], dtype=float)
        panels[1].plot(steps, totals, style, color=INK if style == "o-" else QUIET, label=label)
    panels[1].set_title(f"{SATURATED} of all layers")
    panels[2].set_title(NORMS)
    _norms(panels[2], [worst(result) for result in results], INK, at=steps)
    for axes in panels:
        _finish(axes, "step")
    return figure


def _page(title: str, subtitle: str, tall: float, rows: int, strips: int = 1) -> tuple[Figure, list[Axes], list[Axes]]:
    """A page with its heading, `strips` axes side by side (`tall` inches high), and `rows` of three panels."""
    from matplotlib.figure import Figure

    height = HEADING + tall + rows * PANEL
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, facecolor="white")
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.1, wspace=0.02, hspace=0.03)
    lines = title.count("\n") + 1
    figure.suptitle(" \n" * lines, fontsize=13)  # keeps the room
    top = 1 - 0.16 / height
    figure.text(0.012, top, title, fontsize=13, fontweight="bold", va="top", linespacing=1.3)
    figure.text(0.012, top - lines * 0.245 / height, subtitle, fontsize=10.5, color=QUIET, va="top")
    above, below = figure.subfigures(2, 1, height_ratios=[tall, rows * PANEL])
    upper = above.subplots(1, strips, squeeze=False)
    return figure, list(upper.flat), list(below.subplots(rows, 3, squeeze=False).flat)


def _scores(axes: Axes, result: Result) -> None:
    """Roles down, layers across: the stronger a score above ½, the fuller its role's colour; a last row for ties."""
    layers = result["layers"]
    scores = np.array([[layer["scores"][role] for layer in layers] for role in ROLES], dtype=float)  # [4, L]
    excess = np.clip(np.nan_to_num(scores, nan=0.5) - 0.5, 0, None)
    strength = excess / max(0.1, excess.max())
    leads = np.array([[layer["role"] == role for layer in layers] for role in ROLES])
    strength[leads] = np.maximum(strength[leads], 0.35)  # a role can also lead because the others fall behind
    rival = "paper" if result["scoring"] == "calibrated" else "calibrated"
    rivals = [layer["scorings"][rival]["role"] for layer in layers]
    shades = [[_tint(colour(role), s) for s in row] for role, row in zip(ROLES, strength, strict=True)]
    shades.append([_tint(colour(role), 0.3) for role in rivals])
    _image(axes, shades)
    if len(layers) <= MANY:
        for x, layer in enumerate(layers):
            if has_role(layer):
                y = list(ROLES).index(layer["role"])
                shade = "white" if strength[y, x] > 0.6 else INK
                axes.text(x, y, letter(layer["role"]), ha="center", va="center", fontweight="bold", color=shade)
            axes.text(x, len(ROLES), letter(rivals[x]), ha="center", va="center", color=QUIET, fontsize=9)
    axes.axhline(len(ROLES) - 0.5, color="white", linewidth=6)
    axes.set_yticks(range(len(ROLES) + 1), [*ROLES, {"paper": "paper's rule", "calibrated": "above chance"}[rival]])
    for tick, role in zip(axes.get_yticklabels(), ROLES, strict=False):
        tick.set_color(colour(role))
    if not any(map(has_role, layers)):
        said = "no layer differs from chance" if result["scoring"] == "calibrated" else "no role leads anywhere"
        axes.text((len(layers) - 1) / 2, 1.5, said, ha="center", va="center", color=QUIET, fontsize=12)
    _whole_numbers(axes)


def _cells(axes: Axes, roles: Sequence[Sequence[str]], labels: Sequence[Any], across: int | None = None) -> None:
    """One coloured cell, with its letter, for each role; rows of unequal length end early."""
    width = across or len(roles[0])
    shades = [[_tint(colour(role), 1 if "/" not in role else 0.25) for role in row] for row in roles]
    _image(axes, [row + [(1.0, 1.0, 1.0)] * (width - len(row)) for row in shades])
    if width <= MANY:
        for y, row in enumerate(roles):
            for x, role in enumerate(row):
                shade = QUIET if "/" in role else "white"
                axes.text(x, y, letter(role), ha="center", va="center", color=shade, fontweight="bold", fontsize=9)
    step = 1 + len(labels) // 30
    axes.set_yticks(range(0, len(labels), step), [str(label) for label in labels][::step])
    _whole_numbers(axes)


def _heat(axes: Axes, values: np.ndarray, title: str) -> None:
    """Layers down, checkpoints across."""
    image = axes.imshow(values, aspect="auto", cmap="Greys", vmin=0)
    axes.figure.colorbar(image, ax=axes, fraction=0.03, pad=0.01).outline.set_visible(False)  # type: ignore[operator]
    axes.spines[:].set_visible(False)
    axes.set_yticks([])
    axes.set_title(title)


def _image(axes: Axes, shades: Sequence[Sequence[tuple[float, ...]]]) -> None:
    """Coloured cells with white joints."""
    image = np.array(shades, dtype=float)  # [rows, columns, 3]
    axes.imshow(image, aspect="auto", interpolation="nearest")
    joint = 2.0 if image.shape[1] <= MANY else 0.5
    for x in range(1, image.shape[1]):
        axes.axvline(x - 0.5, color="white", linewidth=joint)
    for y in range(1, image.shape[0]):
        axes.axhline(y - 0.5, color="white", linewidth=joint)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)


def _bars(axes: Axes, layers: Sequence[Layer], key: str, chance: str | None = None) -> None:
    """A bar per layer in its role's colour, and a dash where chance would end it."""
    axes.bar(range(len(layers)), _values(layers, key), color=[colour(layer["role"]) for layer in layers], width=0.75)
    if chance is not None:
        axes.hlines(_values(layers, chance), np.arange(len(layers)) - 0.42, np.arange(len(layers)) + 0.42, color=INK)


def _line(axes: Axes, values: np.ndarray, shade: str, label: str = "", style: str = "-") -> None:
    marker = "o" if style == "-" and len(values) <= MANY else ""
    axes.plot(range(len(values)), values, f"{marker}{style}", color=shade, label=label or "_")


def _norms(axes: Axes, values: Sequence[float], shade: str, label: str = "", at: Sequence[int] | None = None) -> None:
    """Ratios on a logarithmic axis; those at which they are a pathology are dashed lines with coloured ticks."""
    known = np.array([value or np.nan for value in values])
    axes.set_yscale("log")
    axes.plot(range(len(known)) if at is None else at, known, "o-", color=shade, label=label or "_")
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, 0.8), max(high, 1.6 * CRITICAL))
    ticks = [tick for tick in (1, 3, 10, 30, 100, 300, 1000, 10_000) if tick <= axes.get_ylim()[1]]
    axes.set_yticks(ticks, [f"{tick:,}×" for tick in ticks])
    axes.minorticks_off()
    for level, severity in ((WARN, "#E69F00"), (CRITICAL, "#D55E00")):
        axes.axhline(level, color=severity, linewidth=1, linestyle="--")
        axes.get_yticklabels()[ticks.index(int(level))].set_color(severity)


def _worst_by_layer(layers: Sequence[Layer]) -> list[float]:
    """Per layer, the largest ratio of any of its matrices."""
    return [max(of_layer) for of_layer in zip(*(ratios(layers, kind) for kind in KINDS), strict=True)]


def _values(layers: Sequence[Layer], key: str) -> np.ndarray:
    """[L]; NaN where a layer lacks the measure."""
    return np.array([layer["measures"][key] for layer in layers], dtype=float)


def _over_depth(panels: Sequence[Axes], depth: int) -> None:
    for axes in panels:
        axes.set_xlim(-0.6, depth - 0.4)
        _finish(axes, "layer")


def _finish(axes: Axes, label: str) -> None:
    """Grid, from zero, whole numbers below, a legend where lines have names."""
    axes.grid(True)
    axes.set_xlabel(label)
    _whole_numbers(axes)
    if axes.get_yscale() == "linear" and axes.dataLim.y1 > 0:
        axes.set_ylim(0, 1.15 * axes.dataLim.y1)
    if axes.get_legend_handles_labels()[1]:
        place = {"loc": "lower right", "bbox_to_anchor": (1.01, 0.99), "borderaxespad": 0.2}  # beside the title
        axes.legend(ncols=2, handlelength=1.4, columnspacing=1.2, **place)


def _over_checkpoints(axes: Axes, results: Sequence[Result]) -> None:
    every = 1 + (len(results) - 1) // 10
    axes.set_xticks(range(0, len(results), every), [f"{result['step']:,}" for result in results[::every]])
    axes.set_xlabel("step")


def _whole_numbers(axes: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True, min_n_ticks=1))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def _tint(shade: str, strength: float) -> tuple[float, ...]:
    """From nearly white to the colour itself."""
    from matplotlib.colors import to_rgb

    return tuple(s * strength + p * (1 - strength) for s, p in zip(to_rgb(shade), to_rgb(PALE), strict=True))


def _named(result: Result) -> str:
    step = "" if result["step"] is None else f" · step {result['step']:,}"
    return f"{_short(result['source'])} · {result['family']}{step}"


def _short(source: str) -> str:
    return source if len(source) <= LONGEST else f"…{source[1 - LONGEST :]}"
