"""The model in a checkpoint: its tensors as matrices and norms of layers, by the table of families or inferred."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from orchestrator.common.errors import UserError
from orchestrator.common.formatting import counted
from orchestrator.forensics.architecture import gguf
from orchestrator.forensics.architecture.checks import (
    check_moments,
    check_names,
    check_scales,
    check_shapes,
    heads_and_cure,
    held_kinds,
    layer_pattern,
)
from orchestrator.forensics.architecture.description import describe, tower
from orchestrator.forensics.architecture.experts import Mixture, mixture
from orchestrator.forensics.architecture.families import find
from orchestrator.forensics.architecture.holdings import holdings
from orchestrator.forensics.architecture.inference import heads_by_shape, infer
from orchestrator.forensics.architecture.layer import Expert, Layer
from orchestrator.forensics.architecture.layout import Family, Heads
from orchestrator.forensics.architecture.layouts import recognise
from orchestrator.forensics.architecture.live import Live
from orchestrator.forensics.architecture.unembedding import final_scale, head_name
from orchestrator.forensics.architecture.unsupported import OTHER_SENSES, refuse_two_towers, refuse_unsupported
from orchestrator.forensics.weights.adapters import is_adapter, open_adapter
from orchestrator.forensics.weights.optimizer import moments_beside, open_moments
from orchestrator.forensics.weights.selection import CHOOSE
from orchestrator.forensics.weights.tensors import Tensors, open_tensors

# Those, what connects them with the text model, and heads for later tokens.
BESIDE_TEXT = re.compile(rf"{OTHER_SENSES.pattern}|perceiver|resampler|q_?former|(^|\.)(mtp|nextn)\.")
TOWER_LAYER = re.compile(rf"(?:[^.]+\.)*?([^.]*(?:{OTHER_SENSES.pattern})[^.]*)\..*?\.?\d+\..*")

# Cures for a number of heads that nothing declares.
UNDECLARED = (
    "put a config.json with num_attention_heads (and num_key_value_heads, where it is smaller) beside the weights."
)
UNDECLARED_IN_MEMORY = "give it as config={'num_attention_heads': …} (and num_key_value_heads, where it is smaller)."


class CheckpointModel:
    """A checkpoint's model, or one in memory. Tensors are read on demand."""

    def __init__(
        self,
        source: Path | Live,
        optimizer: Path | None = None,
        weights: str | None = None,
        base: Path | None = None,
        delta: bool = False,
    ) -> None:
        """`optimizer`: a file of Adam's moments; by default those beside the weights, where there are any with names.

        `weights`: which of several models there is read, by a part of its tensors' names (`weights.selection`). `base`:
        the model that `source`, an adapter, is added to; with `delta`, what it adds is read in that model's shapes.
        Layers of hybrids and of mixtures of experts lack attention or the one FFN; their `kinds` say what they have.
        Raises `UserError` for an unsupported model, and for absent or misshapen tensors.
        """
        beside = None  # where Adam's moments may be
        self.in_memory = isinstance(source, Live)
        if isinstance(source, Live):
            self.tensors, description = source.tensors(weights), source.description
            source = self.directory = Path(source.name)  # for messages
        elif is_adapter(source):
            self.tensors = open_adapter(source, weights, base, delta)
            described = source if base is None else base
            self.directory = described if described.is_dir() else described.parent
            description = replace(describe(self.directory), step=None, trace={})  # those are the base's
        else:
            self.tensors = open_tensors(source, weights)
            self.directory = source if source.is_dir() else source.parent
            description = describe(self.directory, self.tensors.metadata, source)
            beside = source
        if weights is not None and OTHER_SENSES.search(weights):
            description = tower(description, weights)
        if weights is None:
            refuse_two_towers(source, self.tensors.names)
        known = find(description.declared, description.config, self.tensors.names)
        is_gguf = gguf.is_gguf(self.tensors.metadata)
        mixed = known is not None and known[1].mixed and not is_gguf
        refuse_unsupported(source, self.tensors.names, description.config, experts=mixed or is_gguf, mixers=mixed)
        self.assumed: list[str] = []  # what was inferred, one sentence each
        self.heads_assumed: list[str] = []  # the same, of heads that nothing declares
        if is_gguf:
            self.family_name, self.stem = description.declared, ""
            self.family = gguf.layout(description.declared, self.tensors)
        elif known is not None:
            self.family_name, family = known
            self.stem = _stem(source, family, self.tensors)
            self.family = _respelled(family, self.tensors)
        elif recognised := recognise(source, self.tensors, description.config):
            self.family_name, self.family, self.stem = recognised
        else:
            self.family_name, self.stem = "inferred", ""
            try:
                self.family, self.assumed = infer(source, self.tensors, description)
            except UserError as error:
                if base is not None or not is_adapter(source):
                    raise
                changed = ", ".join(sorted(self.tensors.names)[:3])
                raise UserError(
                    f"{source} does not change every matrix of a layer ({changed} …): "
                    "name the model that it was trained on with --base, and add --delta to read the change by itself."
                ) from error
        self._names = _by_layer(self)
        numbered = max(self._names, default=-1) + 1
        count = numbered if description.layers is None else len(description.layers)
        if stored := description.config.get(self.family.stored):
            count = int(stored)
        self.heads: list[Heads | None] = [description.heads(index) for index in range(count)]
        self.description = replace(description, layers=self.heads)
        self._kinds = [held_kinds(self, index) for index in range(count)]
        check_names(self)
        _settle_heads(self)
        if not delta:
            check_scales(self)
        self._shapes = [self._matrix_shapes(index) for index in range(count)]
        for index in range(count):
            check_shapes(self, index)
        self._mixtures = [self._mixture(index) for index in range(count)]
        self._note_unread_experts()
        if weights is None:
            self._note_towers()
        self.embedding_shape = _embedding_shape(self)  # [V, d]; None without a table in the residual basis
        last = self.width(count - 1)  # the head's name is None where there is none, or it is not known
        self.head_name = head_name(self.tensors, self.family, self.stem, self.description.config, last)
        if optimizer is not None:
            self.optimizer: Tensors | None = open_moments(optimizer)
            check_moments(self, optimizer, self.optimizer.names)
        else:
            self.optimizer = None if beside is None else moments_beside(beside)

    def __len__(self) -> int:
        return len(self.heads)

    def __iter__(self) -> Iterator[Layer]:
        """Fresh layers, first to last: dropping one frees what it has read."""
        for index in range(len(self)):
            yield self.layer(index)
            self.tensors.release()

    def layer(self, index: int) -> Layer:
        """Layer `index`, from 0."""
        return Layer(self, index)

    def prefix(self, index: int) -> str:
        """Prefix of the tensor names of layer `index`."""
        return self.stem + self.family.layer.format(index)

    def kinds(self, index: int) -> tuple[str, ...]:
        """Kinds of the matrices that a layer has, in the order of `KINDS`."""
        return self._kinds[index]

    def names(self, index: int) -> list[str]:
        """Names of the tensors in a layer."""
        return self._names[index]

    def holdings(self, index: int) -> list[str]:
        """The parts of a layer, such as `state-space` and `FFN`, or `attention` and `8 experts`."""
        return holdings(self.kinds(index), self.names(index), self._mixtures[index])

    @property
    def parameters(self) -> int:
        """Entries of the matrices that are read, of layers and of experts."""
        experts = (
            prod(self.tensors.shape(self.prefix(index) + name))
            for index, mixture in enumerate(self._mixtures)
            if mixture
            for name in mixture.tensors
        )
        return sum(layer.parameters for layer in self) + sum(experts)

    def mixture(self, index: int) -> Mixture | None:
        """Where a layer's experts and their router are stored; None where it has none that can be read."""
        return self._mixtures[index]

    def experts(self, index: int) -> Iterator[Expert]:
        """A layer's experts, then the one that reads every token: dropping one frees what it has read."""
        if mixture := self._mixtures[index]:
            for number in range(mixture.count):
                yield Expert(self, index, number, mixture.parts)
                self.tensors.release()
            if mixture.shared:
                yield Expert(self, index, None, mixture.shared)
                self.tensors.release()

    def width(self, index: int) -> int:
        """Residual coordinates that a layer reads and writes; those of the nearest layer where it has no matrices."""
        nearest = sorted(range(len(self)), key=lambda other: abs(other - index))
        read = (shape[1] for other in nearest for kind, shape in self._shapes[other].items() if kind in ("q", "up"))
        norms = (self.prefix(other) + name for other in nearest for name in self.family.norms.values())
        scales = (self.tensors.shape(name)[0] for name in norms if name in self.tensors)
        return next(chain(read, scales))

    def shape(self, index: int, kind: str) -> tuple[int, int]:
        """Shape [out, in] of a matrix."""
        return self._shapes[index][kind]

    def embedding(self, block: int = 8192) -> Iterator[Tensor]:
        """The embedding table [V, d] in blocks of at most `block` rows, fp32; nothing where it has none."""
        return self.tensors.rows(self.stem + self.family.embed, block) if self.embedding_shape else iter(())

    def embedding_rows(self, tokens: Sequence[int]) -> Tensor:
        """Rows of the embedding table, fp32: [tokens, d]."""
        return self.tensors.take(self.stem + self.family.embed, tokens)

    def head(self, block: int = 8192) -> Iterator[Tensor]:
        """The table [V, d] that turns the stream into logits, in blocks of at most `block` rows, fp32; or nothing."""
        return iter(()) if self.head_name is None else self.tensors.rows(self.head_name, block)

    def final_scale(self) -> Tensor | None:
        """The scale γ [d] of the norm before the head; None where there is none."""
        return final_scale(self.tensors, self.family, self.stem)

    def _mixture(self, index: int) -> Mixture | None:
        prefix, config = self.prefix(index), self.description.config
        shapes = {name.removeprefix(prefix): self.tensors.shape(name) for name in self.names(index)}
        if not self.family.mixed:
            return None
        return mixture(prefix.rstrip("."), shapes, self.width(index), self.description.declared, config, index)

    def _note_unread_experts(self) -> None:
        """Say which layers hold experts that are not measured."""
        holds = (self.holdings(index) for index in range(len(self)))
        if unread := [index for index, held in enumerate(holds) if "experts" in held]:
            self.assumed.append(
                f"The experts of {counted(len(unread), 'layer')} ({self.prefix(unread[0]).rstrip('.')} …) are stored "
                "in a form that is not known, or do not read the stream itself: they are not measured."
            )

    def _note_towers(self) -> None:
        """Say which encoders of other modalities are left aside, and how each is read."""
        read = {name for index in range(len(self)) for name in self.names(index)}
        within = (TOWER_LAYER.fullmatch(name) for name in self.tensors.names if name not in read)
        for part in sorted({match[1] for match in within if match}):
            self.assumed.append(
                f"The layers of {part} are left aside: --weights {part} (weights= in Python) reads them."
            )

    def _matrix_shapes(self, index: int) -> dict[str, tuple[int, int]]:
        """Every matrix's shape, by splitting tensors without values."""
        shapes: dict[str, tuple[int, int]] = {}
        for part in self.family.parts:
            if not set(part.kinds) <= set(self.kinds(index)):
                continue
            stored = self.tensors.shape(self.prefix(index) + part.tensor)
            try:
                for kind, matrix in part.matrices(torch.empty(stored, device="meta"), self.heads[index]).items():
                    rows, columns = matrix.shape
                    shapes[kind] = (rows, columns)
            except (RuntimeError, ValueError, IndexError) as error:
                raise UserError(
                    f"{self.prefix(index)}{part.tensor} has shape {stored}, which does not hold {', '.join(part.kinds)}"
                    f" of {heads_and_cure(self.heads[index])}."
                ) from error
        return shapes


def _by_layer(model: CheckpointModel) -> dict[int, list[str]]:
    """Layer → names of the tensors in it; nothing for a layer that has none."""
    names: dict[int, list[str]] = defaultdict(list)
    for match in filter(None, map(layer_pattern(model).match, sorted(model.tensors.names))):
        names[int(match[1])].append(match[0])
    return names


def _stem(source: Path, family: Family, tensors: Tensors) -> str:
    """The prefix of the family's names in this file; of several models, the text model's.

    Raises `UserError` where several could be meant, such as a student and its teacher.
    """
    layer = re.escape(family.layer).replace(r"\{\}", r"\d+")
    stems: list[str] = []
    for within in ([part.tensor for part in family.parts], family.norms.values()):  # norms, where all FFNs are experts
        pattern = re.compile(rf"((?:.*\.)?){layer}(?:{'|'.join(map(re.escape, within))})")
        stems = stems or sorted({match[1] for name in tensors.names if (match := pattern.fullmatch(name))})
    stems = [stem for stem in stems if not BESIDE_TEXT.search(stem)] or stems
    if len(stems) > 1:
        raise UserError(
            f"{source} holds several stacks of layers, "
            f"{' and '.join(stem + family.layer.format('N') for stem in stems[:2])} for two: {CHOOSE}."
        )
    return stems[0] if stems else ""


def _respelled(family: Family, tensors: Tensors) -> Family:
    """The family with the norm names of TensorFlow (`gamma`) where the checkpoint uses them, as the first BERTs do."""
    if not any(name.endswith(".gamma") for name in tensors.names):
        return family
    return replace(family, norms={p: f"{n.removesuffix('weight')}gamma" for p, n in family.norms.items()})


def _settle_heads(model: CheckpointModel) -> None:
    """Check the declared heads and infer the others, noting each assumption once."""
    cure = UNDECLARED_IN_MEMORY if model.in_memory else UNDECLARED
    for index, h in enumerate(model.heads):
        if "q" not in model.kinds(index):
            model.heads[index] = None
        elif h is None:
            counts, prefix = model.description.head_counts(index), model.prefix(index)
            model.heads[index], assumption = heads_by_shape(model.tensors, prefix, model.family, counts, cure)
            model.heads_assumed += [assumption] if assumption not in ("", *model.heads_assumed) else []
        h = model.heads[index]
        if h is not None and (h.kv_heads < 1 or h.heads % h.kv_heads):
            raise UserError(
                f"{model.directory} declares {h.heads} heads over {h.kv_heads} key/value heads in layer "
                f"{index}: the second must divide the first."
            )


def _embedding_shape(model: CheckpointModel) -> tuple[int, int] | None:
    """Shape [V, d] of the embedding; None without one as wide as the stream (ELECTRA and small OPTs project theirs)."""
    name = model.stem + model.family.embed
    shape = model.tensors.shape(name) if name in model.tensors else ()
    widths = [model.width(index) for index in range(len(model))]
    return (shape[0], shape[1]) if len(shape) == 2 and widths[0] <= shape[1] <= max(widths) else None
