"""The report in a real browser: what it shows, how it answers to a reader, and what it must never do."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pandas as pd
import pytest

from orchestrator.analysis import compare
from orchestrator.analysis.figures import FIGURES
from tests.browser import Opened
from tests.naming import names
from tests.orchestrator.analysis.hard import HARD

pytestmark = pytest.mark.browser

Write = Callable[..., Path]


@pytest.fixture
def show(open_page: Callable[..., Opened]) -> Callable[..., Opened]:
    """Compare an experiment and open its report."""

    def opened(root: Path, **options: object) -> Opened:
        compare(root)
        return open_page(root / "comparison/report.html", **options)

    return opened


def test_it_opens_in_silence_and_draws_every_figure(experiment: Write, show: Callable[..., Opened]) -> None:
    root = experiment(steps=tuple(range(0, 450, 50)), sidecar=True, interventions=True)
    report = show(root)
    assert report.draw_all() == len(FIGURES)
    assert report.page.locator(".plot svg.main-svg").count() >= len(FIGURES)
    assert report.said == []
    assert report.requests == [(root / "comparison/report.html").as_uri()]
    assert report.page.title() == "Does width decide?"
    top = report.page.locator(".cards").inner_text()
    for words in ("won?", "inconclusive", "role?", "conserved?"):
        assert words in top
    seen = report.page.locator(".cards").bounding_box()
    assert seen is not None
    assert seen["y"] + seen["height"] < 900  # at a glance


def test_a_hover_tells_the_layers_measures(experiment: Write, show: Callable[..., Opened]) -> None:
    report = show(experiment())
    report.draw_all()
    figure = report.page.locator("[data-figure=layers]")
    figure.scroll_into_view_if_needed()
    panel = figure.locator(".subplot.xy .plotbg, .bglayer rect, .nsewdrag").first.bounding_box()
    assert panel is not None
    report.page.mouse.move(panel["x"] + panel["width"] / 2, panel["y"] + panel["height"] * 1.5 / 4)  # layer 1, step 50
    hover = figure.locator(".hoverlayer .hovertext").first
    hover.wait_for()
    told = hover.text_content() or ""
    for words in ("layer 1, step 50", "passthrough", "CV 0.20", "saturated 10", "by chance 1", "attention share 0.40"):
        assert words in told


def test_tables_sort_by_number_and_by_keyboard(experiment: Write, show: Callable[..., Opened]) -> None:
    def loss(arm: str, seed: int, step: int, domain: str) -> float:
        return 3.0 + (0.2 if domain == "code" else -0.3) * (arm == "variable") + 9.0 * (domain == "code")

    page = show(experiment(loss=loss)).page
    table = page.locator("table.sorts", has_text="Δ = b − a").first
    head = table.locator("th", has_text="Δ = b − a")
    cells = table.locator("tbody td:nth-child(4)")
    assert cells.all_inner_texts() == ["−0.0500", "+0.2000", "−0.3000"]
    head.locator("button").click()
    assert cells.all_inner_texts() == ["−0.3000", "−0.0500", "+0.2000"]
    assert head.get_attribute("aria-sort") == "ascending"
    head.locator("button").press("Enter")
    assert cells.all_inner_texts() == ["+0.2000", "−0.0500", "−0.3000"]
    assert head.get_attribute("aria-sort") == "descending"


def test_a_definition_is_one_click_away(experiment: Write, show: Callable[..., Opened]) -> None:
    report = show(experiment(sidecar=True, interventions=True))
    targets = {mark.get_attribute("href") for mark in report.page.locator("a.define").all()}
    for target in targets:
        assert target is not None
        assert report.page.locator(target).count() == 1, f"{target} is not defined"
    mark = report.page.locator("a.define[href='#define-cv']").first
    mark.focus()
    report.page.keyboard.press("Enter")
    box = report.page.locator("#definition")
    assert box.is_visible()
    assert names(box.inner_text(), "deviation", "mean", "co-magnitude")
    assert box.evaluate("node => node === document.activeElement")  # a screen reader says it
    report.page.keyboard.press("Escape")
    assert not box.is_visible()
    assert mark.evaluate("node => node === document.activeElement")
    for target in report.page.locator("a.define").all():
        size = target.bounding_box()
        assert size is not None
        assert min(size["width"], size["height"]) >= 24  # WCAG 2.2, 2.5.8


def test_nothing_is_left_to_the_mouse_alone_and_nothing_can_be_sent(
    experiment: Write, show: Callable[..., Opened]
) -> None:
    report = show(experiment(arms=tuple("abcdef"), seeds=range(3)))
    report.draw_all()
    figure = report.page.locator("figure", has=report.page.locator("[data-figure=layers]"))
    letters = figure.locator(".subplot.xy .heatmap-label")
    seeds = figure.get_by_role("combobox", name="Show")
    assert seeds.locator("option").all_inner_texts()[1:] == ["seed 0", "seed 1", "seed 2"]
    assert letters.count() == 10  # of twelve squares; two are ties, in both colours
    seeds.select_option("seed 2")
    assert letters.count() == 10  # of one view, not of two
    hidden = report.page.locator("figure", has=report.page.locator("[data-figure=flattening]")).get_by_role("checkbox")
    assert hidden.count() == 2  # the fifth and the sixth arm
    hidden.first.check()
    with report.page.expect_download() as waiting:
        figure.get_by_role("button", name="Save as PNG").click()
    assert Path(waiting.value.path()).read_bytes().startswith(b"\x89PNG")
    assert report.page.locator(".modebar-btn").count() == 0  # one of Plotly's would upload the figure
    report.page.evaluate("fetch('http://127.0.0.1:9/').catch(() => new Image().src = 'http://127.0.0.1:9/')")
    refused = " ".join(words for words in report.said if "Content Security Policy" in words)
    assert "default-src 'none'" in refused  # the fetch
    assert "img-src data: blob:" in refused


def test_headings_are_in_order_and_come_to_light(experiment: Write, show: Callable[..., Opened]) -> None:
    page = show(experiment(sidecar=True, interventions=True), viewport={"width": 420, "height": 800}).page
    levels = [int(tag[1]) for tag in page.locator("h1, h2, h3").evaluate_all("nodes => nodes.map(n => n.tagName)")]
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert page.locator("main #definitions").count() == 1
    page.locator("nav a[href='#budget']").click()
    nav, heading = (page.locator(place).bounding_box() for place in ("nav", "#budget h2"))
    assert nav is not None
    assert heading is not None
    assert heading["y"] >= nav["y"] + nav["height"] - 1


@pytest.mark.parametrize(("scheme", "dark"), [("light", False), ("dark", True)])
def test_both_colour_schemes_reach_the_figures(
    experiment: Write, show: Callable[..., Opened], scheme: str, dark: bool
) -> None:
    page = show(experiment(), color_scheme=scheme).page
    page.wait_for_selector(".plot[data-drawn]")

    def brightness(selector: str, part: str) -> float:
        colour = page.locator(selector).first.evaluate(f"node => getComputedStyle(node)['{part}']")
        return sum(float(channel) for channel in re.findall(r"[\d.]+", colour)[:3])

    ground, ink = brightness("body", "backgroundColor"), brightness("body", "color")
    figure = brightness(".plot[data-drawn] .xtick text", "fill")
    assert (ground < 200) == dark
    assert (ink > 500) == (figure > 500) == dark


def test_the_tables_inside_are_the_tables_beside(
    experiment: Write, show: Callable[..., Opened], tmp_path: Path
) -> None:
    root = experiment(sidecar=True, interventions=True)
    page = show(root).page
    names = [button.get_attribute("data-table") for button in page.locator("[data-table]").all()]
    tables = (root / "comparison/tables").glob("*.csv")
    assert set(names) == {path.stem for path in tables if not pd.read_csv(path).empty} - {"contrasts"}
    for name in names:
        with page.expect_download() as waiting:
            page.locator(f"[data-table={name}]").click()
        assert waiting.value.suggested_filename == f"{name}.csv"
        inside = pd.read_csv(io.StringIO(Path(waiting.value.path()).read_text()))
        beside = pd.read_csv(root / f"comparison/tables/{name}.csv")
        pd.testing.assert_frame_equal(inside, beside, rtol=1e-5, check_dtype=False)  # "21" and "21.0" are one number


def test_names_never_run(experiment: Write, show: Callable[..., Opened]) -> None:
    hostile = "</script><script>alert(1)<"
    root = experiment(arms=("uniform", hostile.replace("/", "∕")), question="<img src=x onerror=alert(2)> '\"&lt;?")
    report = show(root)
    report.draw_all()
    assert report.said == []
    assert len(report.requests) == 1
    assert report.page.locator("h1").inner_text() == "<img src=x onerror=alert(2)> '\"&lt;?"
    assert report.page.locator("img").count() == 0
    assert "<script>alert(1)<" in report.page.locator("header").inner_text()


@pytest.mark.parametrize("name", HARD)
def test_what_cannot_be_said_is_said(experiment: Write, show: Callable[..., Opened], name: str) -> None:
    make, expected = HARD[name]
    report = show(make(experiment))
    report.draw_all()
    assert report.said == []
    text = report.page.locator("body").inner_text()
    told = report.page.locator("main").inner_text().rsplit("\nDefinitions\n", 1)[0]
    assert len(told) > 500
    assert all(words in " ".join(text.split()) for words in expected)
    for nonsense in ("NaN", "nan", "undefined", "None", "null", "Infinity"):
        assert nonsense not in told.split()


def test_many_arms_are_a_table_first(experiment: Write, show: Callable[..., Opened]) -> None:
    report = show(experiment(arms=tuple("abcdefg")))
    report.draw_all()
    assert report.said == []
    assert report.page.locator("h2").first.inner_text().endswith("against a")
    assert report.page.locator("main table").first.locator("tbody tr").count() == 6


def test_it_is_read_without_scripts_by_ear_and_on_paper(experiment: Write, show: Callable[..., Opened]) -> None:
    root = experiment(sidecar=True, interventions=True)
    plain = show(root, java_script_enabled=False).page
    assert "won?" in plain.locator("main").inner_text()
    for figure in plain.locator(".plot").all():
        assert figure.get_attribute("aria-label")
        words = plain.locator(f"#{figure.get_attribute('aria-describedby')}").text_content() or ""
        assert len(words) > 40
    for button in plain.locator("button").all():
        assert (button.text_content() or "").strip() or button.get_attribute("aria-label")
    report = show(root, color_scheme="dark")
    report.draw_all()
    paper = report.page
    paper.emulate_media(media="print", color_scheme="dark")
    assert not paper.locator("nav").is_visible()
    ink = paper.locator(".plot .xtick text").first.evaluate("node => getComputedStyle(node).fill")
    assert ink == "rgb(0, 0, 0)"
    assert paper.pdf().count(b"/Type /Page\n") >= 3


WIDER = """nodes => nodes.filter(node => node.scrollWidth > node.parentNode.clientWidth).map(node => node.ariaLabel)"""


def test_tables_fit_a_usual_window(experiment: Write, show: Callable[..., Opened]) -> None:
    report = show(experiment(sidecar=True, interventions=True), viewport={"width": 1200, "height": 900})
    report.page.evaluate("document.querySelectorAll('details').forEach(node => node.open = true)")
    assert report.page.locator(".scroll > table").evaluate_all(WIDER) == []


def test_a_narrow_window_scrolls_tables_not_the_page(experiment: Write, show: Callable[..., Opened]) -> None:
    report = show(experiment(seeds=range(8)), viewport={"width": 420, "height": 800})
    report.draw_all()
    assert report.page.locator("html").evaluate("node => node.scrollWidth") <= 420
