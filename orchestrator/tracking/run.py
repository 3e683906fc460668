"""Send a cell's metrics and readings, and the comparison, to W&B.

W&B holds copies only and cannot stop training: after its first failure a tracker warns once and does nothing more.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from orchestrator.common.errors import UserError
from orchestrator.config.schema import Config, TrackerMode
from orchestrator.experiments.description import identity
from orchestrator.forensics.reading import Reading
from orchestrator.forensics.render.row import reading_row
from orchestrator.storage.files import permit_as_umask
from orchestrator.tracking import agent, rows
from orchestrator.tracking.rows import READING, STEP

if TYPE_CHECKING:
    from orchestrator.analysis import Comparison

# wandb (0.6 s) and the analysis are imported in functions: tracker=off and the launcher never import them.

INIT_SECONDS = 30.0  # longest wait for W&B at the start
FINISH_SECONDS = 120.0  # longest wait for uploads at the end; the rest stays on disk for `wandb sync`
LONGEST_NAME = 128  # most characters of a run's name that W&B accepts
AXES = dict.fromkeys(("train", "heldout", "test", "time", "sidecar", "delta"), STEP) | {"forensics": READING}
MANY = ("sidecar", "forensics", "delta")  # groups with too many metrics for the table of runs

log = logging.getLogger(__name__)


def check(config: Config) -> None:
    """Raise `UserError` where W&B cannot be used, before anything is trained and without a network."""
    mode = config.tracker.mode
    if mode == TrackerMode.off:
        return
    if importlib.util.find_spec("wandb") is None:
        raise UserError(f"tracker={mode} needs wandb, which is not installed: pip install wandb, or use tracker=off.")
    if mode == TrackerMode.online and (problem := login_problem()):
        raise UserError(f"tracker=online: W&B {problem}, or use tracker=offline.")


def login_problem() -> str | None:
    """Return why a login would fail, with the cure, as the end of a sentence on W&B; None where it would not."""
    import wandb
    from wandb.sdk.lib import wbauth

    with _caching_nowhere():
        try:
            settings = wandb.setup().settings
            if settings.mode != "online":
                return f"is {settings.mode} (WANDB_MODE): unset that"
            auth = wbauth.authenticate_session(
                host=settings.base_url, source="tracker", prompt=False, update_session=False
            )
        except wandb.Error as error:
            return f"cannot log in ({error}): mend the key"
        finally:
            wandb.teardown()  # cells run in other processes and must not use this one's service
    return None if auth else f"found no API key for {settings.base_url}: run `wandb login` or set WANDB_API_KEY"


@contextmanager
def _caching_nowhere() -> Iterator[None]:
    """Keep the log of W&B's service out of the user's home while there is no run directory."""
    before = os.environ.get("WANDB_CACHE_DIR")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["WANDB_CACHE_DIR"] = folder
        try:
            yield
        finally:
            del os.environ["WANDB_CACHE_DIR"]
            if before is not None:
                os.environ["WANDB_CACHE_DIR"] = before


def run_id(config: Config, kind: str = "train", identity: str = "") -> str:
    """Return the W&B id of a cell, or of its experiment's comparison: the same for every attempt.

    `identity`: of the experiment's directory, so that a copy has ids of its own.
    """
    parts = [config.name, config.arm, config.seed] if kind == "train" else [config.name, kind]
    return hashlib.sha256("\0".join(map(str, [*parts, *filter(None, [identity])])).encode()).hexdigest()[:16]


class Tracker:
    """One cell's W&B run. No method raises W&B's errors; with `tracker=off` none does anything."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self._run: Any = None
        self._cell_dir = Path()
        self._sent: dict[str, int] = {}  # axis → last step sent
        self.has_failed = False

    def start(self, cell_dir: Path, records: Iterable[dict[str, Any]]) -> None:
        """Open the run and send the metrics log's rows again, so that a resumed offline run is complete."""
        if self.config.tracker.mode == TrackerMode.off:
            return
        with self._failing_softly():
            self._cell_dir = cell_dir
            self._run = _open(self.config, cell_dir, "train")
            if self._run.resumed:  # online: these rows are on the server
                self._sent = {STEP: _last(self._run, STEP), READING: _last(self._run, READING)}
        for record in records:
            self.log(record)

    def log(self, record: dict[str, Any]) -> None:
        """Send one record of the metrics log."""
        self._send(STEP, record["step"], lambda: rows.record_row(record))

    def forensics(self, reading: Reading) -> None:
        """Send one reading of the layers, on its own step axis."""
        assert reading.step is not None, "a cell's checkpoint has a step"
        self._send(READING, reading.step, lambda: reading_row(reading))

    def alert(self, title: str, text: str) -> None:
        """Send an alert to the run's followers."""
        if self._run is not None:
            with self._failing_softly():
                self._run.alert(title, text)

    def finish(self, exit_code: int = 0) -> None:
        """Send the cell's tables, figures and summary, and close the run; exit code 0 is a finished cell."""
        if self._run is None:
            return
        with self._failing_softly():
            from orchestrator.analysis.cells import read_cell
            from orchestrator.analysis.comparison import compare_cell
            from orchestrator.tracking.summaries import cell_summary

            cell = read_cell(self._cell_dir, self.config.arm, self.config.seed)
            _show(self._run, compare_cell(cell), cell_summary(cell))
            _close(self._run, exit_code)
        self._run = None

    def _send(self, axis: str, step: int, row: Callable[[], dict[str, Any]]) -> None:
        if self._run is None or step <= self._sent.get(axis, -1):
            return
        with self._failing_softly():
            self._run.log({axis: step, **row()})
            self._sent[axis] = step

    @contextmanager
    def _failing_softly(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever W&B raises, training goes on
            _give_up(self._run, error)
            self._run, self.has_failed = None, True


def log_comparison(config: Config, comparison: Comparison) -> None:
    """Send the comparison's tables, figures and verdict as one run of the experiment's group. Never raises."""
    if config.tracker.mode == TrackerMode.off:
        return
    run = None
    try:
        run = _open(config, comparison.directory, "comparison")
        from orchestrator.tracking.summaries import comparison_summary, delta_rows

        for row in delta_rows(comparison):
            run.log(row)
        _show(run, comparison, comparison_summary(comparison))
        _close(run, exit_code=0)
    except Exception as error:
        _give_up(run, error)


def confine(directory: Path) -> None:
    """Make W&B write only in `directory`/wandb, and print nothing."""
    home = directory.resolve() / "wandb"
    home.mkdir(parents=True, exist_ok=True)
    if not os.access(home, os.W_OK):
        raise PermissionError(f"{home} is not writable")  # W&B would quietly write to /tmp
    os.environ |= {
        "WANDB_DATA_DIR": str(home / "data"),
        "WANDB_ARTIFACT_DIR": str(home / "artifacts"),
        "WANDB_CACHE_DIR": str(home / "cache"),
        "WANDB_ERROR_REPORTING": "false",
        "WANDB_SILENT": "true",
    }


def _open(config: Config, directory: Path, kind: str) -> Any:
    """Start the run of a cell (`train`) or of an experiment (`comparison`) in `directory`."""
    experiment_dir = directory.parents[1] if kind == "train" else directory.parent
    if (experiment_dir / "experiment.yaml").is_file():  # the name of a copy is that of its directory
        config = replace(config, name=experiment_dir.resolve().name)
    home = Path(config.tracker.dir).expanduser() if config.tracker.dir else directory
    confine(home)
    import wandb

    settings = wandb.Settings(
        silent=True, console="off", symlink=False, disable_git=True, disable_code=True, x_disable_stats=True,
        x_disable_meta=True, x_disable_machine_info=True, x_save_requirements=False,
        init_timeout=INIT_SECONDS, finish_timeout=FINISH_SECONDS,
    )  # fmt: skip
    mode: Any = config.tracker.mode.value
    with agent.only_for(kind):
        run = wandb.init(
            project=config.tracker.project, entity=config.tracker.entity, group=config.name, job_type=kind,
            id=run_id(config, kind, identity(experiment_dir)), dir=str(home.resolve()), mode=mode,
            resume="allow" if config.tracker.mode == TrackerMode.online else None,
            reinit="create_new", settings=settings, **_described(config, kind),
        )  # fmt: skip
    for group, axis in AXES.items():
        run.define_metric(f"{group}/*", step_metric=axis, summary="none" if group in MANY else None)
    run.define_metric(READING, summary="last")  # it is in a group of its own
    return run


def _described(config: Config, kind: str) -> dict[str, Any]:
    """Return the run's name, tags and configuration; a comparison has neither arm nor seed."""
    resolved: Any = OmegaConf.to_container(OmegaConf.structured(config), enum_to_str=True)
    del resolved["notify"]  # who knows a webhook's address can post there
    own = [config.arm, f"seed={config.seed}"] if kind == "train" else [kind]
    if kind != "train":
        resolved = {key: value for key, value in resolved.items() if key not in ("arm", "seed")}
    return {
        "name": "/".join([str(config.name), *own])[:LONGEST_NAME],
        "tags": rows.tags(*own, str(config.name), *config.tracker.tags),
        "config": resolved,
    }


def _last(run: Any, axis: str) -> int:
    """Return the last step of an axis in a resumed run; a summary defined explicitly is one level deeper."""
    value = run.summary.get(axis, -1)
    return int(value if isinstance(value, int | float) else value["last"])


def _show(run: Any, comparison: Comparison, summary: dict[str, Any]) -> None:
    """Log a row with every table that is not empty, a row with every figure, and the summary.

    Tables are IMMUTABLE, so that a workspace shows the whole table rather than its last increment.
    """
    import wandb

    from orchestrator.analysis import figures

    wandb.Table.MAX_ROWS = wandb.Table.MAX_ARTIFACT_ROWS  # the default cuts the file beside the artifact at 10,000 rows
    row = {}
    for name, table in comparison.tables.items():
        if not table.empty:
            data: list[Any] = table.astype(object).where(table.notna(), None).to_numpy().tolist()
            row[f"tables/{name}"] = wandb.Table(
                columns=list(table.columns), data=data, log_mode="IMMUTABLE", allow_mixed_types=True
            )
    if row:
        run.log(row)
    if drawn := figures.draw(comparison):
        run.log({f"figures/{name}": wandb.Plotly(drawing.plot) for name, drawing in drawn.items()})
    run.summary.update(summary)


def _close(run: Any, exit_code: int) -> None:
    """Finish the run and its service, which child processes must not inherit."""
    import wandb

    run.finish(exit_code=exit_code)
    wandb.teardown()
    with suppress(OSError):  # where a file belongs to another user
        permit_as_umask(Path(os.environ["WANDB_DATA_DIR"]).parent)


def _give_up(run: Any, error: Exception) -> None:
    """Warn once and shut W&B down in this process, so that it prints nothing at exit."""
    reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
    log.warning("W&B tracking ends here (%s); everything is in the metrics log.", reason)
    with suppress(Exception):
        if run is not None:
            run.finish(exit_code=1)
    with suppress(Exception):
        import wandb

        wandb.teardown()
