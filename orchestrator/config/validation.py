"""Checks of values that have the right type and yet cannot work, each with the reason and the cure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import NamedTuple
from urllib.parse import urlsplit

from orchestrator.common.errors import UserError
from orchestrator.config.keys import flatten
from orchestrator.config.schema import AUTO, Config, DecideConfig, Source

POSITIVE = (
    "model.layers", "model.width", "model.head_dim", "model.queries_per_kv", "model.ffn_ratio", "model.vocab_size",
    "model.rope_theta", "width.start", "width.end", "width.multiple_of", "data.train_tokens", "data.heldout_tokens",
    "optim.lr", "optim.eps", "optim.clip", "train.steps", "train.batch_size", "train.micro_batch_size",
    "train.seq_len", "train.log_every", "train.eval_every", "train.checkpoint_every", "train.keep_checkpoints",
    "train.keep_states", "train.threads", "forensics.every", "forensics.resamples", "launcher.parallel",
    "interventions.every", "interventions.documents", "decide.min", "decide.max", "decide.step", "decide.margin",
    "branch.step",
    "launcher.ranks", "launcher.timeout_hours", "launcher.backoff_seconds",
    "sidecar.interval", "sidecar.sigma", "sidecar.reward_rows", "sidecar.lr_max", "sidecar.horizon",
    "sidecar.pairs",
    "budget.core_hours", "budget.gpu_hours", "budget.money", "budget.price", "search.batch", "search.finalists",
    "search.sigma", "search.rate",
)  # fmt: skip
NOT_NEGATIVE = (
    "optim.weight_decay", "optim.warmup_steps", "forensics.trace_steps", "sidecar.warmup", "launcher.retries",
    "train.init_stream",
)  # fmt: skip
AVERAGES = ("optim.beta1", "optim.beta2", "sidecar.baseline_decay")
SEEDS = 2**63  # generators take seeds below this
LONGEST_ENTRY = 255  # bytes of a name in a directory
RESERVED = ("comparison", "jobs")  # other directories in the run directory


def validate(config: Config) -> None:
    """Raise `UserError` for the first value that cannot work."""
    check_ranges(config, RANGES)
    for rule in RULES:
        for sentence in rule(config):
            raise UserError(sentence)


def check_ranges(config: Config, ranges: Iterable[Range]) -> None:
    """Raise `UserError` for the first value outside its range."""
    values = flatten(config)
    for keys, holds, reason in ranges:
        for key in keys:
            value = values[key]
            if value is not None and not (math.isfinite(value) and holds(value)):
                raise UserError(f"{key}={value} {reason.format(key=key)}")


class Range(NamedTuple):
    """The values that some keys may have, apart from null. They must be finite."""

    keys: tuple[str, ...]
    holds: Callable[[float], bool]
    reason: str  # follows `key=value`


def positive(*keys: str) -> Range:
    return Range(keys, lambda v: v > 0, "must be a positive finite number: set {key} above 0.")


def not_negative(*keys: str) -> Range:
    return Range(keys, lambda v: v >= 0, "must not be negative: set {key} to 0 or more.")


RANGES = (
    positive(*POSITIVE),
    not_negative(*NOT_NEGATIVE),
    Range(AVERAGES, lambda v: 0 <= v < 1, "is outside [0, 1): it is the share of the old average that is kept."),
    Range(("plan.mfu",), lambda v: 0 < v <= 1, "is outside (0, 1]: it is the share of a GPU's peak FLOP/s."),
    Range(("optim.min_lr_ratio",), lambda v: 0 <= v <= 1, "is outside [0, 1]: it is a share of optim.lr."),
    Range(("optim.decay_fraction",), lambda v: 0 <= v <= 1, "is outside [0, 1]: it is a share of the run."),
    Range(("search.trials",), lambda v: v >= 2, "leaves nothing to choose from: set {key} to 2 or more."),
    Range(("search.keep",), lambda v: 0 < v <= 1, "is outside (0, 1]: it is a share of the trials."),
    Range(("decide.margin",), lambda v: v < 1, "is a share of the loss: set {key} below 1, as in 0.0025."),
    Range(("forensics.resamples",), lambda v: v >= 2, "has no spread to compare with: use 2 or more."),
)


def _training(config: Config) -> Iterator[str]:
    optim, train = config.optim, config.train
    if optim.lr * optim.weight_decay >= 0.1:
        yield (
            f"optim.lr × optim.weight_decay = {optim.lr * optim.weight_decay:.3g} would shrink every weight by a tenth "
            "or more per step: lower optim.weight_decay or optim.lr."
        )
    if any(step < 1 for step in train.keep_at):
        yield f"train.keep_at={train.keep_at} holds a step below 1: name steps that are trained."
    if train.micro_batch_size is not None and train.batch_size % train.micro_batch_size:
        yield (
            f"train.micro_batch_size={train.micro_batch_size} does not divide train.batch_size={train.batch_size}: "
            "choose a divisor, so that every forward pass sees the same number of sequences."
        )
    every, of_readings = config.interventions.every, config.forensics.every
    if every is not None and every % of_readings:
        yield (
            f"interventions.every={every} is no multiple of forensics.every={of_readings}, and interventions are made "
            "on checkpoints that are read: choose a multiple."
        )
    for channel, pair in config.sidecar.bounds.items():
        if not isinstance(pair, list) or not all(isinstance(end, int | float) for end in pair):
            yield f"sidecar.bounds.{channel}={pair} is not a pair of numbers: write [least, largest]."
    for channel, formula in config.sidecar.coefficients.items():
        if not isinstance(formula, dict) or not all(isinstance(value, int | float) for value in formula.values()):
            yield f"sidecar.coefficients.{channel}={formula} is no formula: write {{term: coefficient, …}} of numbers."


def _data(config: Config) -> Iterator[str]:
    if not config.data.domains:
        yield "data.domains is empty: name at least one domain, or use data=builtin."
    for name, domain in config.data.domains.items():
        key = f"data.domains.{name}"
        if not (domain.weight > 0 and math.isfinite(domain.weight)):
            yield f"{key}.weight={domain.weight} must be positive: remove the domain or raise its weight."
        if domain.source != Source.builtin and not domain.path:
            yield f"{key}.path is missing: source={domain.source} needs the path to read."
        if domain.streaming and config.data.train_tokens is None:
            yield f"{key}.streaming=true needs data.train_tokens: a stream has no end to wait for."


def _names(config: Config) -> Iterator[str]:
    names = [config.arm, *config.arms] if config.name is None else [config.name, config.arm, *config.arms]
    for name in names:
        if not name or name.startswith(".") or any(c in name for c in "/\\") or not name.isprintable():
            yield (
                f"{name!r} names a directory: it cannot be empty, begin with a dot, or hold a slash or a character "
                "that cannot be printed."
            )
    for key, value in (("root", config.root), ("name", config.name or "")):
        if "%" in value or not value.isprintable():  # submitit and batch scripts expand %
            yield f"{key}={value!r} holds a percent sign or a character that cannot be printed: choose another."
    for arm in config.arms:
        if arm in RESERVED:
            yield f"An arm cannot be called '{arm}', which the run directory uses itself: rename it."
    for arm in (config.arm, *config.arms):
        if len(arm.encode()) > LONGEST_ENTRY:
            size = f"{len(arm.encode())} bytes, more than a directory's name may ({LONGEST_ENTRY})"
            yield f"The arm '{arm:.40}…' has {size}: shorten it."


def _seeds(config: Config) -> Iterator[str]:
    seeds, decide = config.seeds, config.decide
    for seed in (config.seed, *(seeds if isinstance(seeds, list) else ())):
        if type(seed) is not int:  # nor a bool, which would be 0 or 1
            yield f"seeds={seeds} holds {seed!r}, which is no whole number: write whole numbers, as in seeds=[0,1]."
        elif not 0 <= seed < SEEDS:
            yield f"seed {seed} is out of range: use whole numbers from 0 to 2^63 - 1."
    if isinstance(seeds, list):
        if len(set(map(str, seeds))) != len(seeds):
            yield f"seeds={seeds} repeats a seed: name each once."
    elif seeds != AUTO:
        yield f"seeds={seeds} is neither a list nor '{AUTO}': write seeds=[{seeds}], or seeds={AUTO}."
    elif len(config.arms) < 2 and not config.search.space:
        yield f"seeds={AUTO} has nothing to decide without two arms: write seeds=[0,1], or choose an experiment."
    if decide.max < decide.min != DecideConfig.min:  # whose default is more than a small decide.max
        yield f"decide.max={decide.max} lies below decide.min={decide.min}: raise decide.max, or lower decide.min."


def _budget(config: Config) -> Iterator[str]:
    budget = config.budget
    if budget.money is not None and budget.price is None:
        yield f"budget.money={budget.money} needs a price: set budget.price, of an hour of a GPU or a core."


def _search(config: Config) -> Iterator[str]:
    search = config.search
    if not search.space:
        return
    lengths = search.lengths
    rising = all(a < b for a, b in pairwise(lengths))
    if not lengths or not rising or not all(0 < share <= 1 for share in lengths):
        yield f"search.lengths={lengths} are no shares of train.steps that rise: write them as in [0.25, 0.5, 1.0]."
    if search.finalists >= search.trials:
        yield (
            f"search.finalists={search.finalists} leaves nothing to choose from search.trials={search.trials}: raise "
            "search.trials."
        )
    if config.arms:
        yield (
            f"search.space explores one configuration, and this experiment has the arms {', '.join(config.arms)}: "
            "leave out the arms, or the search."
        )
    if not 0 <= search.seed < SEEDS:
        yield f"search.seed={search.seed} is out of range: use whole numbers from 0 to 2^63 - 1."
    if search.seed in (config.seeds if isinstance(config.seeds, list) else ()):
        yield (
            f"search.seed={search.seed} is one of seeds={config.seeds}, at which the chosen settings would look better "
            "than they are: search at another seed."
        )


def _notify(config: Config) -> Iterator[str]:
    command, webhook = config.notify.command, config.notify.webhook
    if command is not None and (not command.strip() or "\0" in command):
        yield f"notify.command={command!r} is no command: write a line for the shell, or null."
    if webhook is not None and not _is_web_address(webhook):
        yield f"notify.webhook={webhook!r} is no address that a notice can be posted to: begin it with https://, or http://."


def _is_web_address(text: str) -> bool:
    try:
        parts = urlsplit(text)
        whole = text.isascii() and text.isprintable() and " " not in text
        return whole and parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is none, or half an IPv6 address
        return False


# each yields a sentence for every value that cannot work
RULES = (_training, _data, _names, _seeds, _budget, _search, _notify)
