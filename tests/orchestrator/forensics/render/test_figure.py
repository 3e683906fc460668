"""The drawn pages: pictures with ink in every panel, nothing on top of anything else, and no warning."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from io import BytesIO
from itertools import combinations
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imread

from orchestrator.forensics.analyzer import analyze
from orchestrator.forensics.measures.expert_report import ExpertReport
from orchestrator.forensics.reading import Reading
from orchestrator.forensics.render import figure
from orchestrator.forensics.render.side_by_side import SideBySide
from orchestrator.forensics.render.trajectory import trajectory
from orchestrator.forensics.roles.palette import colour
from orchestrator.forensics.roles.routing import ROLES
from tests.naming import names
from tests.orchestrator.forensics.pages import with_roles

TIE = "damper/hub"


@pytest.fixture(autouse=True)
def _no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        for kind in (UserWarning, RuntimeWarning):
            warnings.simplefilter("error", kind)
        yield


@pytest.fixture
def result(checkpoint: Callable[..., Any]) -> Callable[..., Reading]:
    """A reading of a model of the given depth, with every role and a tie in it."""

    def build(depth: int, norm: str = "sandwich", **changes: Any) -> Reading:
        small = {"widths": (8,) * depth, "heads": 2, "kv_heads": 2, "head_dim": 4, "ffn": 12, "norm": norm}
        ours = checkpoint(path=f"{norm}-{depth}", **small)
        if depth > 1:
            ours.tensors[ours.name(0, "gate")] *= np.float32(40)
        roles = [(*ROLES, TIE)[i % 5] for i in range(depth)]
        return replace(with_roles(analyze(ours.write(), resamples=2), roles), **changes)

    return build


def pixels(drawn: Figure) -> np.ndarray:
    """[height, width, 3] of the PNG, 0…1."""
    file = BytesIO()
    drawn.savefig(file, format="png")
    file.seek(0)
    return np.asarray(imread(file))[..., :3]


def boxes(drawn: Figure) -> list[tuple[str, Any]]:
    """Where titles, legends and the heading are."""
    found = [(text.get_text(), text.get_window_extent()) for text in drawn.texts if text.get_text().strip()]
    for axes in drawn.get_axes():
        for title in (axes.title, axes._left_title):  # type: ignore[attr-defined]
            if title.get_text():
                found.append((title.get_text(), title.get_window_extent()))
        if (legend := axes.get_legend()) is not None:
            found.append((f"legend of {axes._left_title.get_text()}", legend.get_window_extent()))  # type: ignore[attr-defined]
    return found


def check(drawn: Figure, height: int, minimum: int) -> np.ndarray:
    """A page of 1400 pixels across with ink in each of at least `minimum` axes, and no text on another or cut off."""
    image = pixels(drawn)
    assert image.shape[1] == 1400
    assert abs(image.shape[0] - height) <= 1
    visible = drawn.get_axes()
    assert len(visible) >= minimum
    for axes in visible:
        left, bottom, right, top = (round(v) for v in axes.get_window_extent().extents)
        assert image[image.shape[0] - top : image.shape[0] - bottom, left:right].std() > 0.01
    placed = boxes(drawn)
    for name, box in placed:
        assert box.x0 >= 0, f"{name} is cut off"
        assert box.x1 <= 1400, f"{name} is cut off"
        assert box.y1 <= image.shape[0], f"{name} is cut off"
    for (one, a), (other, b) in combinations(placed, 2):
        assert not a.overlaps(b), f"{one} is on {other}"
    return image


def has_colour(image: np.ndarray, shade: str) -> bool:
    return bool((np.abs(image - to_rgb(shade)).max(axis=-1) < 0.01).sum() > 100)


@pytest.mark.parametrize(
    ("depth", "scoring"), [(1, "calibrated"), (2, "paper"), (11, "calibrated"), (11, "paper"), (50, "calibrated")]
)
def test_one_checkpoint(result: Callable[..., Reading], depth: int, scoring: str) -> None:
    image = check(figure.single(result(depth, scoring=scoring)), 860 + 260 * (depth > 1), 6 if depth == 1 else 10)
    for role in ROLES[: min(depth, 4)]:
        assert has_colour(image, colour(role)), role


def test_one_checkpoint_without_roles_says_so(result: Callable[..., Reading]) -> None:
    drawn = figure.single(with_roles(result(5), [TIE] * 5))
    check(drawn, 1120, 10)
    assert [text for text in drawn.get_axes()[0].texts if names(text.get_text(), "no layer", "chance")]


def test_a_tie_is_striped_with_both_letters_and_no_role_is_pale(result: Callable[..., Reading]) -> None:
    roles = ["hub", "damper/specialist", "none", TIE]
    one = with_roles(result(4), roles, ["hub/specialist", "none", "damper", "none"])
    high = [replace(layer, scores=dict.fromkeys(ROLES, 0.9)) for layer in one.layers]
    drawn = figure.single(replace(one, layers=high))
    check(drawn, 1120, 10)
    strip = drawn.get_axes()[0]
    marks = {(*map(round, text.get_position()), text.get_text()) for text in strip.texts}
    assert marks == {(0, 0, "H"), (1, 1, "D"), (1, 3, "S"), (0, 4, "H/S"), (1, 4, "–"), (2, 4, "D"), (3, 4, "–")}
    striped = {tuple(np.round(patch.get_center())) for patch in strip.patches if patch.get_hatch()}  # type: ignore[attr-defined]
    assert striped == {(1, 1), (1, 3)}
    cells = np.asarray(strip.images[0].get_array())
    assert float(np.ptp(cells[:4, 2:], axis=-1).max()) < 0.2, "layers without a role have no dark cell"
    assert float(np.ptp(cells[:4, :2], axis=-1).min()) > 0.2


def test_cells_of_a_tie_have_both_colours_and_those_without_a_role_none(result: Callable[..., Reading]) -> None:
    a, b = (
        with_roles(result(3), roles) for roles in (["hub", "damper/hub", "none"], ["none", "hub", "hub/specialist"])
    )
    drawn = figure.side_by_side(SideBySide(a, b))
    check(drawn, 750, 7)
    strip = drawn.get_axes()[0]
    assert [text.get_text() for text in strip.texts] == ["H", "–", "–", "–", "H", "H/S"]
    halves = [np.array(patch.get_facecolor()[:3]) for patch in strip.patches]
    assert len(halves) == 2
    for half, role in zip(halves, ("hub", "specialist"), strict=True):
        full = np.array(to_rgb(colour(role)))
        assert np.dot(1 - half, 1 - full) > 0.95 * np.linalg.norm(1 - half) * np.linalg.norm(1 - full), "its hue, paler"
    cells = np.asarray(strip.images[0].get_array())
    assert bool((np.ptp(cells, axis=-1) < 0.01)[[0, 0, 1, 1], [1, 2, 0, 2]].all()), (
        "grey under a tie and without a role"
    )


def titles(drawn: Figure) -> list[str]:
    return [text for axes in drawn.get_axes() if (text := axes.get_title(loc="left"))]


def test_measures_that_are_absent_in_every_layer_have_no_panel(result: Callable[..., Reading]) -> None:
    one = result(3, norm="pre")
    whole = [len(titles(draw)) for draw in (figure.single(one), figure.side_by_side(SideBySide(one, one)))]
    for layer in one.layers:
        layer.measures.update(dict.fromkeys(("cv", "saturated_robust_expected", "attention_share", "sink_mean")))
        layer.measures.update({key: None for key in layer.measures if key.startswith("spectral_norm")})
    drawn = figure.single(one), figure.side_by_side(SideBySide(one, one))
    assert [len(titles(page)) for page in drawn] == [whole[0] - 3, whole[1] - 3]  # what chance gives has no panel
    check(drawn[0], 860, 4)
    check(drawn[1], 490, 4)
    legends = [axes for axes in drawn[1].get_axes() if axes.get_legend() is not None]
    assert len(legends) == 1
    pages = trajectory("run", [replace(one, step=0), replace(one, step=1)])
    assert pixels(figure.trajectory(pages)).shape[1] == 1400


def test_an_absent_pair_is_hatched_and_layers_without_partners_are_told(result: Callable[..., Reading]) -> None:
    one = result(5)
    for layer in one.layers:
        layer.measures.update(composition_partners=0.0, coupling_partners=0.0)
    drawn = figure.single(one)
    check(drawn, 1120, 10)
    (coupling,) = (axes for axes in drawn.get_axes() if axes.get_title(loc="left").startswith("Coupling"))
    assert bool(np.ma.getmaskarray(coupling.images[0].get_array()).diagonal().all())
    assert coupling.patch.get_hatch()
    (partners,) = (axes for axes in drawn.get_axes() if axes.get_title(loc="left") == "Partners")
    assert [names(text.get_text(), "no layer", "partners") for text in partners.texts] == [True]
    one.layers[0].measures["coupling_partners"] = 2.0
    assert not figure.single(one).get_axes()[-2].texts


def test_the_words_for_a_tie_are_those_of_both_rows(result: Callable[..., Reading]) -> None:
    said = figure.single(result(3)).texts[-1].get_text()
    assert names(said, "a tie of two", "striped", "half and half")


def test_a_mixture_has_the_range_of_its_experts(result: Callable[..., Reading]) -> None:
    one = result(3)
    for layer in one.layers:
        layer.measures.update(dict.fromkeys(("cv", "saturated_robust", "saturated_robust_expected")))
        layer.experts.extend(
            ExpertReport(expert, share, {"cv": 0.1 + (share or 0)})
            for expert, share in ((0, 0.2), (1, 0.8), (None, None))
        )
    drawn = figure.single(one)
    check(drawn, 1120, 10)
    (share,) = (axes for axes in drawn.get_axes() if axes.get_title(loc="left").startswith("Router's share"))
    assert [line.get_ydata().tolist() for line in share.lines] == [[0.2] * 3, [0.8] * 3]  # type: ignore[union-attr]
    (spread,) = (axes for axes in drawn.get_axes() if "within the experts" in axes.get_title(loc="left"))
    assert [line.get_ydata().tolist() for line in spread.lines] == [[pytest.approx(0.3)] * 3, [pytest.approx(0.9)] * 3]  # type: ignore[union-attr]


@pytest.mark.parametrize("depths", [(1, 1), (4, 4), (5, 50)])
def test_two_models(result: Callable[..., Reading], depths: tuple[int, int]) -> None:
    a, b = (replace(result(depth), source="/a/rather/long/path/" * 9) for depth in depths)
    drawn = figure.side_by_side(SideBySide(a, b))
    check(drawn, 750, 7 - (max(depths) == 1))  # a layer alone has no peers
    strip = drawn.get_axes()[0]
    letters = [text.get_text() for text in strip.texts]
    if max(depths) <= 48:
        assert letters == [*"HDPS–"[: depths[0]], *"HDPS–"[: depths[1]]]
    _ends_early(strip, min(depths), max(depths), depths)


def _ends_early(strip: Axes, short: int, long: int, depths: tuple[int, int]) -> None:
    """The shorter model's row is white beyond its last layer."""
    cells = np.asarray(strip.images[0].get_array())
    assert cells.shape[:2] == (2, long)
    row = int(np.argmin(depths))
    assert bool((cells[row, short:] == 1).all())
    assert not bool((cells[row, :short] == 1).all(axis=-1).any())


@pytest.mark.parametrize(("depth", "checkpoints"), [(1, 2), (6, 3), (30, 60)])
def test_a_run(result: Callable[..., Reading], depth: int, checkpoints: int) -> None:
    one = result(depth)
    results = [replace(deepcopy(one), step=2500 * i) for i in range(checkpoints)]
    for index, later in enumerate(results):
        for layer in later.layers:
            layer.measures["cv"] *= 1 + index
    drawn = figure.trajectory(trajectory("run", results))
    check(drawn, round(100 * (1.0 + max(2.4, 0.24 * depth) + 2.6)), 5)


def test_a_pathology_stands_above_its_line_and_extremes_are_drawn(result: Callable[..., Reading]) -> None:
    for factor in (1.0, 1e6, 1e9):
        one = result(5)
        for key in one.layers[0].measures:
            if key.startswith("spectral_norm"):
                one.layers[0].measures[key] *= factor
        drawn = figure.single(one)
        check(drawn, 1120, 10)
        axes = drawn.get_axes()[3]
        line = np.asarray(axes.lines[0].get_ydata(), dtype=float)
        assert line[0] > 30
        assert axes.get_ylim()[1] > line[0]
        labels = [label.get_text() for label in axes.get_yticklabels()]
        assert {"10×", "30×"} <= set(labels)
        assert len(labels) <= 14


def test_names_are_no_formulas_and_settings_stay_the_users(result: Callable[..., Reading], tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    drawn = figure.single(replace(result(2), source="/models/$\\frac{1}{2$_^{" + "x" * 300))
    drawn.savefig(tmp_path / "page.svg")
    assert dict(matplotlib.rcParams) == before
    heading = drawn.texts[-2].get_text()
    assert heading.startswith("…")
    assert len(heading) < 150
