"""A configuration as dotted keys, and the keys in which two configurations differ."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, replace
from enum import StrEnum
from typing import Any

from orchestrator.config.schema import Config, DomainConfig

# Keys of how a cell is run, which take the values of its newest launch.
OF_A_LAUNCH = (
    "launcher", "tracker", "notify", "data.cache_dir", "train.keep_checkpoints", "train.keep_states", "train.keep_at",
    "forensics.where", "interventions", "budget",
)  # fmt: skip
# Likewise, but results then differ by rounding: arms that differ in one must declare it.
OF_ROUNDING = ("train.micro_batch_size", "train.threads", "train.device")
# Keys of the experiment that a cell is a part of; a cell keeps those of its first launch.
OF_AN_EXPERIMENT = (
    "dry_run", "root", "question", "arms", "seeds", "decide", "dropped", "declared", "contrasts", "expect", "name",
    "plan", "search",
)  # fmt: skip
OPERATIONAL = (*OF_A_LAUNCH, *OF_AN_EXPERIMENT)  # no cell computes anything else where one of these changes


def flatten(config: Config | dict[str, Any]) -> dict[str, Any]:
    """Dotted key → plain value; an empty branch counts as a value."""
    flat: dict[str, Any] = {}

    def walk(prefix: str, node: Any) -> None:
        if isinstance(node, dict) and node:
            for key, value in node.items():
                walk(f"{prefix}.{key}" if prefix else str(key), value)
        else:
            flat[prefix] = node.value if isinstance(node, StrEnum) else node

    walk("", config if isinstance(config, dict) else asdict(config))
    return flat


def is_within(key: str, branches: tuple[str, ...] | list[str]) -> bool:
    """True for a key that is one of `branches` or lies in one."""
    return any(key == branch or key.startswith(branch + ".") for branch in branches)


def differences(a: Config, b: Config, ignore: tuple[str, ...] = ()) -> dict[str, tuple[Any, Any]]:
    """The keys whose values differ, with both values; `ignore` names keys or whole branches."""
    left, right = flatten(a), flatten(b)
    return {
        key: (left.get(key), right.get(key))
        for key in left | right
        if left.get(key) != right.get(key) and not is_within(key, ignore)
    }


def taking(config: Config, other: Config, names: Iterable[str]) -> Config:
    """`config` with the values that `other` has for `names`, each a branch or a key at most one branch deep."""
    for name in names:
        branch, _, leaf = name.rpartition(".")
        values = {leaf: getattr(getattr(other, branch) if branch else other, leaf)}
        config = replace(config, **({branch: replace(getattr(config, branch), **values)} if branch else values))
    return config


def key_of(override: str) -> str:
    """The key or group that a Hydra override sets, without its signs and package."""
    return override.lstrip("+~").partition("=")[0].partition("@")[0]


def all_keys() -> list[str]:
    """Every key that a user can set, branches included."""
    flat = flatten(Config())
    branches = {key.rsplit(".", depth)[0] for key in flat for depth in range(1, key.count(".") + 1)}
    return sorted({*flat, *branches, *(f"data.domains.<name>.{key}" for key in vars(DomainConfig()))})
