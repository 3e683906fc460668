"""The live page in a real browser: readable with one cell and with 500, light, dark and narrow; and it moves."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from playwright.sync_api import expect

from orchestrator.monitoring.live import served
from orchestrator.monitoring.live.server import Server
from orchestrator.storage import lease, locks, metrics_log
from orchestrator.storage.event_log import EventLog
from tests.browser import Opened
from tests.conftest import SMALL
from tests.orchestrator.stub import leave_behind
from tests.waiting import PATIENCE

pytestmark = pytest.mark.browser

Open = Callable[..., Opened]
Serve = Callable[..., Server]
Write = Callable[..., Path]
ARMS, SEEDS = 5, 100
WINDOWS = [{}, {"color_scheme": "dark"}, {"viewport": {"width": 420, "height": 860}}]
BOUND = 1000 * PATIENCE


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served, "INTERVAL", 0.0)
    monkeypatch.setattr("orchestrator.monitoring.live.server.EFFORT", 1e9)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """500 cells in five arms: done, failed, and waiting; 20 are left for a test to run."""
    root, rng, lines = tmp_path_factory.mktemp("many") / "x", random.Random(0), []
    arms = [f"arm {index} with a rather long name, as a sweep of many keys would give it" for index in range(ARMS)]
    for arm in arms:
        for seed in range(SEEDS):
            path = root / arm / f"seed={seed}"
            path.mkdir(parents=True)
            config = {"train": {"steps": 100}, "forensics": {"every": 20}, "arms": {name: [] for name in arms}}
            (path / "config.yaml").write_text(json.dumps(config))
            state = "done" if seed < 60 else "failed" if seed == 60 else "running" if seed < 65 else "submitted"
            last = {"done": 100, "failed": 40, "running": 50, "submitted": -1}[state]
            records = [
                {"step": step, "seconds": step / 10, "loss": 3 - step / 50 + rng.gauss(0, 0.01), "heldout": {"a": 3.0}}
                for step in range(0, last + 1, 5)
            ]
            (path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
            for each in dict.fromkeys(("submitted", "running" if last > 0 else "submitted", state)):
                event = {"time": "2026-01-01T00:00:00+00:00", "cell": f"{arm}/seed={seed}", "state": each}
                lines.append(json.dumps(event | {"attempt": 1, "job": "1", "reason": ""}) + "\n")
    (root / "events.jsonl").write_text("".join(lines))
    return root


def overflow(opened: Opened) -> int:
    found: int = opened.page.evaluate("document.documentElement.scrollWidth - innerWidth")
    return found


@pytest.mark.parametrize("window", WINDOWS)
def test_500_cells_stay_readable(window: dict[str, object], many: Path, serve: Serve, open_page: Open) -> None:
    with ExitStack() as running:
        for path in many.glob("*/seed=6[1-4]"):
            running.enter_context(lease.hold(path))
        running.enter_context(locks.hold(locks.of_launcher(many)))
        opened = open_page(serve(many).url, **window)
        page = opened.page
        expect(page.locator(".squares .square")).to_have_count(ARMS * SEEDS, timeout=BOUND)
        rows = page.locator("tr[data-cell]")
        expect(rows).to_have_count(ARMS * 5)  # those that failed, and those that run
        assert rows.locator(".state").all_inner_texts() == ["failed"] * 5 + ["running"] * 20
        assert page.locator(".group button:visible").all_inner_texts() == [
            "Need you · 5", "Running · 20", "Waiting · 175", "Done · 300",
        ]  # fmt: skip
        expect(page.locator(".chart svg")).to_have_count(2)
        assert overflow(opened) <= 0
        chosen = page.locator(".squares").nth(2).locator(".square").nth(7)
        assert "seed=7 · done" in str(chosen.get_attribute("title"))
        chosen.click()  # opens the rows of its group
        expect(page.locator("tr.chosen .cell-name")).to_contain_text("/seed=7")
        expect(page.locator("tr.chosen")).to_be_in_viewport()
        expect(rows).to_have_count(ARMS * 65)
        assert overflow(opened) <= 0
        assert opened.said == []


@pytest.mark.parametrize("window", WINDOWS)
def test_it_moves_with_the_experiment(
    window: dict[str, object], cell: Write, reading: Callable[..., Path], serve: Serve, open_page: Open
) -> None:
    path, other = cell(losses=(3.0, 2.5), readings=("HS",)), cell("variable", losses=(3.0, 2.6))
    with lease.hold(path), lease.hold(other):
        opened = open_page(serve(path.parents[1]).url, **window)
        page, row = opened.page, opened.page.locator("tr[data-cell='0/0']")
        expect(row).to_contain_text("10/100", timeout=BOUND)
        page.locator(".group button:visible").first.click()  # folds the cells that run
        expect(row).to_have_count(0)
        page.locator(".group button:visible").first.click()
        page.evaluate("scrollTo(0, 200)")
        metrics_log.append(path / "metrics.jsonl", {"step": 60, "seconds": 12.0, "loss": 1.25, "heldout": {"a": 1.5}})
        reading(path, 60, "HD")
        expect(row).to_contain_text("60/100", timeout=BOUND)
        for text in ("1.250", "1.500", "60"):
            expect(row).to_contain_text(text)
        assert row.locator(".strip span").all_inner_texts() == ["H", "D"]
        assert page.evaluate("scrollY") == 200
        EventLog(path.parents[1]).append("variable/seed=0", "failed", attempt=1, reason="<b>why</b>")
        expect(page.locator("#alerts")).to_contain_text("failed: <b>why</b>", timeout=BOUND)
        expect(page.locator(".group button:visible").first).to_have_text("Need you · 1")
        assert page.title() == "35 % x"
        assert overflow(opened) <= 0
        assert opened.said == []
        shutil.rmtree(path.parents[1])
        expect(page.locator("#problem")).to_contain_text("is not there", timeout=BOUND)
        expect(row).to_contain_text("60/100")  # what was seen last stays
        assert opened.said == []


def test_hostile_names_never_run(cell: Write, serve: Serve, open_page: Open) -> None:
    arm = "<img src=x onerror=alert(1)>"
    path = cell(arm, arms=(arm,), state="failed", reason=f"{arm}\n{arm}")
    opened = open_page(serve(path.parents[1]).url)
    expect(opened.page.locator("tr[data-cell]")).to_contain_text(arm, timeout=BOUND)
    expect(opened.page.locator("#alerts")).to_contain_text(arm)
    assert opened.page.locator("main img").count() == 0
    assert opened.said == []


def test_the_report_grows(tmp_path: Path, serve: Serve, open_page: Open) -> None:
    experiment = leave_behind(tmp_path, SMALL, seeds=2, checkpoints=2)
    opened = open_page(serve(experiment.directory).url)
    page = opened.page
    expect(page.locator("#so-far .card")).not_to_have_count(0, timeout=BOUND)
    expect(page.locator("#so-far")).to_contain_text("2 of 2 complete")
    assert opened.said == []
    page.locator("#so-far a", has_text="the whole report").click()
    expect(page.locator("h1")).to_contain_text("So far: ", timeout=BOUND)
    assert opened.draw_all() > 3, "its figures are drawn in a sandbox"
    assert opened.said == []


def test_a_server_that_has_ended_is_said(cell: Write, serve: Serve, open_page: Open) -> None:
    server = serve(cell().parents[1])
    opened = open_page(server.url)
    expect(opened.page.locator("tr[data-cell]")).to_have_count(1, timeout=BOUND)
    server.shutdown()
    server.server_close()
    opened.page.context.set_offline(True)  # its open connections would still be answered
    expect(opened.page.locator("#pulse")).to_contain_text("no answer since", timeout=BOUND)


@pytest.mark.parametrize("window", WINDOWS)
def test_several_experiments_have_a_list(
    window: dict[str, object], cell: Write, serve: Serve, open_page: Open, tmp_path: Path
) -> None:
    root = cell(state="failed", reason="why").parents[1]
    shutil.copytree(root, tmp_path / "a <b>&?#% ü/x")
    opened = open_page(serve(root, tmp_path / "a <b>&?#% ü/x", tmp_path / "absent").url, **window)
    cards = opened.page.locator("#experiments .card")
    expect(cards).to_have_count(3, timeout=BOUND)
    expect(cards.nth(2)).to_contain_text("is not there")
    assert overflow(opened) <= 0
    cards.nth(1).locator("a").click()
    expect(opened.page.locator("tr[data-cell] .state")).to_have_text("failed", timeout=BOUND)
    expect(opened.page.locator("#place")).to_contain_text("a <b>&?#% ü")
    opened.page.locator(".eyebrow a").click()
    expect(cards).to_have_count(3, timeout=BOUND)
    assert opened.said == []


@pytest.mark.parametrize(("scheme", "dark"), [("light", False), ("dark", True)])
def test_both_colour_schemes_reach_the_charts(
    scheme: str, dark: bool, cell: Write, serve: Serve, open_page: Open
) -> None:
    opened = open_page(serve(cell().parents[1]).url, color_scheme=scheme)
    text = opened.page.locator(".chart text").first
    text.wait_for(timeout=BOUND)

    def brightness(colour: str) -> float:
        return sum(float(channel) for channel in re.findall(r"[\d.]+", colour)[:3])

    assert (brightness(opened.page.locator("body").evaluate("n => getComputedStyle(n).backgroundColor")) < 200) == dark
    assert (brightness(text.evaluate("n => getComputedStyle(n).fill")) > 400) == dark
