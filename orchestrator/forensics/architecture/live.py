"""A model in memory: a state dict or a module, with the configuration that describes it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any

from torch import Tensor, nn

from orchestrator.common.errors import UserError
from orchestrator.forensics.architecture.description import KEYS, Description, describe_config
from orchestrator.forensics.weights.state_dict import StateDict
from orchestrator.forensics.weights.tensors import Tensors, named_weights

STATE_DICT = "state dict"  # the name of a model without a class


@dataclass(frozen=True)
class Live:
    """A model in memory."""

    name: str  # the module's class, or `STATE_DICT`
    state: Mapping[str, Any]  # its tensors by name, not copied
    config: Mapping[str, Any]  # the keys of a `config.json`; empty where nothing describes the model
    module: nn.Module | None  # None for a state dict

    def tensors(self, chosen: str | None = None) -> Tensors:
        """The weights. Raises `UserError` where there are none, or they are not whole.

        `chosen`: which of several models (`weights.selection`).
        """
        return named_weights(StateDict(self.state, self.name), chosen, self.config.get("quantization_config") or {})

    @property
    def description(self) -> Description:
        """The description of the model. Raises `UserError` where `config` describes none."""
        try:
            return describe_config(dict(self.config)) if self.config else Description()
        except Exception as error:  # a broken description fails in any way there is
            raise UserError(f"The config of {self.name} does not describe a model ({error!r}): correct it.") from error


def live(source: Mapping[str, Tensor] | nn.Module, config: Any = None) -> Live:
    """The model in a state dict or a module; no tensor is copied.

    `config`: a configuration of transformers, a `DecoderSpec`, or a dataclass or mapping with the keys of either; by
    default the module's own. Wrappers around the one described module are passed by. Raises `UserError` for a `config`
    that describes no model, and for a module that holds several.
    """
    keys = None if config is None else _keys(config)
    if config is not None and keys is None:
        raise UserError(
            f"config={type(config).__name__} describes no model: give a configuration of transformers, or a dict with "
            f"the keys of a config.json, such as model_type, {KEYS['layers'][0]} and {KEYS['heads'][0]}."
        )
    if isinstance(source, nn.Module):
        module, own = _described_module(source)
        return Live(type(module).__name__, module.state_dict(), keys or own or _of_torch(module), module)
    return Live(STATE_DICT, source, keys or {}, None)


def _keys(config: Any) -> dict[str, Any] | None:
    """The keys of a configuration, as a `config.json` has them; None where nothing in it describes a model."""
    plain: Any = config
    if not isinstance(config, Mapping):
        to_dict = getattr(config, "to_dict", None)
        if callable(to_dict):
            plain = to_dict()
        elif is_dataclass(config) and not isinstance(config, type):
            plain = asdict(config)
    if not isinstance(plain, Mapping):
        return None
    keys = dict(plain)
    if isinstance(keys.get("layers"), list) and "norm" in keys:  # a DecoderSpec
        keys = {"spec": keys}
    describing = ("model_type", "spec", "text_config", *KEYS["heads"])
    return keys if any(keys.get(key) is not None for key in describing) else None


def _described_module(module: nn.Module) -> tuple[nn.Module, dict[str, Any]]:
    """The outermost module that describes itself, and its configuration; `module` and nothing where none does.

    One that holds less than half of the parameters is a part of `module`, not what it wraps. Raises `UserError` where
    there are several, as in distillation.
    """
    found = list(_describing(module, ""))
    if len(found) > 1:
        both = " and ".join(f"{path} ({type(inner).__name__})" for path, inner, _ in found[:2])
        raise UserError(f"{type(module).__name__} holds several models, {both}: give the one that is to be read.")
    for _, inner, config in found:
        if 2 * _size(inner) > _size(module):
            return inner, config
    return module, {}


def _describing(module: nn.Module, path: str) -> Iterator[tuple[str, nn.Module, dict[str, Any]]]:
    """The path of every outermost module with a configuration or a spec, the module, and its keys."""
    for attribute in ("config", "spec"):
        keys = _keys(module.__dict__.get(attribute))
        if keys is not None:
            yield path, module, keys
            return
    for name, child in module.named_children():  # a shared module once
        yield from _describing(child, f"{path}.{name}".removeprefix("."))


def _of_torch(module: nn.Module) -> dict[str, Any]:
    """The number of heads that the layers of torch's own encoder have; nothing where there are none, or they differ."""
    layers = (child for child in module.modules() if isinstance(child, nn.TransformerEncoderLayer))
    heads = {layer.self_attn.num_heads for layer in layers}
    return {KEYS["heads"][0]: heads.pop()} if len(heads) == 1 else {}


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
