"""The model's weights among everything saved with them: one model, or the one of several that is named."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Hashable, Iterable
from pathlib import Path

from orchestrator.common.errors import UserError, nearest

Key = tuple[Hashable, ...]  # where a file keeps a tensor: ("layers.0.w",), or ("model", "layers.0.w") where nested

CHOOSE = "choose with --weights NAME (weights= in Python)"
OPTIMIZERS = {"optimizer", "optimizers", "optim", "optimizer_state_dict", "optim_state_dict"}
MOMENTS = {"exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "grad", "grads"}  # beside weights, not weights
SEEING = ("visual", "vision")  # either names the vision tower, as which a model calls it
# Added to names by torch.compile, FSDP and activation checkpointing.
SEGMENTS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")


def select(source: Path, keys: Iterable[Key], chosen: str | None) -> dict[str, Key]:
    """The model's weights: name without wrappers → key.

    Of nested dicts, the one with the most tensors is the model. `chosen`: the part of a tensor's path, such as
    `ema_model` or `teacher`, below which the model lies. Raises `UserError` for a part that is not there, and where
    another dict holds half as many tensors as the largest, or more, and none is chosen.
    """
    paths = {key: ".".join(map(str, key)) for key in keys if _is_weight(key)}
    prefix = "" if chosen is None else _prefix_of(source, list(paths.values()), chosen)
    groups: dict[Key, list[Key]] = defaultdict(list)
    for key, path in paths.items():
        if path.startswith(prefix):
            groups[key[:-1]].append(key)
    sizes = sorted(((len(group), ".".join(map(str, parent))) for parent, group in groups.items()), reverse=True)
    if len(sizes) > 1 and 2 * sizes[1][0] >= sizes[0][0]:
        rivals = " and ".join(f"{name or 'the outermost level'} ({n} tensors)" for n, name in sizes[:2])
        raise UserError(f"{source} holds the weights of several models, {rivals}: {CHOOSE}.")
    found = max(groups.values(), key=len, default=[])
    start = max(len(prefix), len(".".join(map(str, found[0][:-1]))) + 1 if found and len(found[0]) > 1 else 0)
    return dict(zip(unwrapped([paths[key][start:] for key in found]), found, strict=True))


def unwrapped(names: list[str]) -> list[str]:
    """Names without the segments that DDP, FSDP, `torch.compile` or a surrounding module add."""
    bare = list(names)
    for segment in SEGMENTS:
        bare = [name.replace(segment, "") for name in bare]
    while bare and (prefix := _redundant(bare)):
        bare = [name.removeprefix(prefix) for name in bare]
    return bare if len(set(bare)) == len(names) else names


def _is_weight(key: Key) -> bool:
    return str(key[0]).partition(".")[0] not in OPTIMIZERS and not MOMENTS & set(key[:-1])


def _prefix_of(source: Path, paths: list[str], chosen: str) -> str:
    """The outermost prefix of paths that ends in the segments of `chosen`, with the dot after it."""
    ends = re.compile(rf"(?:.*?\.)??{re.escape(chosen)}\.")
    if chosen in SEEING and not any(map(ends.match, paths)):
        ends = re.compile(rf"(?:.*?\.)??(?:{'|'.join(SEEING)})(?:_(?:model|tower|encoder))?\.")
    found = {match[0] for path in paths if (match := ends.match(path))}
    depth = min((prefix.count(".") for prefix in found), default=0)
    outermost = sorted(prefix for prefix in found if prefix.count(".") == depth)
    if not outermost:
        layered = {path.partition(".")[0] for path in paths if re.search(r"\.\d+\.", path)}
        parts = sorted(layered or {path.partition(".")[0] for path in paths})
        raise UserError(
            f"{source} has no part called {chosen}{nearest(chosen, parts)}: choose one of {', '.join(parts[:8])}."
        )
    if len(outermost) > 1:
        both = " and ".join(prefix.removesuffix(".") for prefix in outermost[:2])
        raise UserError(f"{source} has several parts called {chosen}, {both}: {CHOOSE}, in full.")
    return outermost[0]


def _redundant(names: list[str]) -> str:
    """A redundant prefix that all names share; "model." only where a second follows it."""
    doubled = any(name.startswith("model.model.") for name in names)
    for prefix in ("module.", "model.") if doubled else ("module.",):
        if all(name.startswith(prefix) for name in names):
            return prefix
    return ""
