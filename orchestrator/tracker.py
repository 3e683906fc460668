"""A cell's ledger and readings, and the comparison, projected to W&B.

W&B is never the truth and never in the way: the first failure is one warning, after which a tracker does nothing.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from orchestrator.errors import UserError
from orchestrator.schema import Config, TrackerMode

if TYPE_CHECKING:
    import pandas as pd

    from orchestrator.compare import Comparison

# wandb (0.6 s) and the table builders are imported where they are used: tracker=off and the launcher do without.

INIT_SECONDS = 30.0  # longest wait for W&B at the start
FINISH_SECONDS = 120.0  # and for its uploads at the end; what is left stays on disk for `wandb sync`
STEP, READING = "step", "forensics/step"  # the two axes; each kind of row has its own
GROUPS = ("train", "heldout", "test", "sidecar", "time")  # of the first axis

log = logging.getLogger(__name__)


def check(config: Config) -> None:
    """Raise `UserError`, before anything is trained, where this tracker cannot work. Uses no network."""
    mode = config.tracker.mode
    if mode == TrackerMode.off:
        return
    if importlib.util.find_spec("wandb") is None:
        raise UserError(f"tracker={mode} needs wandb, which is not installed: pip install wandb, or use tracker=off.")
    if mode == TrackerMode.online:
        _check_key()


def _check_key() -> None:
    import wandb
    from wandb.sdk.lib import wbauth

    try:
        host = wandb.setup().settings.base_url
        auth = wbauth.authenticate_session(host=host, source="tracker", prompt=False, update_session=False)
    except wandb.Error as error:
        raise UserError(f"tracker=online cannot log in ({error}): mend the key, or use tracker=offline.") from error
    finally:
        wandb.teardown()  # cells are processes of their own and must not lean on this one's service
    if auth is None:
        raise UserError(
            f"tracker=online found no API key for {host}: run `wandb login`, set WANDB_API_KEY, or use tracker=offline."
        )


def run_id(config: Config, kind: str = "train") -> str:
    """The W&B id of a cell, or of its experiment's comparison: the same for every attempt."""
    parts = [config.name, config.arm, config.seed] if kind == "train" else [config.name, kind]
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:16]


class Tracker:
    """One cell's W&B run. No method raises on W&B's account; with `tracker=off` none does anything."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self._run: Any = None
        self._cell_dir = Path()
        self._sent: dict[str, int] = {}  # axis → last step sent

    def start(self, cell_dir: Path, records: Iterable[dict[str, Any]]) -> None:
        """Open the run and replay the ledger's rows, so that a resumed offline run is complete by itself."""
        if self.config.tracker.mode == TrackerMode.off:
            return
        with self._failing_softly():
            self._cell_dir = cell_dir
            self._run = _open(self.config, cell_dir, "train")
            for group in GROUPS:
                self._run.define_metric(f"{group}/*", step_metric=STEP)
            self._run.define_metric("forensics/*", step_metric=READING)
            if self._run.resumed:  # online: the server has these rows already
                self._sent = {axis: self._run.summary.get(axis, -1) for axis in (STEP, READING)}
        for record in records:
            self.log(record)

    def log(self, record: dict[str, Any]) -> None:
        """Send one ledger record."""
        self._send(STEP, record["step"], lambda: flatten(record))

    def forensics(self, result: dict[str, Any]) -> None:
        """Send one reading of the layers, on its own step axis."""
        self._send(READING, result["step"], lambda: scalars(result))

    def alert(self, title: str, text: str) -> None:
        """Tell whoever watches the run."""
        if self._run is not None:
            with self._failing_softly():
                self._run.alert(title, text)

    def finish(self, exit_code: int = 0) -> None:
        """Send the cell's tables and its sidecar's heat map, and close the run; a finished cell's exit code is 0."""
        if self._run is None:
            return
        with self._failing_softly():
            from orchestrator.compare.tables import of_cell

            tables = of_cell(self._cell_dir, self.config.arm, self.config.seed)
            _log_tables(self._run, tables)
            if not tables["sidecar"].empty:
                _log_multipliers(self._run, self._cell_dir, self.config)
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
            self._run = None


def log_comparison(config: Config, comparison: Comparison) -> None:
    """Send the comparison's tables, figures and verdict as one run of the experiment's group. Never raises."""
    if config.tracker.mode == TrackerMode.off:
        return
    run = None
    try:
        import wandb

        from orchestrator.compare import figures, report

        run = _open(config, comparison.directory, "comparison")
        _log_tables(run, comparison.tables)
        run.log({f"figures/{name}": wandb.Plotly(figure) for name, figure in figures.draw(comparison).items()})
        run.summary.update({"verdict": report.verdict(comparison)})
        _close(run, exit_code=0)
    except Exception as error:
        _give_up(run, error)


def flatten(record: dict[str, Any]) -> dict[str, Any]:
    """A ledger record as W&B metrics: `train/loss`, `heldout/<domain>`, `time/seconds`, …"""
    timing = {"seconds", "tokens_per_second", "attempt"}
    row: dict[str, Any] = {}
    for key, value in record.items():
        if isinstance(value, dict):
            row |= {f"{key}/{name}": leaf for name, leaf in _leaves(value) if name != STEP}
        elif key not in (STEP, "digest") and value is not None:
            row[f"{'time' if key in timing else 'train'}/{key}"] = value
    return row


def scalars(result: dict[str, Any]) -> dict[str, Any]:
    """A reading as W&B metrics: role counts, totals and their centre, and per layer scores, margin and headlines."""
    from orchestrator.body import centre, profile, roles_of
    from orchestrator.compare.conservation import REFERENCES
    from orchestrator.compare.migration import STATES, state

    counts = Counter(map(state, roles_of(result)))
    row: dict[str, Any] = {f"roles/{role}": counts[role] for role in STATES}
    row |= result["totals"]
    row |= {f"centre/{name}": centre(b) for name in REFERENCES if (b := profile(result, name)) is not None}
    row["pathology"] = len(result["pathology"])
    for layer in result["layers"]:
        values = {f"score_{role}": score for role, score in layer["scores"].items()} | {"margin": layer["margin"]}
        for name in ("cv", "saturated_robust", "effective_rank.o", "attention_share", "momentum_alignment.down"):
            values[name] = layer["measures"].get(name)
        row |= {f"{name}/layer_{layer['layer']:02d}": value for name, value in values.items()}
    return {f"forensics/{name}": value for name, value in row.items() if value is not None}


def _leaves(node: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, dict):
            yield from ((f"{key}/{name}", leaf) for name, leaf in _leaves(value))
        elif value is not None:
            yield key, value


def _open(config: Config, directory: Path, kind: str) -> Any:
    """Start the run whose files lie in `directory`/wandb, and nowhere else."""
    home = directory.resolve() / "wandb"
    home.mkdir(parents=True, exist_ok=True)
    if not os.access(home, os.W_OK):
        raise PermissionError(f"{home} is not writable")  # W&B would quietly write to /tmp
    os.environ |= {
        "WANDB_DATA_DIR": str(home / "data"),
        "WANDB_ARTIFACT_DIR": str(home / "artifacts"),
        "WANDB_CACHE_DIR": str(home / "cache"),
        "WANDB_ERROR_REPORTING": "false",
    }
    import wandb

    train = kind == "train"
    mode: Any = config.tracker.mode.value
    resolved: Any = OmegaConf.to_container(OmegaConf.structured(config), enum_to_str=True)
    return wandb.init(
        project=config.tracker.project,
        entity=config.tracker.entity,
        id=run_id(config, kind),
        resume="allow" if config.tracker.mode == TrackerMode.online else None,
        group=config.name,
        job_type=kind,
        name=f"{config.name}/{config.arm}/seed={config.seed}" if train else f"{config.name}/{kind}",
        tags=[config.arm, f"seed={config.seed}"] if train else None,
        config=resolved,
        dir=str(home.parent),
        mode=mode,
        reinit="create_new",
        settings=wandb.Settings(
            silent=True,
            console="off",
            symlink=False,
            disable_git=True,
            disable_code=True,
            x_disable_stats=True,
            x_disable_meta=True,
            x_disable_machine_info=True,
            x_save_requirements=False,
            init_timeout=INIT_SECONDS,
            finish_timeout=FINISH_SECONDS,
        ),
    )


def _log_tables(run: Any, tables: dict[str, pd.DataFrame]) -> None:
    """One row with every table. IMMUTABLE: a workspace shows all of it, not the last piece."""
    import wandb

    row = {}
    for name, table in tables.items():
        data: list[Any] = table.astype(object).where(table.notna(), None).to_numpy().tolist()
        row[f"tables/{name}"] = wandb.Table(
            columns=list(table.columns), data=data, log_mode="IMMUTABLE", allow_mixed_types=True
        )
    run.log(row)


def _log_multipliers(run: Any, cell_dir: Path, config: Config) -> None:
    """The heat map layer × tensor over the steps."""
    import wandb

    from orchestrator.compare.cells import read_cell
    from orchestrator.compare.figures import draw_multipliers

    figure = draw_multipliers({config.arm: [read_cell(cell_dir, config.arm, config.seed)]})
    run.log({"figures/sidecar": wandb.Plotly(figure)})


def _close(run: Any, exit_code: int) -> None:
    """Finish the run and its service, which no later child process may inherit."""
    import wandb

    run.finish(exit_code=exit_code)
    wandb.teardown()


def _give_up(run: Any, error: Exception) -> None:
    """One warning, and the end of W&B in this process, so that it says nothing more at exit."""
    reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
    log.warning("W&B tracking ends here (%s); everything is in the ledger.", reason)
    with suppress(Exception):
        if run is not None:
            run.finish(exit_code=1)
    with suppress(Exception):
        import wandb

        wandb.teardown()
