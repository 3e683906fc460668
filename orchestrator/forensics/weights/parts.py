"""Files and directories that hold a part of a model: shards, and what single ranks wrote."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.common.errors import UserError

# model-00001-of-00002.safetensors: whole tensors, some in each; not epoch-3-of-10.
COUNTED = re.compile(r"(\d{4,}|(?<=(?:part|hard|odel)[-_])\d+)([-_]of[-_])(\d+)")
WORLD = re.compile(r"world_size_(\d+)")
ZERO = re.compile(r"(^|_)zero_pp_rank_\d+")
CHUNKS = ".distcp"
_JOIN = "join the parts with the tools that wrote them, and give the whole model"

# What ranks write of a model that was split → its name, with the number of the rank, and of the stage in a pipeline.
# Of directories, and of files.
DIRECTORIES: dict[str, re.Pattern[str]] = {
    "a Megatron or DeepSpeed model": re.compile(r"mp_rank_(\d+(?:_\d+)*)"),
    "a NeMo model": re.compile(r"tp_rank_(\d+(?:_pp_rank_\d+)?)"),
}
FILES: dict[str, re.Pattern[str]] = DIRECTORIES | {
    "a tensor-parallel model in Meta's layout": re.compile(r"consolidated\.(\d+)"),
    "a DeepSpeed pipeline": re.compile(r"layer_\d+-model_(\d+)-model_states"),
    "a PaddleNLP model": re.compile(r"\.tp(\d+)(?=\.)"),
    "a fairseq model": re.compile(r"(?:model_part-|-shard)(\d+)"),
    "a vLLM model": re.compile(r"model-rank-(\d+)-part-\d+"),
}
RANK = re.compile(r"^rank[-_]?(\d+)")  # where there is a rank 0: it may be the rank of an adapter

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
    for name, directory, patterns in _places(path):
        for what, pattern in patterns.items():
            if match := pattern.search(name):
                _refuse_rank(path, _alike(directory, name, match), what, match[1])
    if match := RANK.search(path.name):
        others = _alike(path.parent, path.name, match)
        if any(int(found[1]) == 0 for of in others if (found := RANK.search(of))):
            _refuse_rank(path, others, "a model that was split over ranks", match[1])


def refuse_ranks(directory: Path, names: Iterable[str], patterns: Mapping[str, re.Pattern[str]] = FILES) -> None:
    """Raise `UserError` where several of the names, in `directory`, are what ranks wrote."""
    names = sorted(names)
    if any(map(ZERO.search, names)):
        raise zero(directory)
    for what, pattern in patterns.items():
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
    is_ranked = any(of.search(name) for name, _, patterns in _places(path) for of in patterns.values())
    if not (is_ranked or RANK.search(path.name)):
        return
    for name, shape in shapes.items():
        if OUTWARD.search(name) and len(shape) == 2 and shape[1] < shape[0]:
            raise UserError(
                f"{path} is by its name what one rank wrote, and {name} {shape} is narrower than the model: {_JOIN}."
            )


def refuse_world(path: Path, contents: Any) -> None:
    """Raise `UserError` where a file of DeepSpeed says that the model was split over several ranks."""
    size = contents.get("mp_world_size") if isinstance(contents, Mapping) else None
    if isinstance(size, int) and size > 1:
        raise UserError(f"{path} is what one of {size} ranks wrote of a model (its mp_world_size): {_JOIN}.")


def zero(directory: Path) -> UserError:
    """The error for a directory of DeepSpeed's ZeRO."""
    return UserError(
        f"{directory} is a DeepSpeed checkpoint, whose weights are spread over ranks: run the zero_to_fp32.py that "
        "DeepSpeed saved beside it, and give what that writes."
    )


def _places(path: Path) -> tuple[tuple[str, Path, Mapping[str, re.Pattern[str]]], ...]:
    """Names that can say that a file is what a rank wrote, and where each lies: Megatron has one directory per rank."""
    return (path.name, path.parent, FILES), (path.parent.name, path.parent.parent, DIRECTORIES)


def _alike(directory: Path, name: str, match: re.Match[str]) -> list[str]:
    """The names in a directory that differ from this one in the number of the rank at most."""
    ranks = re.sub(r"\d+", r"\\d+", match[1])
    alike = re.compile(rf"{re.escape(name[: match.start(1)])}{ranks}{re.escape(name[match.end(1) :])}")
    return sorted(entry.name for entry in directory.iterdir() if alike.fullmatch(entry.name))


def _refuse_rank(path: Path, names: list[str], what: str, rank: str) -> None:
    if len(names) > 1:
        raise UserError(f"{path} is one of the {len(names)} parts of {what} ({_some(names)}): {_JOIN}.")
    if any(map(int, re.findall(r"\d+", rank))):
        number = int(rank) if rank.isdigit() else rank
        raise UserError(f"{path} is part {number} of {what}, and those before it are missing: {_JOIN}.")


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (" …" if len(names) > 4 else "")
