"""What submitit pickles, and calls in the process that it starts."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from submitit.core.utils import DelayedSubmission

from orchestrator.schedulers.scheduler import Job


@dataclass(frozen=True)
class Submitted:
    """Runs a job's module; ends the process where the exit code is not 0."""

    job: Job

    def __call__(self) -> None:
        if code := self.job.run():
            sys.exit(code)

    def checkpoint(self) -> DelayedSubmission:
        """What submitit starts again where it is warned of preemption before the job handles signals: the same."""
        return DelayedSubmission(self)
