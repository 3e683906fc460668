"""The steps at which a run evaluates, saves and is read: the one rule of training, plan, readings and alerts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from orchestrator.config.schema import Config


@dataclass(frozen=True)
class Due:
    """The multiples of each of `periods`, 0 included, the last step, powers of two below `early`, and `also`."""

    periods: tuple[int, ...]
    last: int
    early: int = 0
    also: tuple[int, ...] = ()

    def __contains__(self, step: int) -> bool:
        return step == self.last or self.holds_in_a_longer_run(step)

    def holds_in_a_longer_run(self, step: int) -> bool:
        """True for a step that is due by itself, not because the run ends there."""
        return (
            any(step % every == 0 for every in self.periods)
            or (0 < step < self.early and step & (step - 1) == 0)
            or step in self.also
        )

    def __iter__(self) -> Iterator[int]:
        """The due steps from 0 to the last, ascending."""
        of_periods = {step for every in self.periods for step in range(0, self.last, every)}
        doubled = {1 << power for power in range((min(self.early, self.last) - 1).bit_length()) if self.early}
        also = {step for step in self.also if step < self.last}
        return iter(sorted({*of_periods, *doubled, *also, self.last}))

    def next(self, step: int) -> int:
        """The first due step that is not before `step`, which lies in the run."""
        multiples = [-(-step // every) * every for every in self.periods]
        doubled = 1 << (step - 1).bit_length() if step > 0 else 0
        also = [other for other in self.also if other >= step]
        return min(self.last, *multiples, *also, *([doubled] if doubled in self else []))


def reading_steps(config: Config) -> Due:
    """The steps whose checkpoints are read."""
    return reading_steps_of(config.train.steps, config.forensics.every, early=config.forensics.early)


def reading_steps_of(steps: int, every: int, *, early: bool) -> Due:
    """The same from `train.steps`, `forensics.every` and `forensics.early`."""
    return Due((every,), steps, every if early else 0)


def checkpoint_steps(config: Config) -> Due:
    """The steps at which a checkpoint is saved, those that are read among them."""
    read = reading_steps(config)
    return Due((config.train.checkpoint_every, *read.periods), read.last, read.early, tuple(config.train.keep_at))


def evaluation_steps(config: Config) -> Due:
    """The steps with a held-out loss: the early readings have theirs, which their changes are compared with."""
    return Due((config.train.eval_every,), config.train.steps, reading_steps(config).early)


def record_steps(config: Config) -> Due:
    """The steps with a record in the metrics log, but for those at which a sidecar decides."""
    evaluated = evaluation_steps(config)
    return Due((config.train.log_every, *evaluated.periods), evaluated.last, evaluated.early)


def intervention_steps(config: Config) -> Due | None:
    """The steps whose checkpoints are intervened on; None where there are none."""
    return intervention_steps_of(config.train.steps, config.interventions.every)


def intervention_steps_of(steps: int, every: int | None) -> Due | None:
    """The same from `train.steps` and `interventions.every`."""
    return None if every is None else Due((every,), steps)
