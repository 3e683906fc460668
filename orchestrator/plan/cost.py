"""What an experiment costs: its cells' counts times the rates of the hardware they are meant for."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator import launch
from orchestrator.config.schema import LauncherKind, Where
from orchestrator.experiments.experiment import Experiment
from orchestrator.plan.arm import ArmPlan, plan_arms
from orchestrator.plan.hardware import Hardware, hardware_for
from orchestrator.plan.memory import peak
from orchestrator.plan.sample import Sample, take_sample
from orchestrator.plan.volume import Volume, volume


@dataclass(frozen=True)
class CellCost:
    """One cell of an arm: seconds of wall time, each alone on its hardware."""

    plan: ArmPlan
    volume: Volume
    passes: float  # forward and backward, the sidecar's held-out passes included
    updates: float  # clipping, decay, Adam
    evaluation: float  # logged held-out losses
    saving: float  # checkpoints
    reading: float  # one reading of its layers, on one core
    memory: float  # bytes of one process at the peak of a training step

    @property
    def training(self) -> float:
        return self.passes + self.updates + self.evaluation + self.saving

    @property
    def forensics(self) -> float:
        """All its readings; they run beside training."""
        return len(self.plan.readings) * self.reading

    @property
    def seconds(self) -> float:
        """From its first step to its end: after the last step it waits for its readings."""
        return max(self.training, self.forensics)


@dataclass(frozen=True)
class Cost:
    """An experiment: `cells` arm by arm, seed by seed."""

    experiment: Experiment
    hardware: Hardware
    sample: Sample
    arms: dict[str, CellCost]
    cells: list[CellCost]
    at_once: int

    @property
    def jobs(self) -> int:
        """Cells; with `forensics.where=job` readings, of which Slurm runs each as a job; there also the comparison."""
        on_slurm = self.experiment.config.launcher.kind == LauncherKind.slurm
        beside = self.experiment.config.forensics.where == Where.job
        readings = self.readings if on_slurm else len(self.cells)
        return len(self.cells) + beside * readings + on_slurm

    @property
    def device_seconds(self) -> float:
        """Of GPUs, or of cores, that are held."""
        each = 1 if self.hardware.is_gpu else self.experiment.config.train.threads
        held = each * self.experiment.config.launcher.ranks
        return held * sum(cell.seconds for cell in self.cells)

    @property
    def wall_seconds(self) -> float:
        return makespan([cell.seconds for cell in self.cells], self.at_once)

    @property
    def readings(self) -> int:
        return sum(len(cell.plan.readings) for cell in self.cells)

    @property
    def checkpoints(self) -> int:
        return sum(cell.plan.kept for cell in self.cells)

    @property
    def disk(self) -> int:
        return sum(cell.plan.disk for cell in self.cells)

    @property
    def rows(self) -> int:
        return sum(cell.volume.rows for cell in self.cells)

    @property
    def wandb(self) -> int:
        """Of all cells, and of the comparison, whose run repeats their tables."""
        return sum(cell.volume.wandb + cell.volume.tables for cell in self.cells)


def cost_of(experiment: Experiment) -> Cost:
    """Count, and time what is to be timed: a few seconds of one core, one temporary directory."""
    plans = plan_arms(experiment.arms.items())
    baseline = plans[0]
    hardware = hardware_for(baseline.config, baseline.spec)
    sample = take_sample(baseline.config, baseline.spec)
    arms = {plan.arm: _cell(plan, hardware, sample) for plan in plans}
    cells = [arms[cell.config.arm] for cell in experiment.cells]
    config = experiment.config
    elsewhere = config.plan.gpu is not None or config.launcher.kind == LauncherKind.slurm
    at_once = (config.launcher.parallel or len(cells)) if elsewhere else len(launch.slots(config))
    return Cost(experiment, hardware, sample, arms, cells, min(at_once, len(cells)))


def makespan(seconds: Sequence[float], slots: int) -> float:
    """When the last of these jobs ends, each begun in turn as soon as one of `slots` is free."""
    free = [0.0] * slots
    for each in seconds:
        heapq.heapreplace(free, free[0] + each)
    return max(free)


def _cell(plan: ArmPlan, hardware: Hardware, sample: Sample) -> CellCost:
    ranks = plan.config.launcher.ranks  # which share all but the saving, as if talking cost nothing
    return CellCost(
        plan=plan,
        volume=volume(plan, sample),
        passes=plan.flops / hardware.flops / ranks,
        updates=plan.config.train.steps * plan.params / hardware.updates / ranks,
        evaluation=plan.evaluation_flops / hardware.flops / ranks,
        saving=plan.written / sample.write_rate,
        reading=sample.seconds_of(plan.spec),
        memory=peak(plan.config, plan.spec, plan.traces, on_gpu=hardware.is_gpu),
    )
