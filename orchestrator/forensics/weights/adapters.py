"""LoRA adapters of PEFT: what they add to a model's matrices, by itself or added to the model they were trained on."""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from orchestrator.common.errors import UserError
from orchestrator.forensics.weights.files import ADAPTERS, USUAL
from orchestrator.forensics.weights.selection import CHOOSE, Key
from orchestrator.forensics.weights.tensors import Store, Tensors, everything, open_store, open_tensors

CONFIG = "adapter_config.json"
PREFIX = "base_model.model."
FACTOR = re.compile(
    r"(?P<module>.+)\.lora_(?P<side>(?:embedding_)?[AB])(?:\.(?P<adapter>(?!weight$)[^.]+))?(?:\.weight)?"
)
# A module that was trained whole (`modules_to_save`), beside the base model's own in a raw state dict.
WHOLE = re.compile(r"(?P<module>.+\.)modules_to_save\.(?:(?P<adapter>[^.]+)\.)?(?P<last>\w+)")
OF_BASE = re.compile(r"\.(original_module|base_layer)\.")
# Settings under which B·A is not all that is added to the weights that the base model has on disk → their name.
UNLIKE_LORA = {
    "use_dora": "DoRA", "target_parameters": "LoRA of bare parameters", "use_qalora": "QALoRA",
    "lora_bias": "LoRA with biases", "trainable_token_indices": "LoRA with trained tokens",
    "alora_invocation_tokens": "activated LoRA", "layer_replication": "LoRA of replicated layers",
}  # fmt: skip
# Initialisations that change the base model's own weights.
CHANGES_BASE = ("pissa", "corda", "olora", "loftq", "lora_ga")
WITHIN = re.compile(r"(^|\.)\d+\.")  # a name within a layer


@dataclass(frozen=True)
class Factors:
    """The two factors of one change: scale · B·A, transposed where the matrix is stored [in, out]."""

    a: Key
    b: Key
    scale: float
    transposed: bool


class Added:
    """A store of the deltas [out, in] that an adapter adds to the matrices, by the name of the weight."""

    def __init__(self, source: Path, chosen: str | None) -> None:
        """`chosen`: the name of one of several adapters in the file. Raises `UserError` for what is no plain LoRA."""
        directory = source if source.is_dir() else source.parent
        held = [directory / name for name in ADAPTERS if (directory / name).is_file()]
        file = source if source.is_file() else held[0]
        self.path = source
        self._store = open_store(file)
        config = _config(directory)
        self._factors, self.replaced = _changes(self._store, config, chosen)
        if not self._factors:
            raise UserError(f"{file} holds no LoRA factors (lora_A, lora_B): give what PEFT's save_pretrained writes.")
        self.shapes: dict[Key, tuple[int, ...]] = {}
        for name, of in self._factors.items():
            a, b = self._store.shapes[of.a], self._store.shapes[of.b]
            if not (len(a) == len(b) == 2 and a[0] == b[1]):
                raise UserError(
                    f"{file} holds factors of {name} whose product is no matrix, of shapes {b} and {a}: "
                    "merge the adapter (merge_and_unload) and save the model."
                )
            self.shapes[name,] = (a[1], b[0]) if of.transposed else (b[0], a[1])

    @property
    def names(self) -> list[str]:
        """The weights that it changes."""
        return list(self._factors)

    def load(self, key: Key, rows: slice | None = None) -> Tensor:
        """The change of a matrix, or of some of its rows, in fp32."""
        of = self._factors[str(key[0])]
        a, b = self._store.load(of.a).float(), self._store.load(of.b).float()
        left, right = (a.T, b.T) if of.transposed else (b, a)
        return of.scale * (left if rows is None else left[rows]) @ right

    def replacement(self, name: str, rows: slice | None = None) -> Tensor:
        """The tensor that was trained whole (`modules_to_save`)."""
        return self._store.load(self.replaced[name], rows).float()

    def release(self) -> None:
        self._store.release()


class Adapted:
    """A model with an adapter: the sum of both; or, `alone`, the change in the model's shapes, zero where none is.

    Vectors are the model's own in both: a norm's scale is needed to read the matrix after it.
    """

    def __init__(self, base: Tensors, added: Added, alone: bool) -> None:
        """Raises `UserError` where the adapter changes a tensor that the model lacks, or has in another shape."""
        self.path = added.path
        self._base, self._added, self._alone = base, added, alone
        self.shapes: dict[Key, tuple[int, ...]] = {(name,): base.shape(name) for name in base.names}
        self._changed = {_counterpart(name, base, added): name for name in added.names}
        replaced = [name for name in added.replaced if _is_held(name, base) or WITHIN.search(name)]  # not a new head
        self._replaced = {_counterpart(name, base, added): name for name in replaced}
        for name, of in self._changed.items():
            if base.shape(name) != added.shapes[of,]:
                raise UserError(
                    f"{added.path} changes {of} by a matrix {added.shapes[of,]}, and the base model has "
                    f"{base.shape(name)} there: give the model that the adapter was trained on."
                )

    def load(self, key: Key, rows: slice | None = None) -> Tensor:
        """The tensor, or some of its rows, in fp32."""
        name = str(key[0])
        kept = self._base.read(name, rows)
        if name in self._replaced:
            new = self._added.replacement(self._replaced[name], rows)
            return new - kept if self._alone and kept.ndim > 1 else new
        if self._alone and kept.ndim > 1:
            kept = torch.zeros_like(kept)
        if name in self._changed:
            kept = kept + self._added.load((self._changed[name],), rows)
        return kept

    def release(self) -> None:
        self._base.release()
        self._added.release()


def is_adapter(source: Path) -> bool:
    """True for a directory of PEFT without a model's own weights, and for its file."""
    if source.is_file():
        return source.name in ADAPTERS
    return any((source / name).is_file() for name in ADAPTERS) and not any((source / n).is_file() for n in USUAL)


def open_adapter(source: Path, chosen: str | None, base: Path | None, alone: bool) -> Tensors:
    """The tensors of an adapter on its `base` model, or, `alone`, of what it adds; without a base always `alone`.

    `chosen`: the name of one of several adapters in the file. Raises `UserError` for adapters other than LoRA, and for
    a base that they do not fit.
    """
    added = Added(source, chosen)
    store: Store = added if base is None else Adapted(open_tensors(base), added, alone)
    return Tensors(everything(store), {str(key[0]): key for key in store.shapes})


def _config(directory: Path) -> dict[str, Any]:
    path = directory / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        kind, start = str(config["peft_type"]).upper(), str(config.get("init_lora_weights")).lower()
        float(config["lora_alpha"] if kind == "LORA" else 0)
    except Exception as error:  # no file, no JSON, no dict, no number
        raise UserError(
            f"{path} does not describe an adapter ({error!r}), and it has the scale of its change: copy it beside the "
            "adapter's weights."
        ) from error
    what = next((name for key, name in UNLIKE_LORA.items() if config.get(key)), None if kind == "LORA" else kind)
    if what is not None:
        raise UserError(
            f"{directory} is an adapter of {what}, not of LoRA: merge it (merge_and_unload) and save the model."
        )
    if start.startswith(CHANGES_BASE):
        raise UserError(
            f"{directory} was initialised by {start}, which changes the base model's weights too, so its factors are "
            "not the change: merge it (merge_and_unload) and save the model."
        )
    return dict(config)


def _changes(store: Store, config: Mapping[str, Any], chosen: str | None) -> tuple[dict[str, Factors], dict[str, Key]]:
    """Name of a weight → the factors of its change, and name → key of tensors that were trained whole."""
    sides: dict[str, dict[tuple[str, str], Key]] = defaultdict(dict)  # adapter → (module, side) → key
    replaced: list[tuple[str, str, Key]] = []  # adapter, name, key
    for key in store.shapes:
        name = str(key[-1]).removeprefix(PREFIX)
        if match := FACTOR.fullmatch(name):
            sides[match["adapter"] or ""][match["module"], match["side"]] = key
        elif "lora_magnitude_vector" in name or ".lora_" in name:
            raise UserError(
                f"{store.path} holds {name}, which plain LoRA does not have: merge the adapter and save the model."
            )
        elif match := WHOLE.fullmatch(name):
            replaced.append((match["adapter"] or "", match["module"] + match["last"], key))
        elif not OF_BASE.search(name):
            replaced.append(("", name, key))
    if chosen is not None and chosen not in sides:
        raise UserError(f"{store.path} has no adapter called {chosen}: it holds {', '.join(map(repr, sorted(sides)))}.")
    if chosen is None and len(sides) > 1:
        raise UserError(f"{store.path} holds the adapters {' and '.join(sorted(sides))}: {CHOOSE}.")
    named = next(iter(sides), "") if chosen is None else chosen
    held = sides.get(named, {})
    factors = {}
    for module, side in sorted(held):
        other = (module, side[:-1] + "B")
        if side.endswith("B"):
            continue
        if other not in held:
            raise UserError(f"{store.path} holds lora_{side} of {module} without its lora_{other[1]}: copy it again.")
        rank = store.shapes[held[module, side]][0]
        alpha = float(_of_pattern(config.get("alpha_pattern"), module, config["lora_alpha"]))
        scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
        transposed = side != "A" or bool(config.get("fan_in_fan_out"))
        factors[f"{module}.weight"] = Factors(held[module, side], held[other], scale, transposed)
    return factors, {name: key for of, name, key in replaced if of in ("", named)}


def _of_pattern(patterns: Any, module: str, default: Any) -> Any:
    """The value of the first pattern that the end of the module's name fits. Raises `UserError` for what is none."""
    for pattern, value in dict(patterns or {}).items():
        try:
            if re.match(rf"(.*\.)?({pattern})$", module):
                return value
        except re.error as error:
            raise UserError(
                f"alpha_pattern in {CONFIG} holds {pattern!r}, which is no pattern ({error}): correct it."
            ) from error
    return default


def _is_held(name: str, base: Tensors) -> bool:
    return any(of == name or of.endswith(f".{name}") or name.endswith(f".{of}") for of in base.names)


def _counterpart(name: str, base: Tensors, added: Added) -> str:
    """The base model's name of a tensor: the same, or one that differs in what stands before it."""
    alike = [of for of in base.names if of == name or of.endswith(f".{name}") or name.endswith(f".{of}")]
    found = [name] if name in base else alike
    if len(found) != 1:
        raise UserError(
            f"{added.path} changes {name}, and the base model has {len(found)} tensors of that name (it has "
            f"{', '.join(sorted(base.names)[:2])}): give the model that the adapter was trained on."
        )
    return found[0]
