"""Descriptions that projects other than transformers write beside their weights, or into the same file."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

Config = dict[str, Any]  # the keys of a config.json


def litgpt(text: str) -> Config:
    """LitGPT's `model_config.yaml`, or the `lit_config.json` before it (YAML reads both)."""
    config = dict(yaml.safe_load(text))
    return config | {"model_type": "litgpt", "is_shifted": "gemma" in str(config.get("name")).lower()}


def nanochat(text: str) -> Config:
    """nanochat's `meta_<step>.json`."""
    return dict(json.loads(text)["model_config"])


def meta(text: str) -> Config:
    """Meta's and Mistral's `params.json`; empty for another project's of that name."""
    config = dict(json.loads(text))
    return config if {"dim", "n_heads"} <= set(config) else {}


# Name of the file → its reader, for descriptions other than `config.json`; the first that is there is taken.
FILES: dict[str, Callable[[str], Config]] = {
    "model_config.yaml": litgpt,
    "lit_config.json": litgpt,
    "params.json": meta,
}
NUMBERED = re.compile(r"model_(\d+)\.pt")  # nanochat's weights; `meta_` with the same number describes them
WITHIN = ("model_args", "model_config", "hyper_parameters", "config")  # of a torch.save'd file: nanoGPT's, and others'


def beside(source: Path) -> tuple[Path, Callable[[str], Config]] | None:
    """The description of the weights in a file or directory, and its reader; None without one."""
    directory = source if source.is_dir() else source.parent
    weights = [source] if source.is_file() else sorted(directory.glob("model_*.pt"))
    for match in filter(None, (NUMBERED.fullmatch(path.name) for path in weights)):
        if (path := directory / f"meta_{match[1]}.json").is_file():
            return path, nanochat
    return next(((directory / name, read) for name, read in FILES.items() if (directory / name).is_file()), None)


def within(contents: Mapping[str, Any]) -> Config:
    """The description in the same file as the weights; empty without one."""
    found = (contents[key] for key in WITHIN if isinstance(contents.get(key), Mapping))
    return next((dict(config) for config in found if {"n_head", "n_heads", "num_attention_heads"} & set(config)), {})
