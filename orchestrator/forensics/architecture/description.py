"""Family, layers and heads, as the JSON file beside the weights declares them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.common.errors import UserError
from orchestrator.forensics.architecture import gguf, projects
from orchestrator.forensics.architecture.layout import Heads

# Number → its names in different families, the commonest first.
KEYS = {
    "layers": ("num_hidden_layers", "n_layer", "num_layers", "n_layers", "encoder_layers"),
    "heads": (
        "num_attention_heads", "n_head", "num_heads", "n_heads", "attention_heads", "encoder_attention_heads",
    ),
    "kv_heads": (
        "num_key_value_heads", "num_kv_heads", "n_kv_heads", "n_kv_head", "n_query_groups", "num_query_groups",
        "multi_query_group_num",
    ),
    "head_dim": ("head_dim", "head_size", "kv_channels", "d_kv"),
    "width": ("hidden_size", "n_embd", "n_embed", "d_model", "dim"),
}  # fmt: skip

STATE = "state.json"
MOST_LAYERS = 10_000  # a larger number means a broken file
MOST_HEADS = 1_000_000  # or the dimension of one


@dataclass(frozen=True)
class Description:
    """The declared part of a model. `layers` is None where their number is unknown, an entry where its heads are."""

    declared: str = ""  # family: "norm=…" of our spec, else the model_type; empty where none is declared
    layers: list[Heads | None] | None = None
    step: int | None = None
    trace: dict[str, list[float]] = field(default_factory=dict)  # parameter → cos(−exp_avg, w) of the last steps
    config: dict[str, Any] = field(default_factory=dict)  # keys of a config.json (of its text model) or of our spec

    def heads(self, index: int) -> Heads | None:
        """The declared heads of a layer; None where they are not declared."""
        return self.layers[index] if self.layers is not None else _heads(self.config, index)

    def head_counts(self, index: int) -> tuple[int | None, int | None]:
        """The declared numbers of query heads and of key/value heads in a layer; None for one that is not declared."""
        return _value(self.config, "heads", index), _value(self.config, "kv_heads", index)


def describe(directory: Path, metadata: Mapping[str, Any] | None = None, source: Path | None = None) -> Description:
    """The description in `state.json` (ours), `config.json` (Hugging Face's) or what other projects write.

    `metadata`: what the file of weights says of itself; `source`: that file, where it is not the directory. Empty
    without any. Raises `UserError` for a file that describes no model.
    """
    metadata = metadata or {}
    if gguf.is_gguf(metadata):
        try:
            return describe_config(gguf.config(metadata))
        except (ValueError, TypeError, LookupError) as error:
            raise UserError(
                f"The GGUF file in {directory} does not describe a decoder ({error!r}): copy it again."
            ) from error
    if is_ours(directory):
        return _read(directory / STATE, json.loads, _from_state)
    if (path := directory / "config.json").is_file():
        return _read(path, json.loads, describe_config)
    if (found := projects.beside(source or directory)) and (described := _read(*found, describe_config)).config:
        return described
    return describe_config(projects.within(metadata))


def tower(description: Description, name: str) -> Description:
    """The description of the encoder of another modality beside a text model, called `name`; empty without one.

    Raises `UserError` where its part of the config describes no model.
    """
    sense = "audio_config" if re.search("audio|speech", name) else "vision_config"
    part = description.config.get(sense)
    if not isinstance(part, dict):
        return Description()
    declared = str(part.get("model_type") or "")
    is_own = not declared or "_vision" in declared or "_audio" in declared  # older files have the whole model's
    own = {  # Qwen2-VL's hidden_size is that of the text model
        "model_type": declared if is_own else f"{declared}_vision",
        "num_hidden_layers": part.get("num_hidden_layers", part.get("depth")),
        "hidden_size": part.get("embed_dim", part.get("hidden_size")),
    }
    try:
        return describe_config(part | own)
    except Exception as error:  # a broken description fails in any way there is
        raise UserError(f"The {sense} of the model does not describe one ({error!r}): correct it.") from error


def is_ours(directory: Path) -> bool:
    """True for one of our own checkpoints: others keep a `state.json` of their own, without a spec."""
    try:
        state = json.loads((directory / STATE).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError, RecursionError):  # ours, and broken: reading it says so
        return True
    return not (isinstance(state, dict) and state and "spec" not in state)


def _read(path: Path, parse: Callable[[str], Any], describe: Callable[[dict[str, Any]], Description]) -> Description:
    try:
        return describe(parse(path.read_text(encoding="utf-8")))
    except Exception as error:  # a broken description fails in any way there is
        raise UserError(f"{path} does not describe a decoder ({error!r}): copy it again.") from error


def _from_spec(spec: dict[str, Any], **others: Any) -> Description:
    layers = [Heads(int(layer["heads"]), int(layer["kv_heads"]), int(layer["head_dim"])) for layer in spec["layers"]]
    return Description(f"norm={spec['norm']}", list(layers), config=spec, **others)


def _from_state(state: dict[str, Any]) -> Description:
    trace = {name: [float(cos) for cos in steps] for name, steps in (state.get("trace") or {}).items()}
    return _from_spec(state["spec"], step=int(state["step"]), trace=trace)


def describe_config(config: dict[str, Any]) -> Description:
    """The description in the keys of a `config.json`. Raises any exception for values that describe no model."""
    if isinstance(config.get("spec"), dict):  # our decoder, saved as a transformers model
        return _from_spec(config["spec"])
    text = config.get("text_config")
    if isinstance(text, dict):  # a multimodal model: only its text model is read
        config = config | text
    declared = str(config.get("model_type") or "")
    if not declared.isprintable():  # an escape sequence would reach the terminal
        raise ValueError(f"model_type {declared!r}")
    count = _value(config, "layers", 0)
    if count is not None and count > MOST_LAYERS:
        raise ValueError(f"{count} layers")
    each = [_heads(config, index) for index in range(1 if count is None else count)]  # fails here on broken numbers
    layers = None if count is None else each
    return Description(declared, layers, config=config)


def _value(config: dict[str, Any], what: str, index: int) -> int | None:
    """A number of the config under any of its names in `KEYS`; a list holds one entry per layer."""
    value = next((config[key] for key in KEYS[what] if config.get(key) is not None), None)
    value = value[index] if isinstance(value, list) else value
    return None if value is None else int(value)


def _heads(config: dict[str, Any], index: int) -> Heads | None:
    if isinstance(differing := config.get("per_layer_config"), dict):  # Gemma 4's full attention is wider
        config = config | dict(differing.get(str(index)) or {})
    heads, width = _value(config, "heads", index), _value(config, "width", index)
    head_dim = _value(config, "head_dim", index)
    if head_dim is None and heads is not None and width is not None:
        head_dim = width // heads
    if heads is None or head_dim is None:
        return None
    if max(heads, head_dim) > MOST_HEADS:
        raise ValueError(f"{heads} heads of {head_dim}")
    if "multi_query" in config and not config.get("new_decoder_architecture"):  # Falcon-7b, StarCoder: it alone decides
        return Heads(heads, 1 if config["multi_query"] else heads, head_dim)
    kv_heads = _value(config, "kv_heads", index)
    return Heads(heads, heads if kv_heads is None else kv_heads, head_dim)
