"""The page of a trace in a real browser."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.trace import main
from tests.browser import Opened
from tests.orchestrator.interventions.models import LAYERS

pytestmark = pytest.mark.browser

Open = Callable[..., Opened]


@pytest.fixture
def traced(cell: Path, tmp_path: Path) -> Callable[[str], tuple[Path, dict[str, Any]]]:
    """Trace a text of a cell: the page, and the JSON beside it."""

    def trace(text: str) -> tuple[Path, dict[str, Any]]:
        page, out = tmp_path / "trace.html", tmp_path / "trace.json"
        assert main([str(cell), text, "--html", str(page), "--json", str(out)]) == 0
        return page, json.loads(out.read_text())

    return trace


def test_it_opens_in_silence_and_shows_the_lens(traced: Callable[..., Any], open_page: Open) -> None:
    path, result = traced("words 7 a b")
    opened = open_page(path)
    assert opened.draw_all() == 2
    assert opened.said == []
    assert opened.requests == [path.as_uri()]
    rows = opened.page.locator("table.lens tbody tr")
    assert rows.count() == LAYERS + 1
    last = rows.nth(LAYERS).locator("td.cell")
    assert last.count() == len(result["tokens"])
    probability = result["layers"][-1]["lens"][-1][0]["probability"]
    assert last.last.evaluate("node => node.style.getPropertyValue('--p')") == f"{round(100 * probability)}%"
    for place, settled in enumerate(result["settled"]):
        stands = [rows.nth(row).locator("td.cell").nth(place).evaluate("n => n.classList.contains('stands')")
                  for row in range(LAYERS + 1)]  # fmt: skip
        assert stands == [row - 1 >= settled for row in range(LAYERS + 1)]


def test_a_hover_tells_the_five_most_probable(traced: Callable[..., Any], open_page: Open) -> None:
    path, result = traced("words 7 a b")
    page = open_page(path).page
    page.locator("table.lens tr[data-layer='2'] td.cell").nth(3).hover()
    tip = page.locator("#tip")
    tip.wait_for()
    told = [float(text) for text in tip.locator(".number").all_inner_texts()]
    expected = [token["probability"] for token in result["layers"][2]["lens"][3]]
    assert told == pytest.approx(expected, abs=6e-4)
    assert f"{result['layers'][2]['divergence'][3]:.2f} nats" in tip.inner_text()


def test_a_click_or_a_key_opens_a_layer(traced: Callable[..., Any], open_page: Open) -> None:
    path, result = traced("words 7 a b")
    page = open_page(path).page
    assert page.locator("details.one[open]").count() == 1
    page.locator("table.lens tr[data-layer='1'] td.cell").first.click()
    chosen = page.locator("details.one[open]")
    assert chosen.get_attribute("id") == "layer-1"
    page.locator("table.lens tr[data-layer='3'] button").focus()
    page.keyboard.press("Enter")
    assert chosen.get_attribute("id") == "layer-3"
    text = chosen.inner_text()
    of = result["layers"][3]
    assert f"{of['attribution']['attention']:+.2f}".replace("-", "−") in text
    assert f"{of['attribution']['heads'][0]['logit']:+.2f}".replace("-", "−") in text
    assert chosen.locator(".neurons li").count() == len(of["neurons"])


def test_the_text_never_runs(traced: Callable[..., Any], open_page: Open, cell: Path) -> None:
    for text in ("</script><img a", "{{ 7 * 7 }}<b>"):
        path, _ = traced(text)
        opened = open_page(path)
        opened.draw_all()
        assert opened.said == []
        assert text in opened.page.locator("h1").inner_text()
        assert opened.page.locator("img").count() == 0


@pytest.mark.parametrize(("scheme", "dark"), [("light", False), ("dark", True)])
def test_both_colour_schemes_reach_cells_and_figures(
    traced: Callable[..., Any], open_page: Open, scheme: str, dark: bool
) -> None:
    opened = open_page(traced("words 7 a b")[0], color_scheme=scheme)
    opened.draw_all()

    def brightness(selector: str, part: str) -> float:
        colour = opened.page.locator(selector).first.evaluate(f"node => getComputedStyle(node)['{part}']")
        numbers = [float(channel) for channel in re.findall(r"[\d.]+", colour)[:3]]
        return sum(numbers) * (255 if colour.startswith("color(") else 1)

    assert (brightness("body", "backgroundColor") < 200) == dark
    assert (brightness("table.lens td.cell", "color") > 380) == dark
    assert (brightness(".plot .xtick text", "fill") > 500) == dark


def test_a_narrow_window_scrolls_the_tables_and_not_the_page(traced: Callable[..., Any], open_page: Open) -> None:
    opened = open_page(traced("words 7 a b 12")[0], viewport={"width": 420, "height": 860})
    opened.draw_all()
    seen = opened.page.locator("table.lens thead th.last").bounding_box()
    assert seen is not None
    assert seen["x"] + seen["width"] <= 420  # the end of the text, which the answer follows
    assert opened.page.locator("#begins").is_visible()  # says where its beginning is
    for button in range(LAYERS):
        opened.page.locator(f"table.lens tr[data-layer='{button}'] button").click()  # may scroll the table
        assert opened.page.locator("html").evaluate("node => node.scrollWidth") <= 420


def test_it_is_read_without_scripts(traced: Callable[..., Any], open_page: Open) -> None:
    page = open_page(traced("words 7 a b")[0], java_script_enabled=False).page
    assert page.locator("details.one").count() == LAYERS
    assert page.locator("details.one").first.is_visible()
    assert "ranked first" in page.locator(".cards").inner_text()
