"""The files that the attempts of a cell change in turn: checkpoints, metrics log, outdated readings, interventions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from orchestrator.common.errors import UserError
from orchestrator.common.formatting import counted
from orchestrator.storage import checkpoint, metrics_log, steps
from orchestrator.storage.files import keep_as_replaced, write_whole

Writing = Callable[[], AbstractContextManager[Callable[[], None]]]  # the type of `Lease.writing`


@contextmanager
def unfenced() -> Iterator[Callable[[], None]]:
    """A stand-in for `Lease.writing`, for a cell that no other process can claim."""
    yield lambda: None


class CellFiles:
    """One attempt's access to the files of its cell.

    Methods that change a file enter `writing` first, which raises `Superseded` where a later attempt has claimed the
    cell, and raise `UserError` where the disk refuses; the old files are then still there.
    """

    def __init__(self, cell_dir: Path, writing: Writing = unfenced) -> None:
        self.cell_dir, self.checkpoints = cell_dir, cell_dir / "checkpoints"
        self.metrics_log, self._writing = cell_dir / "metrics.jsonl", writing

    def log(self, record: metrics_log.Record) -> None:
        """Append `record` to the metrics log."""
        with self._writing():
            metrics_log.append(self.metrics_log, record)

    def save(self, step: int, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> Path:
        """Write the checkpoint of `step` (see `checkpoint.save`); return its path."""
        path = checkpoint.path_of(self.checkpoints, step)
        with self._writing():
            if path.exists():  # written by an earlier attempt that was taken for dead
                checkpoint.set_aside(path, "replaced")
        return checkpoint.save(self.checkpoints, step, tensors, state, self._writing)

    def prune(self, checkpoints: int | None, states: int | None, spare: Callable[[Path], bool]) -> None:
        """Delete and reduce older checkpoints (see `checkpoint.prune`)."""
        with self._writing():
            checkpoint.prune(self.checkpoints, checkpoints, states, spare)

    def newest_checkpoint(
        self, is_of_this_run: Callable[[dict[str, Any]], bool] = lambda state: True
    ) -> tuple[Path | None, list[str]]:
        """The newest checkpoint to resume from, or None, and a sentence for each newer one that was passed over.

        It is whole, not reduced, and the metrics log reaches it: one that is ahead of the log would leave a gap there.
        Those whose state is not of this run, as it was to end earlier, are passed over in silence.
        """
        path, warnings = checkpoint.newest(self.checkpoints)
        last = metrics_log.newest(self.metrics_log)
        reached, reduced = last["step"] if last else -1, 0
        while path is not None:
            state = checkpoint.read_state(path)
            if not is_of_this_run(state):
                pass
            elif checkpoint.is_reduced(path):
                reduced += 1
            elif state["logged"] > reached:
                warnings.append(
                    f"{path} is ahead of the metrics log, which was cut at step {reached}: an earlier one is used."
                )
            else:
                break
            path, _ = checkpoint.newest(self.checkpoints, before=checkpoint.step_of(path))
        if reduced:
            warnings.append(
                f"{counted(reduced, 'older checkpoint')} {'holds' if reduced == 1 else 'hold'} weights only "
                f"(train.keep_states): {'an earlier one is used' if path else 'training starts again from step 0'}; "
                "train.keep_states=null keeps all from now on."
            )
        return path, warnings

    def begin_from(self, trunk: Path, step: int, name: str) -> None:
        """Copy what the cell in `trunk` had at `step`, the checkpoint last: until it is here, the cell has not begun.

        Records of the trunk, without its test loss, are marked by their key `trunk`, the `name`. The checkpoint of step
        0, with which readings compare, comes with that of `step`. Raises `UserError` where that is missing or corrupt.
        """
        self.rewind(-1)
        records = [
            {"trunk": name, **{k: v for k, v in record.items() if k != "test"}, "attempt": 0}  # before the cell's first
            for record in metrics_log.read(trunk / "metrics.jsonl")
            if record["step"] <= step
        ]
        with self._writing():
            metrics_log.write(self.metrics_log, records)
            for found in (steps.readings_in, steps.damages_in):
                for at, file in found(trunk).items():
                    if at <= step:
                        write_whole(self.cell_dir / file.relative_to(trunk), file.read_text(encoding="utf-8"))
        self.checkpoints.mkdir(exist_ok=True)
        for at in (0, step):
            if at == step or checkpoint.path_of(trunk / "checkpoints", 0).exists():
                checkpoint.copy(checkpoint.path_of(trunk / "checkpoints", at), self.checkpoints, self._writing)

    def rewind(self, step: int) -> None:
        """Set aside every checkpoint, all that was found in it, and every record after `step`; -1 for all of them."""
        with self._writing() as check:  # called before each change, as this process may have been frozen meanwhile
            try:
                checkpoint.clear_partial(self.checkpoints)
                for at, path in steps.paths_in(self.checkpoints).items():
                    if at > step:
                        reason = "corrupt" if checkpoint.corruption(path) else "replaced"
                        check()
                        checkpoint.set_aside(path, reason)
                for found in (steps.readings_in(self.cell_dir), steps.damages_in(self.cell_dir)):
                    for at, file in found.items():
                        if at > step:
                            check()
                            keep_as_replaced(file)
            except OSError as error:
                raise UserError(
                    f"{self.cell_dir} cannot go back to step {max(step, 0)} ({error}): make room or make it writable, "
                    "and run the same command again."
                ) from error
            metrics_log.rewind(self.metrics_log, step, check)
