"""A search as experiments: of trials at one seed, for each length of the runs; then of the best ones at other seeds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from types import MappingProxyType

from orchestrator.common.errors import UserError
from orchestrator.config import keys
from orchestrator.config.schema import AUTO, Config, SearchConfig, TrackerConfig, TrackerMode
from orchestrator.experiments import extension
from orchestrator.experiments.experiment import Compose, Experiment, experiment_of
from orchestrator.experiments.trials import BASELINE, FOLDER, Trial
from orchestrator.search.methods import METHODS, count
from orchestrator.search.space import ONCE, check, distributions, text

QUIET = ("interventions.every=null", "notify.command=null", "notify.webhook=null")


class Search:
    """The search of a command: its baseline, and the trials, which set other values of some keys."""

    def __init__(self, base: Config, overrides: Sequence[str], compose: Compose, swept: Sequence[str] = ()) -> None:
        """`base`: what `overrides` compose to. Raises `UserError` where a value of the space does not compose."""
        self.base, self.compose, self.swept = base, _remembering(compose), swept
        self.settings = replace(base.search, space=keys.flatten(base.search.space))  # on a command line, dots nest
        set_by_trials = {override for override in overrides if keys.key_of(override) in self.settings.space}
        self.own = [override for override in overrides if override in set_by_trials]  # the baseline's
        self.common = [override for override in overrides if override not in set_by_trials]
        METHODS[self.settings.method].check(self.settings, distributions(self.settings.space))
        check(self.settings.space, keys.flatten(base), lambda override: self.compose([*self.common, override]))
        self.directory = self.planned().directory

    @property
    def baseline(self) -> Trial:
        """The baseline's own settings."""
        known = keys.flatten(self.base) | {keys.key_of(override): override.partition("=")[2] for override in self.own}
        return Trial(BASELINE, {key: str(known.get(key, "as it is")) for key in self.settings.space})

    @property
    def lengths(self) -> list[int]:
        """The numbers of steps of the trials' runs."""
        steps = (max(1, round(share * self.base.train.steps)) for share in self.settings.lengths)
        return list(dict.fromkeys(steps))

    def experiment(self, chosen: Sequence[Trial]) -> Experiment:
        """The experiment that compares `chosen` with the baseline, at the seeds of the configuration."""
        named = self.base.name or any(keys.key_of(override) == "experiment" for override in self.common)
        base = replace(self.base, seeds=self.base.seeds or AUTO, name=self.base.name if named else FOLDER)
        found = self._of(chosen, base, self.common, swept=self.swept)
        taken = range(base.decide.max) if found.auto else found.config.seeds
        if self.settings.seed in (*taken, *found.config.seeds):
            raise UserError(
                f"search.seed={self.settings.seed} is, or may become, the seed of a pair, at which the chosen settings "
                "would look better than they are: search at another seed."
            )
        return found

    def planned(self) -> Experiment:
        """The experiment that will compare the best settings, with the baseline's own in their place."""
        own = {keys.key_of(override): override.partition("=")[2] for override in self.own}
        return self.experiment([Trial(f"finalist_{i + 1}", own) for i in range(self.settings.finalists)])

    @property
    def work(self) -> float:
        """The work of exploring, at most: so many cells of the baseline."""
        return sum((trained + 1) * steps / self.base.train.steps for trained, steps in self._counts())

    def _counts(self) -> Iterator[tuple[int, int]]:
        """Yield how many trials are trained at most, and for how many steps."""
        trained = count(self.settings)
        for steps in self.lengths:
            yield trained, steps
            trained = max(self.settings.finalists, math.ceil(self.settings.keep * trained))

    def plan(self) -> str:
        """Two sentences: which values are explored, in how many runs, and how much work that is."""
        space = ", ".join(f"{key}: {text(values)}" for key, values in self.settings.space.items())
        parts = [f"{trained} for {steps:,} steps" for trained, steps in self._counts()]
        return (
            f"Before that it explores {space} at seed {self.settings.seed}: {', '.join(parts)}, the baseline beside "
            f"them each time. That is the work of {self.work:.1f} cells of the baseline, not in the totals above."
        )

    def explored(self, steps: int, some: Sequence[Trial]) -> Experiment:
        """The experiment that trains `some` for `steps` steps, one of `lengths`, at the search's seed.

        A run goes on from the shorter one, at the last step up to which the two are equal, if there is any.
        """
        whole, at = self.base.train.steps, self.lengths.index(steps)
        common = [*self.common, f"train.steps={steps}", *(f"{key}={whole}" for key in ONCE), *QUIET]
        base = replace(
            self.compose([*common, *self.own]), name=f"{steps}_steps", root=str(self.directory / FOLDER),
            seeds=[self.settings.seed], tracker=TrackerConfig(mode=TrackerMode.off), contrasts={}, expect={},
            dropped=[], question=f"Which setting has the lowest validation loss after {steps} steps?",
        )  # fmt: skip
        begun = _begun(self.explored(self.lengths[at - 1], some)) if at else {}
        return self._of(some, base, common, begun)

    def _of(
        self,
        some: Sequence[Trial],
        base: Config,
        common: Sequence[str],
        begun: Mapping[str, str] = MappingProxyType({}),
        swept: Sequence[str] = (),
    ) -> Experiment:
        """`begun`: arm → the override by which it begins as a branch."""
        own = {BASELINE: self.own, **{one.name: one.overrides for one in some}}
        arms = {arm: [*overrides, *([begun[arm]] if arm in begun else [])] for arm, overrides in own.items()}
        declared = list(dict.fromkeys([*base.declared, *self.settings.space, *(["branch"] if begun else [])]))
        base = replace(base, arms=arms, declared=declared, search=SearchConfig())
        return experiment_of(common, self._composed, base=base, swept=swept)

    def _composed(self, overrides: Sequence[str]) -> Config:
        return replace(self.compose(overrides), search=SearchConfig())


def _remembering(compose: Compose) -> Compose:
    """`compose`, which takes Hydra a while, called once for the same overrides."""
    known: dict[tuple[str, ...], Config] = {}

    def remembered(overrides: Sequence[str]) -> Config:
        if (key := tuple(overrides)) not in known:
            known[key] = compose(overrides)
        return deepcopy(known[key])

    return remembered


def _begun(shorter: Experiment) -> dict[str, str]:
    """Arm → the override by which it goes on from its shorter run, for those that can."""
    steps = {arm: extension.exact_until(config) for arm, config in shorter.arms.items()}
    where = shorter.directory
    return {arm: f"branch={{arm: {arm}, step: {at}, experiment: '{where}'}}" for arm, at in steps.items() if at}
