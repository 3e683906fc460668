"""Shared fixtures: cells small enough to train in a second."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from tests.browser import Opened

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the suite already runs one process per core
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.pop("COLUMNS", None)  # xdist sets it, and it would be the width of every command's output

# A whole experiment in seconds: three narrow layers, a dozen steps.
SMALL = (
    "model.layers=3", "model.width=16", "model.head_dim=4", "train.steps=12", "train.batch_size=2",
    "train.seq_len=32", "train.log_every=2", "train.eval_every=4", "train.checkpoint_every=4", "forensics.every=6",
    "forensics.trace_steps=2", "forensics.resamples=2", "data.train_tokens=4096", "data.heldout_tokens=160",
    "tracker=off",
)  # fmt: skip


TRAINED: pytest.StashKey[dict[tuple[str, ...], Path]] = pytest.StashKey()  # overrides → outputs


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Under CI a skipped test is a failure: a real component was not there."""
    report = yield
    if (
        report.skipped
        and os.environ.get("CI")
        and not item.get_closest_marker("gpu")
        and not hasattr(report, "wasxfail")
    ):
        report.outcome = "failed"
        report.longrepr = f"skipped under CI: {report.longrepr}"
    return report


@pytest.fixture(scope="session")
def small_cell(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Overrides of a cell that trains in a second. All cells, of every process, share their prepared texts."""
    base = tmp_path_factory.getbasetemp()
    return (*SMALL, f"data.cache_dir={(base.parent if base.name.startswith('popen-') else base) / 'texts'}")


@pytest.fixture
def small(small_cell: tuple[str, ...], tmp_path: Path) -> list[str]:
    """The same, writing under this test's directory."""
    return [*small_cell, f"root={tmp_path}/outputs"]


@pytest.fixture
def hydra() -> Iterator[None]:
    """Hydra with `conf/`, so that `compose` works."""
    from orchestrator.config.compose import CONF

    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


@pytest.fixture
def orchestrate(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int]:
    """`python -m orchestrator ARGUMENTS` in this process; returns the exit code."""
    from orchestrator.__main__ import main

    def call(*arguments: str) -> int:
        GlobalHydra.instance().clear()
        monkeypatch.setattr(sys, "argv", ["orchestrator", *arguments])
        monkeypatch.chdir(tmp_path)
        return main()

    return call


@pytest.fixture
def trained(
    orchestrate: Callable[..., int], small_cell: tuple[str, ...], tmp_path: Path, request: pytest.FixtureRequest
) -> Callable[..., Path]:
    """`trained("name=x", …)`: the directory of that experiment, trained once in a test process and then copied."""

    def copy_of(*overrides: str) -> Path:
        kept = request.session.stash.setdefault(TRAINED, {})
        if overrides not in kept:
            kept[overrides] = request.getfixturevalue("tmp_path_factory").mktemp("trained") / "outputs"
            assert orchestrate(*small_cell, *overrides, f"root={kept[overrides]}", "launcher=debug") == 0
        shutil.copytree(kept[overrides], tmp_path / "outputs", symlinks=True)
        (name,) = (word.partition("=")[2] for word in overrides if word.startswith("name="))
        return tmp_path / "outputs" / name

    return copy_of


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium. Skips the test where none is installed."""
    from playwright.sync_api import sync_playwright

    from tests.browser import CHROMIUM

    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield found
        found.close()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Callable[..., Opened]]:
    """Open a file or an address in a window of 1280 × 900, or as options of playwright's `new_context` say."""
    from tests.browser import opened

    contexts = []

    def open_file(place: Path | str, **options: object) -> Opened:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})  # type: ignore[arg-type]
        contexts.append(context)
        return opened(context, place)

    yield open_file
    for context in contexts:
        context.close()
