"""Compute the cost of an experiment: its cells' counts over the rates of the hardware."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, replace

from orchestrator.config.schema import Where
from orchestrator.experiments.experiment import Cell, Experiment, decoder_spec
from orchestrator.plan.arm import ArmPlan
from orchestrator.plan.benchmark import Benchmark, run_benchmark
from orchestrator.plan.footprint import Footprint, footprint_of
from orchestrator.plan.hardware import Hardware, hardware_for
from orchestrator.plan.memory import intervening, peak
from orchestrator.schedulers import chosen


@dataclass(frozen=True)
class CellCost:
    """The cost of one cell of an arm; times are in seconds of wall time."""

    plan: ArmPlan
    footprint: Footprint
    passes: float  # forward and backward, with the sidecar's held-out passes
    updates: float  # clipping, decay, Adam
    evaluation: float  # logged held-out losses
    saving: float  # checkpoints
    reading: float  # one reading of its layers, on one core
    intervening: float  # the interventions on one checkpoint
    memory: float  # bytes of one process at its peak, in the memory of its device
    intervening_memory: float  # bytes of main memory that interventions hold, a part of `memory` where they share it

    @property
    def training(self) -> float:
        return self.passes + self.updates + self.evaluation + self.saving

    @property
    def forensics(self) -> float:
        """Seconds of all readings."""
        return len(self.plan.readings) * self.reading

    @property
    def interventions(self) -> float:
        """Seconds of all interventions."""
        return len(self.plan.interventions) * self.intervening

    @property
    def beside(self) -> float:
        """Seconds of what runs in parallel with training: readings and interventions, one after another."""
        return self.forensics + self.interventions

    @property
    def seconds(self) -> float:
        """Seconds from the first step to the last reading and intervention."""
        return max(self.training, self.beside)


@dataclass(frozen=True)
class Cost:
    """The cost of an experiment; `cells` are in its order."""

    experiment: Experiment
    hardware: Hardware
    benchmark: Benchmark
    arms: dict[str, CellCost]
    cells: list[CellCost]
    slots: int | None  # cells that can run at once; null: all

    @property
    def at_once(self) -> int:
        return min(self.slots or len(self.cells), len(self.cells))

    @property
    def jobs(self) -> int:
        """Cells, the jobs of `forensics.where=job` (in a queue one per reading), and in a queue the comparison."""
        queues = chosen(self.experiment.config).queues
        beside = self.experiment.config.forensics.where == Where.job
        readings = self.readings if queues else len(self.cells)
        return len(self.cells) + beside * readings + queues

    @property
    def device_seconds(self) -> float:
        """GPU-seconds or core-seconds that the cells occupy."""
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
    def interventions(self) -> int:
        """Number of checkpoints that are intervened on."""
        return sum(len(cell.plan.interventions) for cell in self.cells)

    @property
    def checkpoints(self) -> int:
        return sum(cell.plan.kept for cell in self.cells)

    @property
    def disk(self) -> int:
        return sum(cell.plan.disk for cell in self.cells)

    @property
    def rows(self) -> int:
        return sum(cell.footprint.rows for cell in self.cells)

    @property
    def wandb(self) -> int:
        """Bytes of the cells' W&B runs, and of the comparison's, which repeats their tables."""
        return sum(cell.footprint.wandb + cell.footprint.tables for cell in self.cells)


def cost_of(experiment: Experiment, left: Sequence[Cell] | None = None) -> Cost:
    """Return the cost of the cells that are `left`, by default of all.

    Measuring the rates takes some seconds and a temporary directory.
    """
    plans = [ArmPlan(arm, config, decoder_spec(config)) for arm, config in experiment.arms.items()]
    baseline = plans[0]
    hardware = hardware_for(baseline.config, baseline.spec)
    benchmark = run_benchmark(baseline.config, baseline.spec)
    arms = {plan.arm: _cell(plan, hardware, benchmark) for plan in plans}
    cells = [arms[cell.config.arm] for cell in (experiment.cells if left is None else left)]
    config = experiment.config
    scheduler = chosen(config)(experiment.directory)
    elsewhere = config.plan.gpu is not None or scheduler.queues
    slots = config.launcher.parallel if elsewhere else len(scheduler.slots(config))
    return Cost(experiment, hardware, benchmark, arms, cells, slots)


def looks_of(cost: Cost) -> list[Cost]:
    """Return the cost up to each look of `seeds: auto`, apart from the looks before it: `cost`, then those to come."""
    config = cost.experiment.config
    pairs, most, step = len(config.seeds), config.decide.max, config.decide.step
    later = [min(step, most - begun) for begun in range(pairs, most, step)]
    return [cost, *(replace(cost, cells=[*cost.arms.values()] * added) for added in later)]


def makespan(seconds: Sequence[float], slots: int) -> float:
    """Return the end of the last job if each starts, in order, as soon as one of `slots` is free."""
    free = [0.0] * slots
    for each in seconds:
        heapq.heapreplace(free, free[0] + each)
    return max(free)


def shares_memory(plan: ArmPlan, hardware: Hardware) -> bool:
    """True where interventions take the memory of the process that trains, as on a CPU in a thread of it."""
    return not hardware.is_gpu and plan.config.forensics.where == Where.inline


def _cell(plan: ArmPlan, hardware: Hardware, benchmark: Benchmark) -> CellCost:
    held = intervening(plan.spec, plan.config.train.seq_len + 1) if plan.interventions else 0.0
    ranks = plan.config.launcher.ranks  # ranks share all work but saving; communication counts as free
    return CellCost(
        plan=plan,
        footprint=footprint_of(plan, benchmark),
        passes=plan.flops / hardware.flops / ranks,
        updates=(plan.updates + plan.fork_steps) * plan.params / hardware.updates / ranks,
        evaluation=plan.evaluation_flops / hardware.flops / ranks,
        saving=plan.written / benchmark.write_rate,
        reading=benchmark.seconds_of(plan.spec),
        intervening=plan.intervention_flops / benchmark.forward,
        memory=peak(plan.config, plan.spec, plan.traces, on_gpu=hardware.is_gpu) + held * shares_memory(plan, hardware),
        intervening_memory=held,
    )
