"""What an experiment will cost, before it costs anything: `dry_run=true`."""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from models.transformer import Decoder, DecoderSpec, body_params, forward_flops_per_token, num_params
from orchestrator import launch
from orchestrator.expect import intended
from orchestrator.experiment import Experiment, decoder_spec, sidecar_flops, training_flops
from orchestrator.schema import Config, Credit, Device, SidecarMode


@dataclass(frozen=True)
class ArmPlan:
    """The cost of one cell of an arm."""

    arm: str
    spec: DecoderSpec
    params: int
    body: int
    forward: int  # FLOPs of one token's forward pass
    flops: float  # of the whole run, the sidecar's held-out passes included
    tokens: int
    checkpoints: int
    disk: float  # bytes of all its checkpoints


def plan_arm(arm: str, config: Config) -> ArmPlan:
    """Count structurally what a cell of `arm` holds, computes and writes; nothing is allocated."""
    spec, train = decoder_spec(config), config.train
    steps = {
        0,
        train.steps,
        *range(0, train.steps, train.checkpoint_every),
        *range(0, train.steps, config.forensics.every),
    }
    kept = len(steps) if train.keep_checkpoints is None else min(len(steps), 1 + train.keep_checkpoints)
    params = num_params(spec)
    judging = config.sidecar.mode in (SidecarMode.learn, SidecarMode.random) and config.sidecar.schedule is None
    decisions = math.ceil(train.steps / config.sidecar.interval) if judging else 0
    judged = max(0, decisions - 1)  # on the batches that each began on; then the next one begins
    learning = config.sidecar.mode == SidecarMode.learn and config.sidecar.credit == Credit.factored
    return ArmPlan(
        arm=arm,
        spec=spec,
        params=params,
        body=body_params(spec),
        forward=forward_flops_per_token(spec, train.seq_len),
        flops=training_flops(config, spec) + sidecar_flops(config, spec, decisions + judged, judged * learning),
        tokens=train.steps * train.batch_size * train.seq_len,
        checkpoints=kept,
        # fp32 weights; after step 0 two moments beside them, and what a channel that learns by slopes keeps of each
        disk=params * (4 + (12 + 4 * learning * len({"decay", "lr_scale"} & {*config.sidecar.channels})) * (kept - 1)),
    )


def show(experiment: Experiment, console: Console) -> None:
    """Print cells, widths, parameters, FLOPs, mismatch between arms, and estimated time and disk."""
    plans = [plan_arm(arm, config) for arm, config in experiment.arms.items()]
    seeds, at_once = experiment.config.seeds, len(launch.slots(experiment.config))
    console.print(f"[bold]{escape(experiment.name)}[/]  {escape(experiment.config.question)}")
    arms = "1 arm" if len(plans) == 1 else f"{len(plans)} arms"
    console.print(
        f"{len(experiment.cells)} cells = {arms} × seeds {', '.join(map(str, seeds))}; "
        f"up to {at_once} at once; into {escape(str(experiment.directory))}"
    )
    console.print()
    console.print(_table(plans))
    for plan in plans:
        console.print(f"[dim]{escape(plan.arm)} widths[/]  {_layers(plan.spec)}", soft_wrap=True)
    for plan in plans[1:]:
        console.print(
            f"{escape(plan.arm)} against {escape(plans[0].arm)}: parameters {plan.params / plans[0].params - 1:+.2%}, "
            f"FLOPs {plan.flops / plans[0].flops - 1:+.2%}"
        )
    if experiment.config.contrasts:
        console.print(f"[dim]contrasts, tested in this order[/]  {escape(' · '.join(experiment.config.contrasts))}")
    if wanted := intended(experiment.config.expect, experiment.arms):
        console.print(f"[dim]expected[/]  {escape(' · '.join(map(str, wanted)))}")
    console.print()
    rate = _measured_rate(plans[0].spec, next(iter(experiment.arms.values())))
    cells = [next(p for p in plans if p.arm == cell.config.arm) for cell in experiment.cells]
    rounds = math.ceil(len(cells) / at_once) / len(cells)
    seconds = rounds * sum(plan.flops for plan in cells) / rate
    console.print(
        f"Estimated training time [bold]{_duration(seconds)}[/] at {rate / 1e9:,.1f} GFLOP/s per cell "
        "(one block of this model, timed on this machine just now; evaluation and forensics come on top)."
    )
    disk, checkpoints = sum(plan.disk for plan in cells), sum(plan.checkpoints for plan in cells)
    console.print(f"Estimated disk [bold]{_bytes(disk)}[/] for {checkpoints} checkpoints.")


def _table(plans: list[ArmPlan]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("arm")
    for header in (
        "layers",
        "parameters",
        "body",
        "embed + head",
        "FLOPs/token (forward)",
        "training FLOPs",
        "tokens",
    ):
        table.add_column(header, justify="right")
    for plan in plans:
        row = (
            f"{len(plan.spec.layers)}",
            f"{plan.params:,}",
            f"{plan.body:,}",
            f"{plan.params - plan.body:,}",
        )
        table.add_row(escape(plan.arm), *row, f"{plan.forward:.4g}", f"{plan.flops:.3g}", f"{plan.tokens:,}")
    return table


def _layers(spec: DecoderSpec) -> str:
    """`1168/3504` per layer (width/FFN), runs of equal layers written once."""
    parts: list[list[str | int]] = []
    for layer in spec.layers:
        text = f"{layer.width}/{layer.ffn}"
        if parts and parts[-1][0] == text:
            parts[-1][1] = int(parts[-1][1]) + 1
        else:
            parts.append([text, 1])
    return "  ".join(f"{text}" if count == 1 else f"{text} ×{count}" for text, count in parts) + "   (width/FFN)"


def _measured_rate(spec: DecoderSpec, config: Config) -> float:
    """FLOP/s reached by forward and backward of one block of this model on this machine."""
    use_gpu = config.train.device != Device.cpu and torch.cuda.is_available()
    device, threads = torch.device("cuda" if use_gpu else "cpu"), torch.get_num_threads()
    rows = config.train.micro_batch_size or config.train.batch_size
    # one layer on a small vocabulary: the whole model may not fit here
    one = DecoderSpec(layers=spec.layers[:1], vocab_size=min(spec.vocab_size, 1024), norm=spec.norm)
    tokens = max(config.train.seq_len, min(rows * config.train.seq_len, int(2e10 / forward_flops_per_token(one, 1))))
    shape = (max(1, tokens // config.train.seq_len), config.train.seq_len + 1)
    model = Decoder(one).to(device)
    batch = torch.randint(one.vocab_size, shape, device=device)
    precision = torch.autocast("cuda", dtype=torch.bfloat16) if use_gpu else nullcontext()
    flops = 3 * forward_flops_per_token(one, config.train.seq_len) * shape[0] * config.train.seq_len
    best = math.inf
    try:
        torch.set_num_threads(config.train.threads)
        for _ in range(3):
            started = time.perf_counter()
            with precision:
                loss = model.loss(batch)
            loss.backward()
            if use_gpu:
                torch.cuda.synchronize()
            best = min(best, time.perf_counter() - started)
    finally:
        torch.set_num_threads(threads)
    return flops / best


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.0f} seconds"


def _bytes(count: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1e3:.0f} kB"
