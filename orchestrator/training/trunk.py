"""The state that a branch begins from: that of its trunk at one step, copied into the branch's own directory."""

from __future__ import annotations

from pathlib import Path

from orchestrator.common.errors import UserError
from orchestrator.config import load
from orchestrator.config.schema import Config
from orchestrator.data import Corpus
from orchestrator.experiments.branch import is_whole_with_state
from orchestrator.experiments.dependency import trunk_cell
from orchestrator.storage import checkpoint
from orchestrator.storage.cell_files import CellFiles


def begin(config: Config, files: CellFiles, corpus: Corpus) -> Path:
    """Copy the trunk's state, records and readings; return the copied checkpoint.

    Raises `UserError` where the trunk has no state there, or was trained on other data though its keys are the same.
    """
    branch, trunk = config.branch, trunk_cell(config, files.cell_dir.parents[1])
    assert trunk is not None
    assert branch.step is not None
    source = checkpoint.path_of(trunk / "checkpoints", branch.step)
    if not is_whole_with_state(source):
        raise UserError(
            f"branch.step={branch.step} of {trunk} has no checkpoint with the state to begin from: train that cell "
            "first; the same command then begins this one."
        )
    known = load.from_file(trunk / "config.yaml")
    if (known.data, known.train.seq_len) == (config.data, config.train.seq_len):
        corpus.check_digest(checkpoint.read_state(source)["data"], source)
    files.begin_from(trunk, branch.step, "/".join(filter(None, (branch.experiment, branch.arm, trunk.name))))
    return checkpoint.path_of(files.checkpoints, branch.step)
