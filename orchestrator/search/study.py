"""The trials of a search: Optuna proposes them from the losses of those before, and keeps them in a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.common.errors import UserError
from orchestrator.config.schema import SearchConfig
from orchestrator.experiments.effects import Effect
from orchestrator.experiments.trials import STUDY, Trial
from orchestrator.search.methods import METHODS, Losses
from orchestrator.search.space import distributions, rounded, text
from orchestrator.storage.files import drop_torn_line

if TYPE_CHECKING:
    from optuna import Study as OptunaStudy


class Study:
    """A study of Optuna, whose trials are numbered from 0; `search` and the losses alone decide what it proposes."""

    def __init__(self, directory: Path, search: SearchConfig, steps: int) -> None:
        """Open the study in `directory`, or begin one there; `steps`: of the runs whose losses it is told.

        Raises `UserError` where it is of another search, or cannot be read.
        """
        self.path, self.search, self.space = directory / STUDY, search, distributions(search.space)
        self.method = METHODS[search.method]
        self._study = self._open()
        space = {key: text(values) for key, values in search.space.items()}
        named = {f"search.{key}": getattr(search, key) for key in ("method", "seed", "batch", *self.method.keys)}
        asked = named | {"search.space": space, "its steps": steps}
        recorded = self._study.user_attrs.get("search")
        if recorded is None:
            self._study.set_user_attr("search", asked)
        elif changed := [key for key in asked if recorded.get(key) != asked[key]]:
            listing = ", ".join(f"{key} was {recorded.get(key)} and is {asked[key]}" for key in changed)
            raise UserError(f"{self.path} holds another search ({listing}): choose another name=..., or restore it.")

    def _open(self) -> OptunaStudy:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        drop_torn_line(self.path)  # Optuna would append to it
        try:
            storage = JournalStorage(JournalFileBackend(str(self.path)))
            return optuna.create_study(storage=storage, study_name="search", direction="minimize", load_if_exists=True)
        except (ValueError, KeyError) as error:
            raise UserError(
                f"{self.path} cannot be read ({error}): delete it, and the same command proposes the same trials again."
            ) from error

    def propose(self) -> list[int]:
        """Propose the rest of the batch, or the next one where all have a loss; return the numbers of those without."""
        begun, losses, waits = len(self._study.trials), self.losses, bool(self.waiting())
        # an interrupted proposal may have left a batch incomplete
        until = next((end for end in self.method.ends(self.search) if end > begun or (waits and end == begun)), begun)
        for number in range(begun, until):
            self._study.sampler = self.method.sampler(self.search, self.space, number, losses)
            self._study.ask(fixed_distributions=self.space)
        return self.waiting()

    @property
    def losses(self) -> Losses:
        """The loss of every trial, in the order of proposal; None for those that failed or have none yet."""
        return [trial.value if trial.state.is_finished() else None for trial in self._study.trials]

    def effects(self) -> list[Effect]:
        """The effects of the keys on the loss; empty where the method measures none."""
        return self.method.effects(self.search, self.space, self.losses)

    def waiting(self) -> list[int]:
        """The numbers of the trials that were proposed and have no loss yet."""
        return [trial.number for trial in self._study.trials if not trial.state.is_finished()]

    def tell(self, number: int, loss: float | None) -> None:
        """Record the loss of a trial; None where it failed."""
        from optuna.trial import TrialState

        self._study.tell(number, loss, state=None if loss is not None else TrialState.FAIL)

    def trials(self) -> list[Trial]:
        """Every trial, in the order of proposal."""
        return [
            Trial(name_of(one.number), {key: rounded(value, self.space[key]) for key, value in one.params.items()})
            for one in self._study.trials
        ]


def name_of(number: int) -> str:
    """The arm of a trial."""
    return f"trial_{number}"
