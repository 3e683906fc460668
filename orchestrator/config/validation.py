"""What types cannot say of a configuration: values that would fail hours later are refused, with reason and cure."""

from __future__ import annotations

import math
import re

from orchestrator.common.errors import UserError
from orchestrator.config.keys import flatten
from orchestrator.config.schema import Config, LauncherKind, Source

# Of single values; `validate` adds what concerns several.
POSITIVE = (
    "model.layers", "model.width", "model.head_dim", "model.queries_per_kv", "model.ffn_ratio", "model.vocab_size",
    "model.rope_theta", "width.start", "width.end", "width.multiple_of", "data.train_tokens", "data.heldout_tokens",
    "optim.lr", "optim.eps", "optim.clip", "train.steps", "train.batch_size", "train.micro_batch_size",
    "train.seq_len", "train.log_every", "train.eval_every", "train.checkpoint_every", "train.keep_checkpoints",
    "train.threads", "forensics.every", "forensics.resamples", "launcher.parallel", "launcher.ranks",
    "launcher.timeout_hours", "launcher.backoff_seconds",
    "launcher.slurm.nodes", "launcher.slurm.cpus", "launcher.slurm.memory_gb",
    "launcher.slurm.side_memory_gb", "launcher.slurm.warning_seconds",
    "sidecar.interval", "sidecar.sigma", "sidecar.reward_rows", "sidecar.lr_max",
)  # fmt: skip
NOT_NEGATIVE = (
    "optim.weight_decay", "optim.warmup_steps", "forensics.trace_steps", "sidecar.warmup", "launcher.retries",
    "launcher.slurm.gpus", "launcher.slurm.side_nice",
)  # fmt: skip
RESERVED = ("comparison", "jobs")  # what else lies beside the arms
AVERAGES = ("optim.beta1", "optim.beta2", "sidecar.baseline_decay")


def validate(config: Config) -> None:
    """Refuse, with a reason and a cure, values that would fail hours later."""
    values = flatten(config)
    for key in POSITIVE:
        value = values[key]
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise UserError(f"{key}={value} must be a positive finite number: set {key} above 0.")
    for key in NOT_NEGATIVE:
        if not (values[key] >= 0 and math.isfinite(values[key])):
            raise UserError(f"{key}={values[key]} must not be negative: set {key} to 0 or more.")
    for key in AVERAGES:
        if not 0 <= values[key] < 1:
            raise UserError(f"{key}={values[key]} is outside [0, 1): it is the share of the old average that is kept.")
    if not 0 < config.plan.mfu <= 1:
        raise UserError(f"plan.mfu={config.plan.mfu} is outside (0, 1]: it is the share of a GPU's peak FLOP/s.")
    if not 0 <= config.optim.min_lr_ratio <= 1:
        raise UserError(f"optim.min_lr_ratio={config.optim.min_lr_ratio} is outside [0, 1]: it is a share of optim.lr.")
    if not 0 <= config.optim.decay_fraction <= 1:
        raise UserError(
            f"optim.decay_fraction={config.optim.decay_fraction} is outside [0, 1]: it is a share of the run."
        )
    if config.optim.lr * config.optim.weight_decay >= 0.1:
        raise UserError(
            f"optim.lr × optim.weight_decay = {config.optim.lr * config.optim.weight_decay:.3g} would shrink every "
            "weight by a tenth or more per step: lower optim.weight_decay or optim.lr."
        )
    for channel, pair in config.sidecar.bounds.items():
        if not isinstance(pair, list) or not all(isinstance(end, int | float) for end in pair):
            raise UserError(f"sidecar.bounds.{channel}={pair} is no pair of numbers: write [least, largest].")
    micro = config.train.micro_batch_size
    if micro is not None and config.train.batch_size % micro:
        raise UserError(
            f"train.micro_batch_size={micro} does not divide train.batch_size={config.train.batch_size}: "
            "choose a divisor, so that every optimizer step sees the same number of sequences."
        )
    if config.forensics.resamples < 2:
        raise UserError(
            f"forensics.resamples={config.forensics.resamples} has no spread to compare with: use 2 or more."
        )
    if not config.data.domains:
        raise UserError("data.domains is empty: name at least one domain, or use data=builtin.")
    if config.launcher.ranks % config.launcher.slurm.nodes:
        raise UserError(
            f"launcher.ranks={config.launcher.ranks} cannot be spread over launcher.slurm.nodes="
            f"{config.launcher.slurm.nodes}: make it a multiple, one process for each GPU."
        )
    if config.launcher.kind == LauncherKind.slurm and config.launcher.parallel and not config.launcher.slurm.array:
        raise UserError(
            f"launcher.parallel={config.launcher.parallel} has no effect with launcher.slurm.array=false: "
            "only tasks of an array can be limited; drop one of them."
        )
    limit, warning = 3600 * config.launcher.timeout_hours, config.launcher.slurm.warning_seconds
    if config.launcher.kind == LauncherKind.slurm and limit <= warning:
        raise UserError(
            f"launcher.slurm.warning_seconds={warning} comes before a job of launcher.timeout_hours="
            f"{config.launcher.timeout_hours} begins: raise the one or lower the other."
        )
    for key, value in flatten(config.launcher.slurm.__dict__).items():
        if not all(map(str.isprintable, [key, *(value if isinstance(value, list) else [str(value)])])):
            raise UserError(f"launcher.slurm.{key}={value!r} holds what cannot be printed: write it on one line.")
    for option in config.launcher.slurm.options:
        if not re.fullmatch(r"[a-zA-Z][\w-]*", option):
            raise UserError(f"launcher.slurm.options.{option} is no option of sbatch: write {{mail-type: END}}.")
    for name, domain in config.data.domains.items():
        if not (domain.weight > 0 and math.isfinite(domain.weight)):
            raise UserError(
                f"data.domains.{name}.weight={domain.weight} must be positive: remove the domain or raise its weight."
            )
        if domain.source != Source.builtin and not domain.path:
            raise UserError(f"data.domains.{name}.path is missing: source={domain.source} needs the path to read.")
        if domain.streaming and config.data.train_tokens is None:
            raise UserError(
                f"data.domains.{name}.streaming=true needs data.train_tokens: a stream has no end to wait for."
            )
    names = [config.arm, *config.arms] if config.name is None else [config.name, config.arm, *config.arms]
    for label in names:
        if not label or label.startswith(".") or any(c in label for c in "/\\") or not label.isprintable():
            raise UserError(
                f"{label!r} names a directory: it cannot be empty, begin with a dot, or hold a slash or what cannot "
                "be printed."
            )
    for key, value in (("root", config.root), ("name", config.name or "")):
        if "%" in value or not value.isprintable():  # submitit and Slurm read both as more than a name
            raise UserError(f"{key}={value!r} holds a percent sign or what cannot be printed: choose another.")
    for arm in config.arms:
        if arm in RESERVED:
            raise UserError(f"An arm cannot be called '{arm}', which the run directory uses itself: rename it.")
    if len(set(config.seeds)) != len(config.seeds):
        raise UserError(f"seeds={config.seeds} repeats a seed: a replicate counts once.")
