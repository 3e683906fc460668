"""Parts of a figure: heading, strips of coloured cells, and panels of bars and lines."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from orchestrator.forensics.measures.pathology import CRITICAL, WARN
from orchestrator.forensics.render.terminal import leads
from orchestrator.forensics.roles.palette import colour, letter

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

T = TypeVar("T")
WIDTH, DPI = 14.0, 100  # inches, dots per inch: 1400 pixels
PANEL = 2.6  # inches of a row of panels
HEADING = 1.0  # inches
MANY = 48  # cells in a row from which letters would touch
FLAT = 0.2  # a heat map spans at least this share of its largest value, so that noise stays grey
TIED = 0.55  # strength of the colours of a tie
INK, QUIET, PALE = "#222222", "#777777", "#F3F3F3"
LEVELS = {WARN: "#E69F00", CRITICAL: "#D55E00"}
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


def styled(draw: Callable[[T], Figure]) -> Callable[[T], Figure]:
    """`draw`, in the style of these figures whatever the user's own matplotlib settings are."""

    @wraps(draw)
    def drawn(document: T) -> Figure:
        import matplotlib

        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(STYLE)
            return draw(document)

    return drawn


def page(title: str, subtitle: str, tall: float, count: int, strips: int = 1) -> tuple[Figure, list[Axes], list[Axes]]:
    """A figure with its heading, `strips` axes side by side (`tall` inches high), and `count` panels, three a row."""
    from matplotlib.figure import Figure

    rows = max(1, -(-count // 3))
    height = HEADING + tall + rows * PANEL
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, facecolor="white")
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.1, wspace=0.02, hspace=0.03)
    lines = title.count("\n") + 1
    figure.suptitle(" \n" * lines, fontsize=13)  # reserves the room
    top = 1 - 0.16 / height
    as_written: dict[str, Any] = {"va": "top", "parse_math": False}  # a $ in a path starts no formula
    figure.text(0.012, top, title, fontsize=13, fontweight="bold", linespacing=1.3, **as_written)
    figure.text(0.012, top - lines * 0.245 / height, subtitle, fontsize=10.5, color=QUIET, **as_written)
    above, below = figure.subfigures(2, 1, height_ratios=[tall, rows * PANEL])
    upper = above.subplots(1, strips, squeeze=False)
    panels = list(below.subplots(rows, 3, squeeze=False).flat)
    for axes in panels[count:]:
        axes.remove()
    return figure, list(upper.flat), panels[:count]


def cells(axes: Axes, roles: Sequence[Sequence[str]], labels: Sequence[Any], across: int | None = None) -> None:
    """Draw one cell for each role: coloured with its letter; of a tie, half and half; empty without one.

    Shorter rows end early.
    """
    width = across or len(roles[0])
    empty, beyond = tint(PALE, 1), (1.0, 1.0, 1.0)
    shades = [[tint(colour(role), 1) if leads(role) else empty for role in row] for row in roles]
    image(axes, [row + [beyond] * (width - len(row)) for row in shades])
    for y, row in enumerate(roles):
        for x, role in enumerate(row):
            mark(axes, x, y, role, "white", write=width <= MANY, fontweight="bold")
    step = 1 + len(labels) // 30
    axes.set_yticks(range(0, len(labels), step), [str(label) for label in labels][::step])
    whole_numbers(axes)


def mark(axes: Axes, x: float, y: float, role: str, shade: str, write: bool = True, **font: Any) -> None:
    """Mark a cell: with a role's letter; with the halves and both letters of a tie; with a pale dash for no role.

    `write`: letters, where there is room for them.
    """
    centred: dict[str, Any] = {"ha": "center", "va": "center_baseline"}
    if "/" in role:
        parts = role.split("/")
        halves(axes, x, y, [tint(colour(part), TIED) for part in parts])
        if write:
            axes.text(x, y, "/".join(map(letter, parts)), color=INK, fontsize=7.5, **centred)
    elif write:
        text, shade = (letter(role), shade) if leads(role) else (letter(""), "#AAAAAA")
        axes.text(x, y, text, color=shade, fontsize=9, **centred, **font)


def halves(axes: Axes, x: float, y: float, shades: Sequence[tuple[float, ...]]) -> None:
    """Fill a cell with two triangles, the first one below the diagonal."""
    from matplotlib.patches import Polygon

    low, high = -0.5, 0.5
    lower_left, upper_right = (low, high), (high, low)  # rows are counted downwards
    for corner, shade in zip(((low, low), (high, high)), shades, strict=True):
        points = [(x + dx, y + dy) for dx, dy in (lower_left, corner, upper_right)]
        axes.add_patch(Polygon(points, facecolor=shade, edgecolor="none", zorder=0.9))


def hatch(axes: Axes, x: float, y: float) -> None:
    """Draw white stripes over a cell: its role shares the lead."""
    from matplotlib.patches import Rectangle

    stripes: dict[str, Any] = {"facecolor": "none", "edgecolor": "white", "hatch": "////", "linewidth": 0}
    axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, **stripes, zorder=0.9))


def image(axes: Axes, shades: Sequence[Sequence[tuple[float, ...]]]) -> None:
    """Draw coloured cells with white lines between them."""
    pixels = np.array(shades, dtype=float)  # [rows, columns, 3]
    axes.imshow(pixels, aspect="auto", interpolation="nearest")
    joint = 2.0 if pixels.shape[1] <= MANY else 0.5
    for x in range(1, pixels.shape[1]):
        axes.axvline(x - 0.5, color="white", linewidth=joint)
    for y in range(1, pixels.shape[0]):
        axes.axhline(y - 0.5, color="white", linewidth=joint)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)


def heat(axes: Axes, values: np.ndarray, title: str) -> None:
    """Draw values [layers, checkpoints] in greys, the largest darkest, with a colour bar; NaN is hatched."""
    known = values[np.isfinite(values)]
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
    room = max(0.0, FLAT * high - (high - low)) / 2
    shown = axes.imshow(values, aspect="auto", cmap="Greys", vmin=low - room, vmax=high + room + 1e-12)
    axes.patch.set(facecolor="white", edgecolor="#D5D5D5", hatch="////", linewidth=0)  # shows where a value is absent
    axes.figure.colorbar(shown, ax=axes, fraction=0.03, pad=0.01).outline.set_visible(False)  # type: ignore[operator]
    axes.spines[:].set_visible(False)
    axes.set_yticks([])
    axes.set_title(title)


def pairs(axes: Axes, values: np.ndarray, title: str, down: Sequence[str], across: Sequence[str]) -> None:
    """Draw values of pairs of layers [down, across] in greys; `down`, `across`: the names of rows and columns."""
    heat(axes, values, title)
    for names, place in ((down, axes.set_yticks), (across, axes.set_xticks)):
        shown = range(0, len(names), 1 + len(names) // 12)
        place(shown, [names[at] for at in shown])


def bars(axes: Axes, values: np.ndarray, shades: Sequence[str], chance: np.ndarray | None = None) -> None:
    """Draw a bar per layer in its role's colour, and a dash at the value by chance."""
    at = np.arange(len(values))
    axes.bar(at, values, color=shades, width=0.75)
    if chance is not None:
        axes.hlines(chance, at - 0.42, at + 0.42, color=INK)


def ranges(axes: Axes, ends: np.ndarray) -> None:
    """Draw a bar from the least to the largest value of each layer, `ends` [L, 2]; nothing where they are NaN."""
    at = np.arange(len(ends))
    axes.vlines(at, *ends.T, color="#BBBBBB", linewidth=5)
    for values in ends.T:
        axes.plot(at, values, "o", color=INK)


def line(axes: Axes, values: np.ndarray, shade: str, label: str = "", style: str = "-") -> None:
    """Draw a line with one value per layer; points are marked where there is room for them."""
    marker = "o" if style == "-" and len(values) <= MANY else ""
    axes.plot(range(len(values)), values, f"{marker}{style}", color=shade, label=label or "_")


def norms(axes: Axes, lines: Mapping[str, Sequence[float]], at: Sequence[int] | None = None) -> None:
    """Draw lines of ratios, colour → values, on a logarithmic axis, with dashed lines at the levels of pathologies."""
    axes.set_yscale("log")
    for shade, values in lines.items():
        known = np.array([value or np.nan for value in values])
        marker = "o" if len(known) <= MANY else ""
        axes.plot(range(len(known)) if at is None else at, known, f"{marker}-", color=shade)
    low, high = axes.get_ylim() if np.isfinite(axes.dataLim.y0) else (1.0, 1.0)
    axes.set_ylim(min(low, 0.8), max(high, 1.6 * CRITICAL))
    ticks = [tick for tick in (1, 3, *(10**n * m for n in range(1, 13) for m in (1, 3))) if tick <= axes.get_ylim()[1]]
    ticks = ticks if len(ticks) <= 7 else [tick for tick in ticks if str(tick)[0] == "1" or tick == CRITICAL]
    axes.set_yticks(ticks, [f"{tick:,}×" for tick in ticks])
    axes.minorticks_off()
    for level, shade in LEVELS.items():
        axes.axhline(level, color=shade, linewidth=1, linestyle="--")
        axes.get_yticklabels()[ticks.index(int(level))].set_color(shade)


def over_depth(panels: Sequence[Axes], titles: Iterable[str], depth: int) -> None:
    """Finish panels whose x is the layer, all of one width."""
    for axes, title in zip(panels, titles, strict=True):
        axes.set_xlim(-0.6, depth - 0.4)
        finish(axes, title, "layer")


def over_checkpoints(axes: Axes, steps: Sequence[int], unit: str) -> None:
    """Label the columns of a strip with the steps of its checkpoints."""
    every = 1 + (len(steps) - 1) // 10
    axes.set_xticks(range(0, len(steps), every), [f"{step:,}" for step in steps[::every]])
    axes.set_xlabel(unit)


def finish(axes: Axes, title: str, label: str) -> None:
    """Add title, grid, whole numbers below and a legend where lines have names; a linear axis starts at 0."""
    axes.set_title(title)
    axes.grid(True)
    axes.set_xlabel(label)
    whole_numbers(axes)
    if axes.get_yscale() == "linear":
        axes.set_ylim(0, 1.15 * axes.dataLim.y1 if 0 < axes.dataLim.y1 < np.inf else 1)
    if axes.get_legend_handles_labels()[1]:
        place: dict[str, Any] = {"loc": "lower right", "bbox_to_anchor": (1.01, 0.99), "borderaxespad": 0.2}
        axes.legend(ncols=2, handlelength=1.4, columnspacing=1.2, **place)  # beside the title


def whole_numbers(axes: Axes) -> None:
    """Set ticks at whole numbers only."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True, min_n_ticks=1))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def tint(shade: str, strength: float) -> tuple[float, ...]:
    """RGB of the colour at a strength from 0, nearly white, to 1."""
    from matplotlib.colors import to_rgb

    return tuple(s * strength + p * (1 - strength) for s, p in zip(to_rgb(shade), to_rgb(PALE), strict=True))
