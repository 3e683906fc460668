"""Beginning a launch: the checks, the data, and the run directory, before the first cell starts."""

from __future__ import annotations

from rich.console import Console

from orchestrator.experiments.experiment import Experiment
from orchestrator.experiments.run_directory import open_directory, record_data, refuse_another, without_dropped
from orchestrator.launch import checks


def checked(experiment: Experiment) -> Experiment:
    """The experiment without its dropped arms. Raises `UserError` where it cannot be launched; writes nothing."""
    refuse_another(experiment)
    kept = without_dropped(experiment)
    checks.check(kept)
    return kept


def begin(experiment: Experiment, console: Console) -> None:
    """Prepare the data of a checked experiment and write its run directory. Raises `UserError`."""
    checks.check_jobs(experiment)
    prepared = checks.prepare_data(experiment, console)
    open_directory(experiment)
    record_data(experiment, prepared)
