"""Many cells: status and comparison are right, and what they read does not grow where it must not.

At this size correctness only; seconds and memory of 500 cells × 20 checkpoints are `tests/benchmarks/bench_scale.py`.
"""

from __future__ import annotations

import gc
import io
import json
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from orchestrator import monitoring
from orchestrator.experiments.experiment import Experiment
from orchestrator.launch.launcher import launch
from orchestrator.monitoring import cells, newest_reading
from orchestrator.storage import event_log, locks, metrics_log
from tests.conftest import SMALL
from tests.orchestrator.stub import EVERY, final_loss, leave_behind

pytestmark = pytest.mark.slow

SEEDS, CHECKPOINTS, LAYERS = 30, 6, 3


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """60 finished cells × 6 checkpoints, left behind by a stub trainer."""
    return leave_behind(tmp_path_factory.mktemp("scale"), SMALL, seeds=SEEDS, checkpoints=CHECKPOINTS)


def python(*arguments: str) -> str:
    done = subprocess.run([sys.executable, "-m", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_cell_is_seen_done(made: Experiment) -> None:
    seen = monitoring.read_status(made.directory)
    assert [cell.cell for cell in seen] == [cell.id for cell in made.cells]
    steps = set(range(0, EVERY * CHECKPOINTS, EVERY))
    for cell in seen:
        assert (cell.state, cell.attempt, cell.share, cell.broken) == ("done", 1, 1.0, ())
        assert cell.saved == cell.read == steps
        assert cell.reading is not None
        assert cell.reading.step == max(steps)
    printed = python("orchestrator.status", str(made.directory))
    assert "100% of 60 cells  60 done" in printed
    assert printed.count("━━━━━━━━") == 60


def test_nothing_is_left_to_launch(made: Experiment) -> None:
    assert launch(made, Console(file=io.StringIO())) == []


def test_the_comparison_counts_and_averages_them_all(made: Experiment) -> None:
    assert "variable" in python("orchestrator.compare", str(made.directory))
    folder = made.directory / "comparison"
    tables = {path.stem: pd.read_parquet(path) for path in (folder / "tables").glob("*.parquet")}
    assert len(tables["layers"]) == 2 * SEEDS * CHECKPOINTS * LAYERS
    assert len(tables["role_migration"]) == 2 * SEEDS * (CHECKPOINTS - 1) * LAYERS
    assert len(tables["flattening"]) == SEEDS * CHECKPOINTS * LAYERS
    domains = list(made.config.data.domains)
    losses = {cell.id: np.mean([final_loss(cell, domain) for domain in domains]) for cell in made.cells}
    deltas = [losses[f"variable/seed={seed}"] - losses[f"uniform/seed={seed}"] for seed in range(SEEDS)]
    paired = tables["paired_eval"].query("metric == 'test_loss' and domain == 'mean'")
    assert paired["delta"].tolist() == pytest.approx(deltas)
    pairs = json.loads((folder / "verdict.json").read_text())["pairs"]
    assert pairs == [{"arm": "variable", "seed": seed} for seed in range(SEEDS)]


def bytes_read(directory: Path) -> int:
    """Bytes that one look at the experiment takes from files, whatever the page cache holds."""

    def so_far() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])  # rchar

    for kept in (cells._plan_at, cells._plan_in, newest_reading._read):
        kept.cache_clear()
    before = so_far()
    monitoring.read_status(directory)
    return so_far() - before


def test_a_look_at_long_metrics_logs_reads_no_more(tmp_path: Path) -> None:
    short, long = (
        leave_behind(tmp_path / str(every), SMALL, seeds=2, checkpoints=41, log_every=every) for every in (20, 1)
    )
    of_short, of_long = ((made.cells[0].directory / "metrics.jsonl").stat().st_size for made in (short, long))
    assert of_long > 8 * of_short
    assert of_long > 150_000
    assert bytes_read(long.directory) < bytes_read(short.directory) + 4 * 20_000  # a block of every metrics log's end


def test_a_look_parses_the_event_log_equally_often_however_many_cells(
    made: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = leave_behind(tmp_path, SMALL, seeds=1, checkpoints=2)
    read, parsed = metrics_log.read, []

    def counted(path: Path) -> list[metrics_log.Record]:
        parsed.append(path.name)
        return read(path)

    monkeypatch.setattr(metrics_log, "read", counted)
    counts = []
    for experiment in (few, made):
        parsed.clear()
        event_log._checked.cache_clear()
        monitoring.read_status(experiment.directory)
        counts.append(parsed.count("events.jsonl"))
    assert counts == [1, 1]


@pytest.mark.parametrize("terminal", [False, True])
def test_a_launcher_that_looks_again_holds_no_more(made: Experiment, terminal: bool) -> None:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=100, height=40)
    held = []
    with locks.hold(locks.of_launcher(made.directory)), monitoring.Screen(made.directory, console) as screen:
        tracemalloc.start()
        try:
            for look in range(1, 13):
                screen.due = 0.0  # now, as if a second had passed
                assert len(screen.refresh()) == len(made.cells)
                console.file.seek(0)
                console.file.truncate()
                if look in (4, 12):
                    gc.collect()
                    held.append(tracemalloc.get_traced_memory()[0])
        finally:
            tracemalloc.stop()
    assert held[1] < held[0] + 50_000  # of eight looks at 60 cells, each of which has kilobytes to tell
