"""Refuses checkpoints whose tensors and description do not belong together."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from orchestrator.common.errors import UserError
from orchestrator.forensics.architecture.holdings import instead
from orchestrator.forensics.architecture.kinds import BRANCHES
from orchestrator.forensics.architecture.layer import Model
from orchestrator.forensics.architecture.layout import QK_NORM, Heads
from orchestrator.forensics.architecture.scales import MANY, share_below_0

NUMBERED = re.compile(r"\.\d+\.")  # in a name within a layer


def held_kinds(model: Model, index: int) -> tuple[str, ...]:
    """The kinds of matrices that a layer must have: those of the family, less a branch in whose place it has another.

    A branch that lacks altogether lacks rightly where experts or another mixer
    stand for it, or where the family has one branch in each layer; else its tensors will be found absent.
    """
    held, family, names = model.family.kinds, model.family, model.names(index)
    for branch, kinds in BRANCHES.items():
        parts = {family.part(kind).tensor for kind in kinds if kind in held}
        lacks = not any(model.prefix(index) + name in names for name in parts)
        if family.mixed and lacks and (family.single or instead(branch, names)):
            held = tuple(kind for kind in held if kind not in kinds)
    return held


def check_names(model: Model) -> None:
    """Raise `UserError` for absent layers and tensors, and for weights that the family does not have."""
    count, family, tensors = len(model), model.family, model.tensors
    if not count:
        raise UserError(f"{model.directory} describes a model of 0 layers: there is nothing to read.")
    optional = {family.norms[place] for place in family.optional}
    within = [part.tensor for part in family.parts] + [n for n in family.norms.values() if n not in optional]
    wanted = []
    for index in range(count):
        kinds = model.kinds(index)
        parts = [part.tensor for part in family.parts if set(part.kinds) <= set(kinds)]
        branches = [branch for branch, of in BRANCHES.items() if set(of) & set(kinds)]
        branches += ["ffn"] if "down" not in kinds and instead("ffn", model.names(index)) else []
        places = [place for place in family.norms if place.partition("_")[2] in branches]
        needed = [family.norms[place] for place in places if place not in family.optional]
        wanted += [model.prefix(index) + name for name in dict.fromkeys([*parts, *needed])]
    absent = [name for name in wanted if name not in tensors]
    if not wanted:
        raise UserError(
            f"{model.directory} has no layer with an attention or an FFN that can be read (the family "
            f"{model.family_name}): give a model some of whose layers have one."
        )
    if absent:
        raise _lacking(model, absent, wanted)
    pattern, held = layer_pattern(model), {*within, *optional}
    beyond = count + int(model.description.config.get("num_nextn_predict_layers") or 0)  # they predict later tokens
    for match in filter(None, map(pattern.match, sorted(tensors.names))):
        if count <= int(match[1]) < beyond:
            continue
        if int(match[1]) >= count:
            raise UserError(
                f"{model.directory} holds {match[0]}, but its description has {count} layers: "
                "the files do not belong together."
            )
        is_known = match[2] in held or QK_NORM.search(match[2]) or family.leaves(match[2])
        if not model.assumed and match[2].endswith(".weight") and not is_known:
            raise UserError(
                f"{model.directory} holds {match[0]}, which the family {model.family_name} does not have: correct "
                f"the declared {model.description.declared}, or move the description away to have the family inferred "
                "from names and shapes."
            )


def _lacking(model: Model, absent: list[str], wanted: list[str]) -> UserError:
    """The error for absent tensors: of another family, of layers that are not there, or single ones."""
    tensors, config = model.tensors, model.description.config
    held = sorted({int(match[1]) for match in map(layer_pattern(model).match, tensors.names) if match})
    beside = "config.json" if (model.directory / "config.json").is_file() else "its description"
    cure = "give the model its own config.json"
    near = sorted(sorted(tensors.names), key=lambda name: _likeness(name, absent[0]), reverse=True)
    found = ", ".join(near[:3]) or "nothing"
    if "quantization_config" in config:
        found += ", and it declares itself quantised: save it in fp32, fp16 or bf16 first"
    elif model.description.declared and len(absent) == len(wanted) and any(map(NUMBERED.search, tensors.names)):
        return UserError(
            f"{model.directory} holds none of the {len(wanted)} tensors that {len(model)} layers of the family "
            f"{model.description.declared} have, which {beside} declares: the names are those of another family "
            f"(looked for {', '.join(absent[:3])}; found {found}), so {cure}."
        )
    elif held and absent == [name for name in wanted if int(_number(model, name)) > held[-1]]:
        return UserError(
            f"{model.directory} holds the layers {held[0]} to {held[-1]}, and {beside} declares {len(model)}: {cure}, "
            "or copy all its files."
        )
    return UserError(
        f"{model.directory} lacks {len(absent)} of the {len(wanted)} tensors that {len(model)} layers of the family "
        f"{model.family_name} have: looked for {', '.join(absent[:3])}; found {found}."
    )


def _number(model: Model, name: str) -> str:
    """The number of the layer in a name within it."""
    match = layer_pattern(model).match(name)
    assert match is not None, name
    return match[1]


def _likeness(name: str, wanted: str) -> tuple[int, int]:
    """Numbers of segments at the start, and at any place, that two names share."""
    same = [a == b for a, b in zip(name.split("."), wanted.split("."), strict=False)]
    return [*same, False].index(False), sum(same)


def check_shapes(model: Model, index: int) -> None:
    """Raise `UserError` where a tensor of this layer does not fit its heads and width."""
    h, shapes = model.heads[index], {kind: model.shape(index, kind) for kind in model.kinds(index)}
    a, kv, ffn = (shapes[kind][0] if kind in shapes else 0 for kind in ("q", "k", "up"))
    width = model.width(index)
    if h is not None:
        a, kv = h.heads * h.head_dim, h.kv_heads * h.head_dim
    expected = {
        "q": (a, width), "k": (kv, width), "v": (kv, width), "o": (width, a),
        "gate": (ffn, width), "up": (ffn, width), "down": (width, ffn),
    }  # fmt: skip
    stored: dict[str, tuple[tuple[int, ...], ...]] = {
        model.layer(index).name(kind): (shape, expected[kind]) for kind, shape in shapes.items()
    }
    for name in (model.prefix(index) + norm for norm in model.family.norms.values()):
        stored |= {name: (model.tensors.shape(name), (width,))} if name in model.tensors else {}
    for name, (shape, fitting) in stored.items():
        if shape != fitting:
            raise UserError(f"{name} has shape {shape}, not {fitting}, with {heads_and_cure(h)}.")


def check_scales(model: Model) -> None:
    """Raise `UserError` where the stored norm scales contradict the declared family's way to store them."""
    family = model.family
    names = [model.prefix(i) + norm for i in range(len(model)) for norm in dict.fromkeys(family.norms.values())]
    share = share_below_0(model.tensors, names)
    if share is None or model.assumed:
        return
    below, at = share
    if family.offset == 0 and below > MANY:
        stored, other = f"{below:.0%} of its norm scales are negative", "less 1, as Gemma's are"
    elif family.offset == 1 and family.starts_at_0 and below + at == 0:
        stored, other = "none of its norm scales is below 1 with the 1 that this family adds", "as they multiply"
    else:
        return
    raise UserError(
        f"{model.directory} declares the family {model.family_name}, but {stored} (such as {names[0]}), so they seem "
        f"to be stored {other}: put the config.json of this very model beside the weights."
    )


def check_moments(model: Model, source: Path, held: Iterable[str]) -> None:
    """Raise `UserError` where the optimizer file that a user names holds moments of none of the model's matrices."""
    parts = [model.prefix(i) + part.tensor for i in range(len(model)) for part in model.family.parts]
    if not any(f"{name}.exp_avg" in held for name in parts):
        raise UserError(
            f"{source} holds moments of none of the matrices in {model.directory} (looked for {parts[0]}.exp_avg, "
            f"found {', '.join(sorted(held)[:2])}): give the optimizer of this very model."
        )


def layer_pattern(model: Model) -> re.Pattern[str]:
    """A pattern of the names within layers: group 1 is the index, group 2 the name within the layer."""
    before, after = (re.escape(half) for half in (model.stem + model.family.layer).split("{}"))
    return re.compile(rf"{before}(\d+){after}(.*)")


def heads_and_cure(h: Heads | None) -> str:
    """The end of a sentence about a shape that does not fit the heads."""
    if h is None:
        return "an unknown number of heads: put its config.json beside the weights"
    return (
        f"{h.heads} heads ({h.kv_heads} for keys and values) of {h.head_dim}: "
        "the weights and their description do not belong together"
    )
