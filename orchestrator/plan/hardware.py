"""Give the speed and memory of the hardware: of this machine, timed on one block, or of a GPU by its data sheet."""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial

import torch

from models.spec import DecoderSpec, forward_flops_per_token, num_params
from models.transformer import Decoder
from orchestrator.config.schema import Config, Device
from orchestrator.training.gpus import SHEETS
from orchestrator.training.optimizer import DecoupledAdamW

SAMPLE_FLOPS = 2e10  # of the timed forward pass: a fraction of a second on one core
SAMPLE_VOCAB = 1024  # rows of its embedding, as the whole one may not fit
REPEATS, SECONDS = 3, 0.15  # least repetitions and duration; the fastest counts, because other processes interfere

# Bytes of memory traffic per parameter and update, in fp32: 8 for decay, 12 for clipping, and 28 for fused Adam, which
# reads weight, gradient and both moments and writes all but the gradient.
UPDATE_BYTES = 48


@dataclass(frozen=True)
class Hardware:
    """The rates at which one rank trains, and its memory."""

    name: str
    source: str  # of the rates, as a sentence
    is_gpu: bool
    flops: float  # FLOP/s that forward and backward reach
    updates: float  # parameters/s that clipping, decay and Adam reach
    memory: float | None  # bytes of the GPU; null on a CPU

    @property
    def unit(self) -> str:
        """`GPU` or `core`, the unit of hours."""
        return "GPU" if self.is_gpu else "core"


def hardware_for(config: Config, spec: DecoderSpec) -> Hardware:
    """Return `plan.gpu` where it is set, else this machine, timed on one block of the model.

    The update has a rate of its own: it moves every weight, gradient and moment whatever the batch, and takes longer
    than the matrix products where a step has few tokens.
    """
    if config.plan.gpu is not None:
        sheet, mfu = SHEETS[config.plan.gpu], config.plan.mfu
        source = (
            f"assumed: plan.mfu={mfu:g} of its {sheet.flops / 1e12:,.0f} dense bf16 TFLOP/s, and updates at "
            f"the speed of its memory, {sheet.bandwidth / 1e12:.3g} TB/s"
        )
        return Hardware(sheet.name, source, True, mfu * sheet.flops, sheet.bandwidth / UPDATE_BYTES, sheet.memory)
    return measured(config, spec)


def measured(config: Config, spec: DecoderSpec) -> Hardware:
    """Return this machine, timed on forward, backward, clipping and update of one block of the model."""
    use_gpu = config.train.device != Device.cpu and torch.cuda.is_available()
    device, threads = torch.device("cuda" if use_gpu else "cpu"), torch.get_num_threads()
    one = DecoderSpec(layers=spec.layers[:1], vocab_size=min(spec.vocab_size, SAMPLE_VOCAB), norm=spec.norm)
    rows, seq_len = config.train.micro_batch_size or config.train.batch_size, config.train.seq_len
    rows = max(1, min(rows, int(SAMPLE_FLOPS / forward_flops_per_token(one, seq_len) / seq_len)))
    model = Decoder(one).to(device)
    optimizer = DecoupledAdamW(model, replace(config.optim, layer_lr={}))  # which may name what the sample lacks
    batch = torch.randint(one.vocab_size, (rows, seq_len + 1), device=device)
    precision = torch.autocast("cuda", dtype=torch.bfloat16) if use_gpu else nullcontext()
    clock = partial(_now, use_gpu, config.train.threads)
    passes, updates = math.inf, math.inf
    try:
        torch.set_num_threads(config.train.threads)
        begun, count = clock(), 0
        while count < REPEATS or clock() - begun < SECONDS:
            count += 1
            started = clock()
            with precision:
                loss = model.loss(batch)
            loss.backward()
            computed = clock()
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.optim.clip)
            optimizer.step(config.optim.lr)
            updated = clock()
            optimizer.zero_grad()
            passes, updates = min(passes, computed - started), min(updates, updated - computed)
    finally:
        torch.set_num_threads(threads)
    flops = 3 * forward_flops_per_token(one, seq_len) * rows * seq_len / passes
    cores = "one core" if config.train.threads == 1 else f"{config.train.threads} cores"
    name = torch.cuda.get_device_name() if use_gpu else f"{cores} of this machine"
    memory = float(torch.cuda.get_device_properties(0).total_memory) if use_gpu else None
    rate = num_params(one) / updates
    source = (
        f"measured just now on one block of this model: {flops / 1e9:,.1f} GFLOP/s and {rate / 1e6:,.0f} million "
        "parameters updated per second"
    )
    return Hardware(name, source, use_gpu, flops, rate, memory)


def _now(use_gpu: bool, threads: int) -> float:
    """Return seconds: CPU time per thread, or on a GPU wall time once it has finished its work."""
    if use_gpu:
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time() / threads
