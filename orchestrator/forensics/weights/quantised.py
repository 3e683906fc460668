"""Quantised matrices, de-quantised as they are read: fp8 and int8 with scales, GPTQ, AWQ.

Sources of the formats: `quantization_config` of transformers (fp8, compressed-tensors), bitsandbytes' LLM.int8,
AutoGPTQ and GPTQModel, AutoAWQ. What is packed otherwise keeps its names, and is refused by them.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from orchestrator.common.errors import UserError
from orchestrator.forensics.weights.selection import Key

NARROW = {torch.float8_e4m3fn, torch.float8_e5m2, torch.int8}
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # the column of each nibble of a word, from the lowest
CONFIGS = ("config.json", "quantize_config.json", "quant_config.json")
Parts = Mapping[str, Tensor]  # a quantised matrix by the last part of its tensors' names
Shapes = Mapping[str, tuple[int, ...]]
Config = Mapping[str, Any]


@dataclass(frozen=True)
class Format:
    """A way to store a matrix [out, in] in several tensors, known by the names that follow the module's."""

    name: str
    needed: tuple[str, ...]
    others: tuple[str, ...]  # which may be there too; more than these, and a bias, make it another format
    shape: Callable[[Shapes], tuple[int, int] | None]  # from its tensors' shapes; None where they are of another format
    matrix: Callable[[Parts, Config], Tensor]  # in fp32; raises `ValueError` for what is not as it should be

    @property
    def parts(self) -> tuple[str, ...]:
        """All that may hold it."""
        return self.needed + self.others


def scaled(parts: Parts, config: Config) -> Tensor:
    """weight · scale; the scale is one number, one for each row, or, of fp8, one for each block."""
    weight = parts["weight"]
    scale = next(parts[name] for name in ("weight_scale_inv", "weight_scale") if name in parts)
    scale = (scale.float() - 127).exp2() if scale.dtype == torch.uint8 else scale.float()  # bytes are exponents (E8M0)
    if weight.dtype not in NARROW:
        raise ValueError(f"a weight of {weight.dtype} with a scale")
    rows, columns = weight.shape
    if scale.numel() == 1:
        return weight.float() * scale.reshape(())
    if scale.shape in ((rows,), (rows, 1)):
        return weight.float() * scale.reshape(rows, 1)
    high, wide = _block(config)
    if weight.dtype == torch.int8:  # two fp4 in each byte
        raise ValueError(f"int8 with scales of shape {tuple(scale.shape)}")
    if not (high and wide) or scale.shape != (-(-rows // high), -(-columns // wide)):
        raise ValueError(f"scales of shape {tuple(scale.shape)} for blocks of {high} × {wide}")
    across = torch.arange(columns) // wide
    return weight.float() * scale[torch.arange(rows) // high][:, across]


def _block(config: Config) -> tuple[int, int]:
    """Rows and columns that share a scale; zeros where the settings say none."""
    groups = list(dict(config.get("config_groups") or {}).values())  # of compressed-tensors
    named = groups[0]["weights"].get("block_structure") if groups else config.get("weight_block_size")
    high, wide = named or (0, 0)
    return int(high), int(wide)


def int8(parts: Parts, config: Config) -> Tensor:
    """LLM.int8: each row over its largest absolute value, in 127 steps."""
    layout = parts.get("weight_format")
    if layout is not None and int(layout) != 0:
        raise ValueError("tiles for one kind of GPU in place of rows")
    return parts["weight"].float() * (parts["SCB"].float() / 127).unsqueeze(1)


def gptq(parts: Parts, config: Config) -> Tensor:
    """scale · (q − zero), with inputs along the rows of the file, and zeros less 1 in the format's first version."""
    scales = parts["scales"].float()  # [groups, out]
    bits = 32 * parts["qzeros"].shape[1] // scales.shape[1]
    if "checkpoint_format" not in config and "bits" not in config:
        raise ValueError("no quantization_config to tell whether zeros are stored less 1")
    levels = _unpacked(parts["qweight"].T, bits).T  # [in, out]
    zeros = _unpacked(parts["qzeros"], bits) + (config.get("checkpoint_format", "gptq") == "gptq")
    if "g_idx" not in parts and config.get("desc_act"):
        raise ValueError("desc_act, and no g_idx that orders the inputs")
    group = parts["g_idx"].long() if "g_idx" in parts else _in_turn(len(levels), len(scales), config)
    return _levels_of_groups(levels, zeros, scales, group)


def awq(parts: Parts, config: Config) -> Tensor:
    """scale · (q − zero), with inputs along the rows of the file, eight columns of a row in a word."""
    if str(config.get("version", "gemm")).lower() != "gemm":
        raise ValueError(f"AWQ's version {config['version']}")
    order = torch.tensor(AWQ_ORDER).argsort()
    levels, zeros = (
        _unpacked(parts[of], 4).unflatten(1, (-1, 8))[..., order].flatten(1) for of in ("qweight", "qzeros")
    )
    scales = parts["scales"].float()
    return _levels_of_groups(levels, zeros, scales, _in_turn(len(levels), len(scales), config))


def _in_turn(inputs: int, groups: int, config: Config) -> Tensor:
    """The group of each input, where one group follows the other: [inputs]. The last may be smaller."""
    size = int(config.get("group_size") or 0)
    size = size if size > 0 else -(-inputs // groups)
    if -(-inputs // size) != groups:
        raise ValueError(f"{groups} groups of {size} for {inputs} inputs")
    return torch.arange(inputs) // size


def _levels_of_groups(levels: Tensor, zeros: Tensor, scales: Tensor, group: Tensor) -> Tensor:
    """scale · (level − zero) [out, in], of levels [in, out]; zeros and scales [groups, out], `group` [in]."""
    matrix = torch.empty(levels.shape[::-1])
    for block in torch.arange(len(levels)).split(256):  # rows at a time: fp32 copies of all would be several matrices
        of = group[block]
        matrix[:, block] = (scales[of] * (levels[block] - zeros[of])).T
    return matrix


def _unpacked(words: Tensor, bits: int) -> Tensor:
    """The numbers in each 32-bit word of [m, n], from the lowest bits: [m, n · 32/bits]."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    return ((words.unsqueeze(-1) >> shifts) & (2**bits - 1)).flatten(1)


def _as_stored(shapes: Shapes) -> tuple[int, int] | None:
    weight = shapes["weight"]
    return (weight[0], weight[1]) if len(weight) == 2 else None


def _of_gptq(shapes: Shapes) -> tuple[int, int] | None:
    words, zeros, scales = (shapes[of] for of in ("qweight", "qzeros", "scales"))
    if not len(words) == len(zeros) == len(scales) == 2 or words[1] != scales[1] or not scales[1]:
        return None
    bits = 32 * zeros[1] // scales[1]
    return (words[1], words[0] * 32 // bits) if bits in (2, 4, 8) else None


def _of_awq(shapes: Shapes) -> tuple[int, int] | None:
    words, zeros, scales = (shapes[of] for of in ("qweight", "qzeros", "scales"))
    is_packed = len(words) == len(zeros) == len(scales) == 2 and words[1] * 8 == zeros[1] * 8 == scales[1]
    return (scales[1], words[0]) if is_packed else None


FORMATS = (
    Format("fp8 or int8 with scales", ("weight", "weight_scale_inv"), ("input_scale",), _as_stored, scaled),
    Format("fp8 or int8 with scales", ("weight", "weight_scale"), ("input_scale",), _as_stored, scaled),
    Format("LLM.int8", ("weight", "SCB"), ("weight_format",), _as_stored, int8),
    Format("GPTQ", ("qweight", "qzeros", "scales"), ("g_idx",), _of_gptq, gptq),
    Format("AWQ", ("qweight", "qzeros", "scales"), (), _of_awq, awq),
)


class Dequantised:
    """The quantised matrices of one checkpoint, under the names `<module>.weight`, in fp32."""

    def __init__(self, source: Path, stores: Mapping[Key, Any], modules: Mapping[Key, Format], config: Config) -> None:
        """`modules`: key of a matrix, without its last part → its format."""
        self.path = source
        self.shapes: dict[Key, tuple[int, ...]] = {}
        self._stores, self._config = stores, config
        self._parts: dict[Key, tuple[Format, dict[str, Key]]] = {}
        for module, of in modules.items():
            parts = {last: key for last in of.parts if (key := _part(module, last)) in stores}
            shape = of.shape({last: stores[key].shapes[key] for last, key in parts.items()})
            assert shape is not None, "the format was found by these shapes"
            self.shapes[_part(module, "weight")] = shape
            self._parts[_part(module, "weight")] = of, parts

    def load(self, key: Key, rows: slice | None = None) -> Tensor:
        """The matrix, or some of its rows. Raises `UserError` where its parts do not fit each other."""
        of, parts = self._parts[key]
        try:
            matrix = of.matrix({last: self._stores[k].load(k) for last, k in parts.items()}, self._config)
            if matrix.shape != self.shapes[key]:
                raise ValueError(f"a matrix of {tuple(matrix.shape)}")
        except (ValueError, TypeError, LookupError, RuntimeError, ArithmeticError, AttributeError) as error:
            raise UserError(
                f"{key[-1]} in {self.path} cannot be de-quantised from {of.name} ({error}): save the checkpoint in "
                "fp32, fp16 or bf16 first."
            ) from error
        return matrix if rows is None else matrix[rows]

    def release(self) -> None:
        for store in {id(store): store for store in self._stores.values()}.values():
            store.release()


def dequantised(source: Path, stores: Mapping[Key, Any], config: Config | None = None) -> Mapping[Key, Any]:
    """The stores, with one for every matrix in a known format in place of those of its parts.

    `config`: the settings of the quantisation, by default those in the files beside the weights.
    """
    parts: dict[Key, dict[str, tuple[int, ...]]] = defaultdict(dict)  # module → last part of a name → shape
    for key, store in stores.items():
        parts[_module(key)][str(key[-1]).rpartition(".")[2]] = store.shapes[key]
    modules = {module: of for module, held in parts.items() if (of := _format(held))}
    if not modules:
        return stores
    config = _config(source if source.is_dir() else source.parent) if config is None else config
    found = Dequantised(source, stores, modules, config)
    packed = {_part(module, last) for module, of in modules.items() for last in of.parts}
    return {key: store for key, store in stores.items() if key not in packed} | dict.fromkeys(found.shapes, found)


def _format(held: Mapping[str, tuple[int, ...]]) -> Format | None:
    """The format of a matrix whose parts, with these shapes, are exactly those of one."""
    for of in FORMATS:
        if set(of.needed) <= set(held) <= {*of.parts, "bias"} and of.shape(held):
            return of
    return None


def _config(directory: Path) -> dict[str, Any]:
    """The settings of the quantisation, from the file that has them; empty without any."""
    for name in CONFIGS:
        try:
            config = json.loads((directory / name).read_text(encoding="utf-8"))
            config = config if name != "config.json" else config.get("quantization_config")
        except (OSError, ValueError, AttributeError):
            continue
        if isinstance(config, dict):
            return config
    return {}


def _module(key: Key) -> Key:
    return (*key[:-1], str(key[-1]).rpartition(".")[0])


def _part(module: Key, last: str) -> Key:
    return (*module[:-1], f"{module[-1]}.{last}")
