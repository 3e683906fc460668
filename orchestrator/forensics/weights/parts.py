"""Files and directories that hold a part of a model: shards, and what single ranks wrote."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from orchestrator.common.errors import UserError

COUNTED = re.compile(r"(\d+)([-_]of[-_])(\d+)")  # model-00001-of-00002.safetensors: whole tensors, some in each
WORLD = re.compile(r"world_size_(\d+)")
ZERO = re.compile(r"(^|_)zero_pp_rank_\d+")
CHUNKS = ".distcp"
_JOIN = "join the parts with the tools that wrote them, and give the whole model"

# What one rank writes of a model that was split → where that is the custom.
RANKED: dict[str, re.Pattern[str]] = {
    "a tensor-parallel model in Meta's layout": re.compile(r"consolidated\.(\d+)"),
    "a DeepSpeed pipeline": re.compile(r"layer_\d+-model_(\d+)-model_states"),
    "a Megatron or DeepSpeed model": re.compile(r"mp_rank_(\d+)"),
    "a NeMo model": re.compile(r"tp_rank_(\d+)"),
    "a PaddleNLP model": re.compile(r"\.tp(\d+)(?=\.)"),
    "a fairseq model": re.compile(r"(?:model_part-|-shard)(\d+)"),
    "a vLLM model": re.compile(r"model-rank-(\d+)-part-\d+"),
    "a model that was split over ranks": re.compile(r"(?:^|world_size_\d+_)rank[-_]?(\d+)"),
}

# The matrix out of attention [d, a]: with tensor parallelism each rank holds some of its columns.
OUTWARD = re.compile(r"(attention\.wo|attention\.dense|attn\.dense|linear_proj|self_attn\.o_proj)\.weight$")


def refuse_part(path: Path) -> None:
    """Raise `UserError` for a file that by its name is a part of a model, unless it is a first rank that is alone."""
    if path.suffix == CHUNKS:
        raise UserError(f"{path} is a part of a distributed checkpoint: give its directory, {path.parent}.")
    if ZERO.search(path.name):
        raise zero(path.parent)
    if match := COUNTED.search(path.name):
        if (count := int(match[3])) > 1:
            raise UserError(f"{path} is one of {count} parts of a model: give the directory that holds them all.")
        return
    if (match := WORLD.search(path.name)) and int(match[1]) > 1:
        raise UserError(f"{path} is what one of {int(match[1])} ranks wrote of a model: {_JOIN}.")
    for name in (path.name, path.parent.name):  # Megatron writes mp_rank_00/model_optim_rng.pt
        for what, pattern in RANKED.items():
            if match := pattern.search(name):
                directory = path.parent if name == path.name else path.parent.parent
                _refuse_rank(path, directory, what, name, match)
                return


def refuse_ranks(directory: Path, names: Iterable[str]) -> None:
    """Raise `UserError` where several of the names, in `directory`, are what ranks wrote."""
    names = sorted(names)
    if any(map(ZERO.search, names)):
        raise zero(directory)
    for what, pattern in RANKED.items():
        ranks = [name for name in names if pattern.search(name)]
        if len(ranks) > 1:
            raise UserError(f"{directory} holds {what} in {len(ranks)} parts ({_some(ranks)}): {_JOIN}.")


def complete(directory: Path, names: Sequence[str]) -> list[Path]:
    """All parts of one model whose names count them; empty where the names are not those of one model.

    Raises `UserError` where a part is missing.
    """
    counted = {name: match for name in names if (match := COUNTED.search(name))}
    sets = {COUNTED.sub(lambda match: f"{match[2]}{match[3]}", name) for name in counted}
    if len(sets) != 1 or len(counted) < len(names):
        return []
    first = next(iter(counted.values()))
    expected = [
        first.string[: first.start()] + f"{part:0{len(first[1])}}{first[2]}{first[3]}" + first.string[first.end() :]
        for part in range(1, int(first[3]) + 1)
    ]
    missing = [name for name in expected if name not in counted]
    if missing:
        raise UserError(f"{directory} lacks {_some(missing)} of the {len(expected)} parts of its model: copy them all.")
    return [directory / name for name in expected]


def refuse_narrow(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise `UserError` where a first rank that is alone holds some columns of the matrices out of attention."""
    if not any(pattern.search(name) for pattern in RANKED.values() for name in (path.name, path.parent.name)):
        return
    for name, shape in shapes.items():
        if OUTWARD.search(name) and len(shape) == 2 and shape[1] < shape[0]:
            raise UserError(
                f"{path} is by its name what one rank wrote, and {name} {shape} is narrower than the model: {_JOIN}."
            )


def zero(directory: Path) -> UserError:
    """The error for a directory of DeepSpeed's ZeRO."""
    return UserError(
        f"{directory} is a DeepSpeed checkpoint, whose weights are spread over ranks: run the zero_to_fp32.py that "
        "DeepSpeed saved beside it, and give what that writes."
    )


def _refuse_rank(path: Path, directory: Path, what: str, name: str, match: re.Match[str]) -> None:
    alike = re.compile(rf"{re.escape(name[: match.start(1)])}\d+{re.escape(name[match.end(1) :])}")
    others = sorted(entry.name for entry in directory.iterdir() if alike.fullmatch(entry.name))
    if len(others) > 1:
        raise UserError(f"{path} is one of the {len(others)} parts of {what} ({_some(others)}): {_JOIN}.")
    if int(match[1]):
        raise UserError(f"{path} is part {int(match[1])} of {what}, and those before it are missing: {_JOIN}.")


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (" …" if len(names) > 4 else "")
