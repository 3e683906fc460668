"""Checks before a launch for all that would end a cell at its start; and the preparation of the data."""

from __future__ import annotations

import torch
from rich.console import Console

from models.transformer import Decoder
from orchestrator import data
from orchestrator.common.errors import UserError
from orchestrator.config.schema import Config, Device, SidecarMode
from orchestrator.data import Corpus
from orchestrator.experiments import corpora
from orchestrator.experiments.branch import is_whole_with_state
from orchestrator.experiments.dependency import trunk_cell
from orchestrator.experiments.experiment import Experiment, decoder_spec
from orchestrator.jobs.worker import is_finished
from orchestrator.launch.jobs import waves
from orchestrator.schedulers import chosen
from orchestrator.storage import checkpoint
from orchestrator.storage.event_log import EventLog
from orchestrator.tracking import run
from orchestrator.training import distributed, initial_weights
from orchestrator.training.optimizer import layer_rates
from orchestrator.training.sidecar import planned_sidecar


def check(experiment: Experiment) -> None:
    """Raise `UserError` for what would end a cell at its start."""
    for config in experiment.arms.values():
        scheduler = chosen(config)(experiment.directory)
        if not scheduler.queues and config.train.device == Device.cuda and not torch.cuda.is_available():
            raise UserError("train.device=cuda, but torch sees no GPU here: use train.device=auto.")
        scheduler.check(config)
        check_arm(config)
    for config in _to_train(experiment).values():
        digest = corpora.digest_of(config, experiment.directory, _alike(config, experiment))
        if digest is None or data.find(config.data, config.train.seq_len, digest) is None:
            data.check(config.data, config.model.vocab_size, config.train.seq_len)
    _check_trunks(experiment)
    run.check(experiment.config)


def check_arm(config: Config) -> None:
    """Raise `UserError` for settings of an arm that would end each of its cells at its start."""
    distributed.check(config, config.launcher.ranks)
    initial_weights.check(config)
    if config.optim.layer_lr:
        with torch.device("meta"):
            model = Decoder(decoder_spec(config))
        layer_rates(config.optim, model)
    if config.sidecar.mode != SidecarMode.off:
        planned_sidecar(config)


def _check_trunks(experiment: Experiment) -> None:
    """Raise `UserError` for a branch whose trunk no longer has, or will not have, the state to begin from."""
    events = EventLog(experiment.directory).last().items()
    under_way = {experiment.directory / cell for cell, entry in events if entry.is_open}
    trained = under_way | {cell.directory for cell in experiment.cells}
    for cell in experiment.cells:
        trunk, step = trunk_cell(cell.config, experiment.directory), cell.config.branch.step
        if trunk is None or step is None or checkpoint.saved(cell.directory / "checkpoints"):
            continue
        saved = {checkpoint.step_of(path): path for path in checkpoint.saved(trunk / "checkpoints")}
        left = [at for at, path in saved.items() if is_whole_with_state(path)]
        if step not in left and any(at > step for at in saved):
            raise UserError(
                f"{cell.id} begins at branch.step={step} of {trunk}, which is past it and keeps its state only at "
                f"steps {', '.join(map(str, left)) or '–'}: begin at one of these, or train it anew under name=...."
            )
        if step not in left and trunk not in trained:
            raise UserError(
                f"{cell.id} begins at branch.step={step} of {trunk}, which has not come so far, and which this launch "
                "does not train: train that cell first."
            )


def check_jobs(experiment: Experiment) -> None:
    """Raise `UserError` where the scheduler would refuse the experiment's jobs."""
    unfinished = [cell for cell in experiment.cells if not is_finished(cell.directory)]
    together = max(map(len, waves(unfinished)), default=1)
    chosen(experiment.config)(experiment.directory).check_submission(experiment.config, together)


def prepare_data(experiment: Experiment, console: Console) -> dict[str, Corpus]:
    """Prepare the corpora before the cells, which share them, begin; return arm → corpus, of the arms that train.

    Prints where an arm goes on with the corpus that it began with, though its sources have changed. Raises `UserError`.
    """
    prepared = {}
    with console.status("Preparing the data"):
        for arm, config in _to_train(experiment).items():
            prepared[arm] = corpora.prepare_for(config, experiment.directory, _alike(config, experiment))
    for folder in {corpus.folder for arm, corpus in prepared.items() if _has_changed(experiment.arms[arm], corpus)}:
        text = f"The text's sources have been changed: cells go on with the corpus that their arm began with, {folder}."
        console.print(text, markup=False, highlight=False, soft_wrap=True)
    return prepared


def _alike(config: Config, experiment: Experiment) -> list[Config]:
    """The other arms with the same data and rows."""
    return [
        other
        for arm, other in experiment.arms.items()
        if arm != config.arm and (other.data, other.train.seq_len) == (config.data, config.train.seq_len)
    ]


def _has_changed(config: Config, corpus: Corpus) -> bool:
    """True where the sources are not those of the corpus any more, or are gone."""
    try:
        return data.check(config.data, config.model.vocab_size, config.train.seq_len) != corpus.folder.name
    except UserError:
        return True


def _to_train(experiment: Experiment) -> dict[str, Config]:
    """The arms that have a cell to train."""
    arms = {cell.config.arm for cell in experiment.cells if not is_finished(cell.directory)}
    return {arm: config for arm, config in experiment.arms.items() if arm in arms}
