"""Which tensor is what, in a checkpoint: ours, or any of a family that the table knows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.errors import UserError
from orchestrator.forensics.tensors import Tensors, open_file, open_tensors

ATTENTION = ("q", "k", "v", "o")
FFN = ("gate", "up", "down")
KINDS = ATTENTION + FFN

_LLAMA_MATRICES = {
    "q": "self_attn.q_proj.weight", "k": "self_attn.k_proj.weight", "v": "self_attn.v_proj.weight",
    "o": "self_attn.o_proj.weight", "gate": "mlp.gate_proj.weight", "up": "mlp.up_proj.weight",
    "down": "mlp.down_proj.weight",
}  # fmt: skip


@dataclass(frozen=True)
class Family:
    """Where a family of checkpoints keeps its tensors. Norm scales must multiply directly (1 = no change)."""

    marks: tuple[str, ...]  # what declares it: "norm=…" in our spec, "model_type=…" in a config.json
    matrices: dict[str, str]  # kind → name within the layer
    norms: dict[str, str]  # pre_attention, post_attention, pre_ffn, post_ffn → name within the layer
    layer: str = "model.layers.{}."
    embed: str = "model.embed_tokens.weight"
    head: str = "lm_head.weight"


FAMILIES = {
    "llama": Family(
        marks=("norm=pre", "model_type=llama"),
        matrices=_LLAMA_MATRICES,
        norms={"pre_attention": "input_layernorm.weight", "pre_ffn": "post_attention_layernorm.weight"},
    ),
    "llama_sandwich": Family(
        marks=("norm=sandwich",),
        matrices=_LLAMA_MATRICES,
        norms={
            "pre_attention": "input_layernorm.weight",
            "post_attention": "post_attention_layernorm.weight",
            "pre_ffn": "pre_feedforward_layernorm.weight",
            "post_ffn": "post_feedforward_layernorm.weight",
        },
    ),
}


@dataclass(frozen=True)
class Heads:
    """The attention heads of one layer."""

    heads: int
    kv_heads: int
    head_dim: int


@dataclass(frozen=True)
class Description:
    """What the JSON beside the weights says about them."""

    mark: str
    layers: list[Heads]
    step: int | None = None
    spec: dict[str, Any] | None = None  # ours only: what a decoder is built from
    trace: dict[str, list[float]] = field(default_factory=dict)  # parameter → cos(−exp_avg, w) of the last steps


class Layer:
    """One layer's tensors. Weights are read on first use and kept as long as the layer itself."""

    def __init__(self, anatomy: Anatomy, index: int) -> None:
        self.anatomy = anatomy
        self.index = index
        self.heads = anatomy.description.layers[index]
        self.width = anatomy.tensors.shape(self.name("q"))[1]  # residual coordinates that the layer reads and writes
        self._weights: dict[str, np.ndarray] = {}

    def name(self, kind: str) -> str:
        """Full name of the matrix of this kind."""
        return self.anatomy.name(self.index, kind)

    def weight(self, kind: str) -> np.ndarray:
        """The matrix in float64, [out, in]: q,k,v [a,d] · o [d,a] · gate,up [f,d] · down [d,f]."""
        if kind not in self._weights:
            self._weights[kind] = self.anatomy.tensors.read(self.name(kind))
        return self._weights[kind]

    def norm(self, place: str) -> np.ndarray | None:
        """The scale γ [d] at a place of `Family.norms`; None where the family has no norm there."""
        family = self.anatomy.family
        name = family.norms.get(place)
        return None if name is None else self.anatomy.tensors.read(family.layer.format(self.index) + name)

    def moment(self, kind: str, which: str) -> np.ndarray | None:
        """Adam's `exp_avg` or `exp_avg_sq`, shaped like the weight; None without an optimizer state."""
        optimizer, name = self.anatomy.optimizer, f"{self.name(kind)}.{which}"
        if optimizer is None or name not in optimizer:
            return None
        moment = optimizer.read(name)
        if moment.shape != self.anatomy.tensors.shape(self.name(kind)):
            raise UserError(f"{name} has shape {moment.shape}, unlike its weight: the two files are of different runs.")
        return moment

    def trace(self, kind: str) -> list[float]:
        """cos(−exp_avg, w) of the last recorded steps; empty without a trace."""
        return self.anatomy.description.trace.get(self.name(kind), [])


class Anatomy:
    """A checkpoint, opened but not read: every tensor is fetched when it is asked for."""

    def __init__(self, source: Path) -> None:
        """Raises `UserError` for a family the table does not know, and for absent or misshapen tensors."""
        self.tensors = open_tensors(source)
        self.directory = source if source.is_dir() else source.parent
        self.description = describe(self.directory)
        self.family_name, self.family = _family(self.description.mark, self.directory)
        _check_names(self)
        for index in range(len(self)):
            _check_shapes(self, index)
        moments = self.directory / "optimizer.safetensors"
        self.optimizer: Tensors | None = open_file(moments) if moments.is_file() else None

    def __len__(self) -> int:
        return len(self.description.layers)

    def __iter__(self) -> Iterator[Layer]:
        """Fresh layers, first to last: dropping one frees what it has read."""
        return (Layer(self, index) for index in range(len(self)))

    def name(self, index: int, kind: str) -> str:
        """Full name of the matrix of this kind in layer `index`."""
        return self.family.layer.format(index) + self.family.matrices[kind]

    def embed(self) -> np.ndarray:
        """The embedding table [V, d] in float64."""
        return self.tensors.read(self.family.embed)

    def head(self) -> np.ndarray | None:
        """The output matrix [V, d] in float64; None where it is tied to the embedding."""
        return self.tensors.read(self.family.head) if self.family.head in self.tensors else None


def describe(directory: Path) -> Description:
    """What `state.json` (ours) or `config.json` (Hugging Face's) in `directory` says.

    Raises `UserError` where neither is there, or says nothing of use.
    """
    for name, read in {"state.json": _from_state, "config.json": _from_config}.items():
        path = directory / name
        if path.is_file():
            try:
                return read(json.loads(path.read_text()))
            except (ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
                raise UserError(
                    f"{path} does not describe a decoder ({error!r}): copy the whole checkpoint again."
                ) from error
    raise UserError(
        f"{directory} has neither state.json nor config.json, so the number of attention heads is unknown: "
        "put the checkpoint's own beside its weights."
    )


def _from_spec(spec: dict[str, Any]) -> tuple[str, list[Heads]]:
    heads = [Heads(int(s["heads"]), int(s["kv_heads"]), int(s["head_dim"])) for s in spec["layers"]]
    return f"norm={spec['norm']}", heads


def _from_state(state: dict[str, Any]) -> Description:
    mark, layers = _from_spec(state["spec"])
    return Description(mark, layers, int(state["step"]), state["spec"], state.get("trace") or {})


def _from_config(config: dict[str, Any]) -> Description:
    if isinstance(config.get("spec"), dict):  # our decoder, saved as a transformers model
        mark, layers = _from_spec(config["spec"])
        return Description(mark, layers)
    mark = f"model_type={config['model_type']}"
    if not any(mark in family.marks for family in FAMILIES.values()):
        return Description(mark, [])  # refused by name later: its other keys need not be ours
    heads = int(config["num_attention_heads"])
    head_dim = int(config.get("head_dim") or int(config["hidden_size"]) // heads)
    shape = Heads(heads, int(config.get("num_key_value_heads") or heads), head_dim)
    return Description(mark, [shape] * int(config["num_hidden_layers"]))


def _family(mark: str, directory: Path) -> tuple[str, Family]:
    for name, family in FAMILIES.items():
        if mark in family.marks:
            return name, family
    known = ", ".join(m for family in FAMILIES.values() for m in family.marks)
    raise UserError(f"{directory} declares {mark}, a family that is not known here: looked for {known}.")


def _check_names(anatomy: Anatomy) -> None:
    if not len(anatomy):
        raise UserError(f"{anatomy.directory} describes a model of 0 layers: there is nothing to read.")
    family, tensors = anatomy.family, anatomy.tensors
    within = [*family.matrices.values(), *family.norms.values()]
    wanted = [family.embed] + [family.layer.format(i) + name for i in range(len(anatomy)) for name in within]
    absent = [name for name in wanted if name not in tensors]
    if absent:
        found = ", ".join(sorted(tensors.files)[:3]) or "nothing"
        raise UserError(
            f"{anatomy.directory} lacks {len(absent)} of the {len(wanted)} tensors of a {anatomy.family_name}"
            f" model with {len(anatomy)} layers: looked for {', '.join(absent[:3])}; found {found}."
        )
    extra = family.layer.format(len(anatomy))
    if any(name.startswith(extra) for name in tensors.files):
        raise UserError(
            f"{anatomy.directory} holds {extra}…, but its description has {len(anatomy)} layers: "
            "the files do not belong together."
        )


def _check_shapes(anatomy: Anatomy, index: int) -> None:
    h = anatomy.description.layers[index]
    if h.kv_heads < 1 or h.heads % h.kv_heads:
        raise UserError(
            f"{anatomy.directory} declares {h.heads} heads over {h.kv_heads} key/value heads in layer "
            f"{index}: the second must divide the first."
        )
    shapes = {kind: anatomy.tensors.shape(anatomy.name(index, kind)) for kind in KINDS}
    a, kv, width, ffn = h.heads * h.head_dim, h.kv_heads * h.head_dim, shapes["q"][-1:], shapes["gate"][:1]
    expected = {
        "q": (a, *width), "k": (kv, *width), "v": (kv, *width), "o": (*width, a),
        "gate": (*ffn, *width), "up": (*ffn, *width), "down": (*width, *ffn),
    }  # fmt: skip
    for kind in KINDS:
        if shapes[kind] != expected[kind] or len(shapes[kind]) != 2:
            raise UserError(
                f"{anatomy.name(index, kind)} has shape {shapes[kind]}, not {expected[kind]}, with "
                f"{h.heads} heads ({h.kv_heads} for keys and values) of {h.head_dim}: "
                "the weights and their description do not belong together."
            )
