"""The experts of a mixture's layer: where their matrices and the router are stored, told by names and shapes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from orchestrator.common.errors import UserError
from orchestrator.forensics.architecture.kinds import FFN
from orchestrator.forensics.architecture.layout import Heads, Part, halves, whole

Shape = tuple[int, ...]

COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")  # keys of their number
PLACES = ("num_experts_per_tok", "moe_topk", "moe_k", "top_k_experts", "moe_top_k")  # keys of the places of a token
INTERLEAVED = ("gpt_oss",)  # families whose rows of gate and up alternate
# Families that add the correction to a softmax of the logits, or to these as they are; the others to a sigmoid.
SCORING = {"ernie4_5_moe": "softmax", "ernie4_5-moe": "softmax", "kolibri1": "logits"}

NAMES = {"gate_proj": "gate", "w1": "gate", "up_proj": "up", "w3": "up", "down_proj": "down", "w2": "down"}
SINGLE = re.compile(rf"((?:.*\.)?experts\.)(\d+)\.({'|'.join(NAMES)})\.weight")  # one expert's matrix
# All experts' in one tensor [experts, …] → the kinds in it.
JOINT = (
    (re.compile(r"(.*\.)?experts\.(gate_up_proj|fc1\.weight)|block_sparse_moe\.input_linear\.weight"), ("gate", "up")),
    (re.compile(r"(.*\.)?experts\.gate_proj|ffn_gate_exps\.weight"), ("gate",)),
    (re.compile(r"(.*\.)?experts\.up_proj|ffn_up_exps\.weight"), ("up",)),
    (
        re.compile(
            r"(.*\.)?experts\.(down_proj|fc2\.weight)|block_sparse_moe\.output_linear\.weight|ffn_down_exps\.weight"
        ),
        ("down",),
    ),
)
# The expert that reads every token → the kinds in its tensors.
SHARED = (
    (re.compile(r"shared_mlp\.input_linear\.weight"), ("gate", "up")),
    (re.compile(r"shared_mlp\.output_linear\.weight|ffn_down_shexp\.weight"), ("down",)),
    (re.compile(r"ffn_gate_shexp\.weight"), ("gate",)),
    (re.compile(r"ffn_up_shexp\.weight"), ("up",)),
    *((re.compile(rf"(.*\.)?shared_(experts?|mlp)\.{name}\.weight"), (kind,)) for name, kind in NAMES.items()),
)
ROUTER = re.compile(
    r"(mlp|block_sparse_moe|feed_forward|mixer)\.(gate(\.wg)?|router(\.(layer|gate))?)\.weight|ffn_gate_inp\.weight"
)
ADDED = re.compile(r"(mlp|feed_forward)\.router\.bias|ffn_gate_inp\.bias")  # to the router's logits
CORRECTION = re.compile(r".*(e_score_correction_bias|expert_bias)|exp_probs_b\.bias")  # to the scores, for the choice


@dataclass(frozen=True)
class Router:
    """The names of a router's tensors within a layer, and how it chooses experts."""

    weight: str  # [experts, d]
    added: str | None  # [experts], to the logits
    correction: str | None  # [experts], to the scores before the choice
    scoring: str  # scores that the correction is added to: sigmoid, softmax, or the logits themselves
    places: int  # experts that a token reaches
    groups: int = 1  # of experts, in equal parts
    kept: int = 1  # groups of which experts are chosen
    pooled: int = 2  # best scores of a group whose sum ranks it
    cap: float = 0.0  # of the logits, by a tanh; 0 for none


@dataclass(frozen=True)
class Mixture:
    """The experts of one layer."""

    count: int
    parts: tuple[Part, ...]  # {} in a name stands for the expert's number; a tensor without holds all experts
    shared: tuple[Part, ...]  # of the expert that reads every token; empty without one
    router: Router | None  # None where it is no single matrix, or the number of its places is not known

    @property
    def tensors(self) -> Iterator[str]:
        """Names within the layer of all matrices of the experts."""
        for part in self.parts:
            yield from (part.tensor.format(number) for number in range(self.count if "{}" in part.tensor else 1))
        yield from (part.tensor for part in self.shared)


def mixture(
    layer: str, shapes: Mapping[str, Shape], width: int, declared: str, config: Mapping[str, Any], index: int
) -> Mixture | None:
    """The experts of a layer; None where it has none that are known.

    `layer`: its name, for messages; `shapes`: name within the layer → shape; `width`: of the stream. Raises `UserError`
    where an expert is not whole, does not fit the stream, or their number is not the declared one.
    """
    found = _single(layer, shapes) or _joint(layer, shapes, width, declared)
    if found is None or any("latent_proj" in name for name in shapes):  # these read what is projected from the stream
        return None
    count, parts = found
    numbers = {int(_of_layer(config[key], index)) for key in COUNTS if config.get(key) is not None}
    if numbers and count not in numbers:
        raise UserError(
            f"{layer} holds {count} experts, and its description declares {max(numbers)}: the files do not belong "
            "together, or some are lacking."
        )
    shared = _shared(shapes)
    known = Mixture(count, parts, shared, _router(layer, shapes, count, declared, config, index))
    _check(layer, known, shapes, width)
    return known


def _single(layer: str, shapes: Mapping[str, Shape]) -> tuple[int, tuple[Part, ...]] | None:
    """The experts whose matrices are tensors of their own: their number, and the parts of each."""
    matches = [match for match in map(SINGLE.fullmatch, sorted(shapes)) if match and "shared" not in match[1]]
    if not matches:
        return None
    numbers = sorted({int(match[2]) for match in matches})
    forms = sorted({(match[1], match[3]) for match in matches}, key=lambda form: FFN.index(NAMES[form[1]]))
    parts = tuple(Part(f"{module}{{}}.{name}.weight", (NAMES[name],)) for module, name in forms)
    for number in range(numbers[-1] + 1):
        if absent := [part for part in parts if part.tensor.format(number) not in shapes]:
            raise UserError(
                f"{layer} lacks {absent[0].tensor.format(number)}, of expert {number} of {numbers[-1] + 1}: "
                "copy the checkpoint again."
            )
    return numbers[-1] + 1, parts


def _joint(layer: str, shapes: Mapping[str, Shape], width: int, declared: str) -> tuple[int, tuple[Part, ...]] | None:
    """The experts that share tensors [experts, …]: their number, and the parts."""
    found = [(name, kinds) for pattern, kinds in JOINT for name in shapes if pattern.fullmatch(name)]
    held = {kind for _, kinds in found for kind in kinds}
    if not found or not {"up", "down"} <= held:
        return None
    odd = next((name for name, _ in found if len(shapes[name]) != 3), None)
    counts = {shapes[name][0] for name, _ in found}
    if odd is not None or len(counts) != 1:
        raise UserError(f"{layer} holds experts of different numbers ({_listed(found, shapes)}): copy it again.")
    inward, down = next(name for name, kinds in found if "up" in kinds), next(n for n, k in found if "down" in k)
    is_plain = shapes[inward][2] == shapes[down][1] == width  # [experts, out, in]
    is_turned = not is_plain and shapes[inward][1] == shapes[down][2] == width
    split = alternate if declared in INTERLEAVED else halves
    return counts.pop(), tuple(
        Part(name, kinds, split if len(kinds) > 1 else whole, is_turned) for name, kinds in found
    )


def alternate(raw: Tensor, heads: Heads | None) -> Sequence[Tensor]:
    """Two matrices of equal height, whose rows take turns."""
    return [raw[::2], raw[1::2]]


def _shared(shapes: Mapping[str, Shape]) -> tuple[Part, ...]:
    found = [(name, kinds) for pattern, kinds in SHARED for name in sorted(shapes) if pattern.fullmatch(name)]
    held = [kind for _, kinds in found for kind in kinds]
    if not {"up", "down"} <= set(held) or len(held) != len(set(held)) or any(len(shapes[n]) != 2 for n, _ in found):
        return ()
    return tuple(Part(name, kinds, halves if len(kinds) > 1 else whole) for name, kinds in found)


def _router(
    layer: str, shapes: Mapping[str, Shape], count: int, declared: str, config: Mapping[str, Any], index: int
) -> Router | None:
    """The router of a layer's experts; None where its form or the number of its places is not known."""
    weights, added, corrections = (
        [name for name in sorted(shapes) if pattern.fullmatch(name)] for pattern in (ROUTER, ADDED, CORRECTION)
    )
    places = next((int(_of_layer(config[key], index)) for key in PLACES if config.get(key) is not None), 0)
    if len(weights) != 1 or len(shapes[weights[0]]) != 2 or not places:
        return None
    if shapes[weights[0]][0] != count or places > count:
        raise UserError(
            f"{layer}.{weights[0]} has shape {shapes[weights[0]]} for {count} experts, of which a token reaches "
            f"{places}: the files do not belong together."
        )
    method = config.get("topk_method")
    groups = 1 if method == "greedy" else int(config.get("n_group") or 1)
    if count % groups:
        raise UserError(f"{layer} holds {count} experts, which {groups} groups (n_group) cannot divide: correct it.")
    scoring = config.get("scoring_func") or SCORING.get(declared, "sigmoid")
    if scoring not in ("sigmoid", "softmax", "logits"):
        return None
    return Router(
        weights[0],
        next(iter(added), None),
        next(iter(corrections), None),
        scoring=scoring,
        places=places,
        groups=groups,
        kept=min(groups, int(config.get("topk_group") or 1)),
        pooled=1 if method == "group_limited_greedy" else min(2, count // groups),
        cap=float(config.get("moe_router_logit_softcapping") or 0.0),
    )


def _check(layer: str, of: Mixture, shapes: Mapping[str, Shape], width: int) -> None:
    """Raise `UserError` where a matrix of an expert does not read or write a stream of this width."""
    for parts, count in ((of.parts, of.count), (of.shared, 1)):
        for number in range(count):
            sizes: dict[str, Shape] = {}
            for part in parts:
                stored = shapes[part.tensor.format(number)][-2:]
                height, across = reversed(stored) if part.transposed else stored
                sizes |= dict.fromkeys(part.kinds, (height // len(part.kinds), across))
            inner = sizes["up"][0] if sizes else 0
            expected = {"gate": (inner, width), "up": (inner, width), "down": (width, inner)}
            for part in parts:
                for kind in part.kinds:
                    if sizes[kind] != expected[kind]:
                        name = part.tensor.format(number)
                        raise UserError(
                            f"{layer}.{name} has shape {shapes[name]}, which does not hold {kind} of shape "
                            f"{expected[kind]}: the weights and their description do not belong together."
                        )
            if parts and "{}" not in parts[0].tensor:
                break


def _of_layer(value: Any, index: int) -> Any:
    """A number of the config; of a list, the layer's."""
    return value[min(index, len(value) - 1)] if isinstance(value, list) else value


def _listed(found: Sequence[tuple[str, tuple[str, ...]]], shapes: Mapping[str, Shape]) -> str:
    return ", ".join(f"{name} {shapes[name]}" for name, _ in found)
