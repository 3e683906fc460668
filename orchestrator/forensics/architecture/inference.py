"""Infers the layout of a family that is not in the table, from names and shapes, and lists what it assumes."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

from orchestrator.common.errors import UserError
from orchestrator.forensics.architecture.description import Description
from orchestrator.forensics.architecture.families import FAMILIES
from orchestrator.forensics.architecture.kinds import ATTENTION, KINDS, PLACES
from orchestrator.forensics.architecture.layout import QK_NORM, Family, Heads, Part, halves, stacked, whole
from orchestrator.forensics.architecture.scales import MANY, share_below_0
from orchestrator.forensics.architecture.unsupported import OTHER_SENSES
from orchestrator.forensics.weights.selection import CHOOSE
from orchestrator.forensics.weights.tensors import Tensors

QKV = ("q", "k", "v")
IN_PROJ = "in_proj_weight"  # a parameter of torch.nn.MultiheadAttention
TORCH = f"self_attn.{IN_PROJ}"  # of torch.nn.TransformerEncoderLayer
WITHIN = re.compile(r"((?:.*?\.)?)(\d+)\.(.+)")  # stack, layer, name within the layer
NO_SCALE = re.compile(r"bias|(^|\.)(beta|inv_freq)$")  # vectors that are not a norm's scale
HEAD = re.compile(r"(^|\.)(lm_head|head|output|unembed|embed_out)\.weight$")
EMBEDDING = re.compile(r"(?!.*(pos|type|segment|wpe|embed_out|unembed|head)).*(emb|wte|tok)")

# Kinds of matrices → a pattern of their names, with `_` for every separator; the first match is taken.
MATRICES: tuple[tuple[tuple[str, ...], str], ...] = (
    (QKV, r"_w?qkv_|_query_key_value_|_attn_in_proj_|_attn_c_attn_|_att_proj_"),
    (("gate", "up"), r"_gate_up_|_gateup_|_w12_|_w1_w3_|_mlp_wi_$"),
    (("up", "gate"), r"_up_gate_|_ff_proj_"),
    (("q",), r"_(w|to_)?q(uery)?_"),
    (("k",), r"_(w|to_)?k(ey)?_"),
    (("v",), r"_(w|to_)?v(alue)?_"),
    (("gate",), r"_gate_|_w1_|_wi_0_"),
    (("up",), r"_up_|_w3_|_wi_1_|_fc_?(1|in)_|_c_fc_|_lin(ear)?_?1_|_h_to_4h_|_intermediate_|_wi_"),
    (("down",), r"_down_|_w2_|_fc_?(2|out)_|_lin(ear)?_?2_|_4h_to_h_|_ff_out_"),
    (("down",), r"_(mlp|ffn?|feed_?forward)_(.*_)?(o|wo|out|proj|dense)_"),
    (("o",), r"_att(n|ention)?_(.*_)?(o|wo|out|proj|dense|output)_|_wo_|_o_proj_|_out_proj_"),
    (("down",), r"_output_"),
)

# Position → a pattern of a norm's name that says where it is. `after_attention` is resolved by the other norms.
NORMS: tuple[tuple[str, str], ...] = (
    ("post_attention", r"post_self_attn|attention_output_layer_?norm|sa_layer_norm|_post_(layer_?)?norm_?1_"),
    ("pre_ffn", r"_pre_(feed_?forward|ffn?|mlp)"),
    ("post_ffn", r"_post_(feed_?forward|ffn?|mlp)|_post_(layer_?)?norm_?2_|^_output_layer_?norm"),
    ("after_attention", r"_post_att(n|ention)"),
    ("pre_attention", r"_input_|_pre_(self_)?att(n|ention)|_operator_norm"),
)
# Names that a norm before a branch and one after it both have: BERT's and GPT-1's follow, GPT-2's precede.
SILENT: tuple[tuple[str, str], ...] = (
    ("attention", r"_(self_)?att(n|ention)_(self_attn_)?(layer_?)?(norm|ln)|_(ln|norm|layer_?norm)_?(1|attn)_"),
    (
        "ffn",
        r"_(mlp|ffn?|feed_?forward|intermediate)_(layer_?)?(norm|ln)|_(ln|norm|layer_?norm)_?(2|mlp|ffn)_"
        r"|_final_layer_norm|^_(layer_?norm|ln|norm)_$",
    ),
)
# A norm after the last layer, which stacks have whose norms precede their branches.
FINAL = re.compile(r"(final|after|out(put)?|last|ln_f|(^|\.)(norm|ln|layer_?norm))[^.]*\.(weight|gamma|scale)$", re.I)
ELSEWHERE = re.compile(
    r"embeddings?\.|emb_(ln|norm)|head|cls|predictions|pooler|\d"
)  # norms of the embedding or a head


@dataclass(frozen=True)
class Stack:
    """Layers with a common prefix: the matrices of the first, and the vectors of the first or the last."""

    name: str
    matrices: Mapping[str, tuple[int, ...]]  # name within the layer → shape
    vectors: Mapping[str, tuple[int, ...]]


def infer(source: Path, tensors: Tensors, description: Description) -> tuple[Family, list[str]]:
    """The layout (with full names), and one sentence per assumption. `UserError` where it cannot be inferred."""
    stack, parts = _choose(source, _stacks(tensors))
    width = _width(source, stack, parts, tensors)
    parts, is_transposed = _orient(stack, parts, width)
    norms, unplaced = _norms(stack, width, tensors)
    declared = description.declared
    why = f"The declared family, {declared}, is not in the table" if declared else "No family is declared"
    read_as = ", ".join(f"{'+'.join(part.kinds)}: {part.tensor}" for part in parts)
    assumed = [
        f"{why}: matrices and norms were told apart by their names and shapes.",
        f"Layers are {stack.name}N, read as {read_as}.",
        f"Norms read as {', '.join(f'{place}: {name}' for place, name in norms.items()) or 'absent'}.",
    ]
    if unplaced:
        assumed.append(
            f"The names {', '.join(unplaced)} do not say whether these norms precede a branch or follow it: left aside."
        )
    if is_transposed:
        assumed.append("Matrices are stored as [in, out], judging by the shape of the FFN.")
    parts, orders = _in_known_order(source, parts)
    assumed += orders
    scales = {name for name in stack.vectors if not QK_NORM.search(name)}
    left = sorted({*stack.matrices, *scales} - {part.tensor for part in parts} - set(norms.values()))
    if left:
        assumed.append(f"Left aside: {', '.join(left)}.")
    family = Family(tuple(parts), norms, layer=f"{stack.name}{{}}.", optional=tuple(norms))
    if _is_shifted(family, tensors):
        family = replace(family, offset=1.0)
        assumed.append("Norm scales are taken as stored less 1, since many of them are not positive.")
    embed = _embedding(tensors, width)
    final, head = _unembedding(tensors, width, embed)
    if head:
        assumed.append(f"The head is read as {head}, behind {final or 'no norm'}.")
    return replace(family, embed=embed, final=final, head=head), assumed


def _stacks(tensors: Tensors) -> list[Stack]:
    found: dict[str, dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name in sorted(tensors.names):
        if match := WITHIN.fullmatch(name):
            found[match[1]][int(match[2])].append(match[3])
    stacks = []
    for name, layers in found.items():
        last, first = (
            {rest: tensors.shape(f"{name}{index}.{rest}") for rest in layers[index]}
            for index in (max(layers), min(layers))
        )
        matrices = {rest: shape for rest, shape in first.items() if len(shape) == 2}
        scales = {rest: shape for rest, shape in (last | first).items() if not NO_SCALE.search(rest)}
        stacks.append(Stack(name, matrices, {rest: shape for rest, shape in scales.items() if len(shape) == 1}))
    return stacks


def _words(name: str) -> str:
    return "_" + re.sub(r"[._]?(weight|gamma|scale)$", "", name).replace(".", "_").lower() + "_"


def _parts(source: Path, stack: Stack) -> list[Part]:
    """The parts by their names; parts without a known name are left out."""
    parts: list[Part] = []
    for name in stack.matrices:
        kinds = next((kinds for kinds, pattern in MATRICES if re.search(pattern, _words(name))), ())
        twin = next((part for part in parts if set(part.kinds) & set(kinds)), None)
        if twin is not None:
            raise UserError(
                f"{source} has two candidates for {'+'.join(kinds)} in a layer, {twin.tensor} and {name}, so its "
                "family cannot be inferred: give a checkpoint whose layers hold one attention and one FFN."
            )
        if kinds:
            parts.append(Part(name, kinds, whole if len(kinds) == 1 else halves))
    held = {kind for part in parts for kind in part.kinds}
    if "gate" in held and "up" not in held:  # w1 and w2 alone, or a lone input matrix that is called a gate
        parts = [Part(part.tensor, ("up",)) if part.kinds == ("gate",) else part for part in parts]
    order = {kind: at for at, kind in enumerate(KINDS)}
    return sorted(parts, key=lambda part: min(order[kind] for kind in part.kinds))


def _choose(source: Path, stacks: list[Stack]) -> tuple[Stack, list[Part]]:
    """The one stack that has every matrix that a layer needs."""
    read = [(stack, _parts(source, stack)) for stack in stacks]
    whole_ones = [(s, p) for s, p in read if set(KINDS) - {"gate"} <= {kind for part in p for kind in part.kinds}]
    if len(whole_ones) > 1:
        whole_ones = [(s, p) for s, p in whole_ones if not OTHER_SENSES.search(s.name)] or whole_ones
    if len(whole_ones) == 1:
        return whole_ones[0]
    if whole_ones:
        names = " and ".join(f"{stack.name}N" for stack, _ in whole_ones)
        raise UserError(f"{source} holds several stacks of layers, {names}: {CHOOSE}.")
    found = "no repeated layers"
    if read:
        stack, parts = max(read, key=lambda pair: len(pair[1]))
        has = ", ".join(kind for part in parts for kind in part.kinds) or "none of them"
        found = f"in {stack.name}N only {has}, among {', '.join(sorted(stack.matrices)[:6]) or 'no matrices'}"
    raise UserError(
        f"{source} is of no family known here and none could be inferred: looked for layers with q, k, v, o, up and "
        f"down matrices, found {found}; give a transformer's checkpoint with its config.json, or add its names to "
        "FAMILIES (docs/recipes.md)."
    )


def _width(source: Path, stack: Stack, parts: list[Part], tensors: Tensors) -> int:
    """The dimension that all matrices share; of several, the one of the norms or of the embedding."""
    shared = set.intersection(*(set(stack.matrices[part.tensor]) for part in parts))
    if len(shared) > 1:
        sizes = [shape[0] for name, shape in stack.vectors.items() if not QK_NORM.search(name)]
        sizes += [shape[1] for name in tensors.names if "embed" in name and len(shape := tensors.shape(name)) == 2]
        shared = {size for size in sizes if size in shared} or shared
    if len(shared) != 1:
        shapes = ", ".join(f"{part.tensor} {stack.matrices[part.tensor]}" for part in parts[:4])
        raise UserError(
            f"{source} has matrices that share no one width ({shapes}), so its layers cannot be told apart: "
            "give it a config.json with the model_type of a known family."
        )
    return shared.pop()


def _orient(stack: Stack, parts: list[Part], width: int) -> tuple[list[Part], bool]:
    """The parts, transposed where matrices are stored [in, out], and whether they are.

    Of three FFN matrices, the one whose shape is the other way round is down, whatever its name.
    """
    inward = {part.tensor: stack.matrices[part.tensor] for part in parts if set(part.kinds) & {"gate", "up"}}
    down = next(part.tensor for part in parts if "down" in part.kinds)
    ways = {name: shape[0] == width for name, shape in [*inward.items(), (down, stack.matrices[down])]}  # [d, f]?
    odd = [name for name in ways if sum(way == ways[name] for way in ways.values()) == 1]
    if len(ways) == 3 and len(odd) == 1 and odd[0] != down:  # the names mislead: exchange the two
        parts = [replace(p, tensor={down: odd[0], odd[0]: down}.get(p.tensor, p.tensor)) for p in parts]
        down = odd[0]
    first, second = stack.matrices[down]
    is_transposed = second == width != first
    return [replace(part, transposed=is_transposed) for part in parts], is_transposed


def _in_known_order(source: Path, parts: list[Part]) -> tuple[list[Part], list[str]]:
    """The parts, q, k and v split as the families of the table that have a tensor of this very name do."""
    fused = next((part for part in parts if part.kinds == QKV), None)
    if fused is None:
        return parts, []
    if fused.tensor.rpartition(".")[2] == IN_PROJ:
        known = replace(fused, split=stacked)
        said = f"The rows of {fused.tensor} are q, k and v, stacked, as torch.nn.MultiheadAttention documents."
        return [known if part is fused else part for part in parts], [said]
    ways: dict[Part, list[str]] = defaultdict(list)
    for name, family in FAMILIES.items():
        for part in family.parts:
            if part.tensor == fused.tensor and part.transposed == fused.transposed:
                ways[part].append(name)
    if len(ways) == 1:
        known, names = next(iter(ways.items()))
        return [known if part is fused else part for part in parts], [
            f"The rows of {fused.tensor} are taken in the order of {names[0]}."
        ]
    among = " and ".join(f"that of {names[0]}" for names in ways.values()) or "none known here"
    raise UserError(
        f"{source} keeps q, k and v in one matrix, {fused.tensor}, and the order of its rows cannot be told ({among}): "
        "put the config.json of this model beside the weights, or one with the model_type of a family of its layout."
    )


def _norms(stack: Stack, width: int, tensors: Tensors) -> tuple[dict[str, str], list[str]]:
    """Position → name of its norm, and the names of those whose position nothing tells."""
    places: dict[str, str] = {}
    silent: dict[str, list[str]] = {}  # branch → names that do not say on which side of it they are
    left = []
    for name, shape in stack.vectors.items():
        if shape == (width,) and not QK_NORM.search(name):
            place = next((place for place, pattern in NORMS if re.search(pattern, _words(name))), None)
            branch = next((branch for branch, pattern in SILENT if re.search(pattern, _words(name))), None)
            if place:
                places[place] = name
            elif branch:
                silent.setdefault(branch, []).append(name)
            else:
                left.append(name)
    # torch.nn.Transformer has a final norm whether its norms precede their branches or follow them
    is_pre = TORCH not in stack.matrices and any(
        FINAL.search(n) and not ELSEWHERE.search(n) and tensors.shape(n) == (width,) for n in tensors.names
    )
    for branch, names in silent.items():
        if is_pre and len(names) == 1 and f"pre_{branch}" not in places:
            places[f"pre_{branch}"] = names[0]
        else:
            left += names
    after = places.pop("after_attention", None)
    if after is not None:  # in Llama it precedes the FFN, in Gemma 2 and OLMo-2 it follows attention
        place = "pre_ffn" if "pre_attention" in places and "pre_ffn" not in places else "post_attention"
        if place in places:
            left.append(after)
        places.setdefault(place, after)
    if set(places) == {"pre_attention"} and not left:  # one norm alone serves both branches of a parallel block
        places["pre_ffn"] = places["pre_attention"]
    return {place: places[place] for place in PLACES if place in places}, left


def _is_shifted(family: Family, tensors: Tensors) -> bool:
    """True where norm scales are stored minus 1: many are around 0, which would silence the layer."""
    before, after = (re.escape(half) for half in family.layer.split("{}"))
    wanted = re.compile(rf"{before}\d+{after}({'|'.join(map(re.escape, family.norms.values()))})")
    share = share_below_0(tensors, filter(wanted.fullmatch, sorted(tensors.names))) if family.norms else None
    return share is not None and sum(share) > MANY


def _embedding(tensors: Tensors, width: int) -> str:
    """Name of the embedding: the longest table outside the layers, as wide as the stream; empty without one."""
    outside = [name for name in sorted(tensors.names) if EMBEDDING.match(name) and not WITHIN.fullmatch(name)]
    tables = [name for name in outside if len(shape := tensors.shape(name)) == 2 and shape[1] >= width]
    return max(tables, key=lambda name: tensors.shape(name)[0], default="")


def _unembedding(tensors: Tensors, width: int, embed: str) -> tuple[str, str]:
    """Names of the final norm and of the head; both empty where either could be meant by several names."""
    outside = [name for name in sorted(tensors.names) if not WITHIN.fullmatch(name) and name != embed]
    norms = [
        name
        for name in outside
        if tensors.shape(name) == (width,) and FINAL.search(name) and not ELSEWHERE.search(name)
    ]
    heads = [name for name in outside if HEAD.search(name) and tensors.shape(name)[1:] == (width,)]
    return (norms[0], heads[0]) if (len(norms), len(heads)) == (1, 1) else ("", "")


def heads_by_shape(
    tensors: Tensors, prefix: str, family: Family, counts: tuple[int | None, int | None], cure: str
) -> tuple[Heads | None, str]:
    """The heads of the layer under `prefix`, and the sentence that says what was assumed; empty where nothing was.

    `counts`: the declared numbers of query heads and of key/value heads. Without the first, the size of the norm of q
    or k tells the heads; else the sentence ends with the `cure`. Raises `UserError` for a number that does not
    divide the rows of q.
    """
    shape = {kind: tensors.shape(prefix + family.part(kind).tensor) for kind in ATTENTION}
    if any(len(size) != 2 or 0 in size for size in shape.values()):
        return None, "The heads are not declared, and a layer has no matrices to tell them from."
    a = shape["o"][0 if family.part("o").transposed else 1]
    rows = prod(shape["k"]) // (prod(shape["o"]) // a)  # of k, or of q, k and v together
    kv = (rows - a) // 2 if family.part("k").kinds == QKV else rows
    count, of_kv = counts
    if count:
        if count < 1 or a % count:
            raise UserError(
                f"{prefix.rstrip('.')} has {a} rows of queries, and {count} heads are declared: the second must divide "
                "the first, so give the description of this very model."
            )
        return Heads(count, kv * count // a if of_kv is None else of_kv, a // count), ""
    sizes = {tensors.shape(n) for n in tensors.names if n.startswith(prefix) and QK_NORM.search(n) and "bias" not in n}
    size = next(iter(sizes))[0] if len(sizes) == 1 and len(next(iter(sizes))) == 1 else a
    if size < a and not (a % size or kv % size) and kv:
        return Heads(a // size, kv // size, size), f"The heads are not declared: of {size} each, as the norm of k is."
    return None, "The number of heads is not declared, and what needs it is absent: " + cure
