"""A model from elsewhere as a decoder of ours: its spec, its weights, and the keys that describe it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from models.hf import from_huggingface, spec_of
from models.spec import DecoderSpec
from models.transformer import Decoder
from models.width import HEADS, build_spec
from orchestrator.common.errors import UserError
from orchestrator.common.formatting import counted
from orchestrator.config.schema import TokenizerKind
from orchestrator.forensics.architecture.description import is_ours
from orchestrator.forensics.measures.runner import configuration, place, runnable
from orchestrator.forensics.weights.hub import local
from orchestrator.forensics.weights.sources import whole
from orchestrator.interventions.export import new_directory, refuse_existing, tokenizer_of
from orchestrator.storage import checkpoint

CHOICE = "imported"


def located(source: str) -> Path:
    """The checkpoint of ours, the directory or the GGUF file that `source` names, as for any command."""
    return place(whole(local(source)))


def spec_at(path: Path) -> DecoderSpec:
    """The spec of the decoder that computes what the model at `path` does.

    Raises `UserError` where none of ours does.
    """
    try:
        if is_ours(path):
            return DecoderSpec.from_dict(checkpoint.read_state(path).get("spec", {}))
        return spec_of(configuration(path))
    except ValueError as error:
        raise UserError(
            f"{path} is no model that ours can be ({error}): give one of Llama's shape, or what we exported."
        ) from error


def decoder_at(path: Path) -> Decoder:
    """The decoder with the weights at `path`, in fp32. Raises `UserError` as `spec_at` does, and for broken files."""
    spec_at(path)
    model: Any = runnable(path, head=True)
    return model if isinstance(model, Decoder) else from_huggingface(model)


def misfit(wanted: DecoderSpec, found: DecoderSpec) -> str | None:
    """The first key that would have to change for `wanted` to be `found`, as `key: one against the other`."""
    return next((f"{key}: {one} against {other}" for key, one, other in _sizes(wanted, found) if one != other), None)


SIZES = {  # of a layer → the key that decides it
    "width": "model.width",
    "head_dim": "model.head_dim",
    "heads": "model.heads, their number",
    "kv_heads": "model.queries_per_kv, key/value heads",
    "ffn": "model.ffn_ratio, FFN positions",
}


def _sizes(wanted: DecoderSpec, found: DecoderSpec) -> Iterator[tuple[str, Any, Any]]:
    """Key → its value in both, the most telling first."""
    yield "model.layers", len(wanted.layers), len(found.layers)
    for name in ("vocab_size", "norm", "tie_embeddings", "rope_theta", "norm_eps"):
        yield f"model.{name}", getattr(wanted, name), getattr(found, name)
    for name, key in SIZES.items():
        one, other = ([getattr(shape, name) for shape in spec.layers] for spec in (wanted, found))
        same = len({*one}) == len({*other}) == 1
        yield key, one[0] if same else one, other[0] if same else other
    ends = [(spec.embed_width, spec.head_width) for spec in (wanted, found)]
    yield "width.widths, of embedding and head", ends[0], ends[1]


def keys_of(spec: DecoderSpec) -> dict[str, dict[str, Any]]:
    """The keys `model` and `width` that describe `spec`. Raises `ValueError` where none do."""
    widest = max(spec.layers, key=lambda shape: shape.width)
    widths = [shape.width for shape in spec.layers]
    least, most = (
        f((shape.ffn + half) / shape.width for shape in spec.layers) for f, half in ((max, -0.5), (min, 0.5))
    )
    is_uniform = len(set(widths)) == 1
    width: dict[str, Any] = {"profile": "uniform"} if is_uniform else {"profile": "explicit", "widths": widths}
    model: dict[str, Any] = {
        "layers": len(spec.layers),
        "width": spec.width,
        "head_dim": widest.head_dim,
        "queries_per_kv": widest.heads // widest.kv_heads,
        "ffn_ratio": (least + most) / 2,  # rounds to the FFN positions of every layer
        "vocab_size": spec.vocab_size,
        "norm": spec.norm,
        "tie_embeddings": spec.tie_embeddings,
        "rope_theta": spec.rope_theta,
        "norm_eps": spec.norm_eps,
    }
    for heads in HEADS:
        try:
            built = build_spec(**model, **width, heads=heads, seq_len=1)
        except ValueError:
            continue
        if built == spec:
            return {"model": model | {"heads": heads}, "width": width}
    raise ValueError(
        f"{widest.heads} heads of {widest.head_dim} at width {widest.width}, and {widest.ffn} FFN positions, "
        "are sizes that no keys of ours describe"
    )


def write_choice(source: Path, target: Path) -> str:
    """Make the directory `target` with a choice `model=imported` of the shape, weights and tokenizer at `source`.

    Returns the sentences that say how to start from it. Raises `UserError` for a model that ours cannot be.
    """
    refuse_existing(target)
    path = place(whole(source)).resolve()
    spec, tokenizer = spec_at(path), tokenizer_of(path)
    try:
        keys = keys_of(spec)
    except ValueError as error:
        raise UserError(f"{path} cannot be imported, since {error}: give one of Llama's shape.") from error
    chosen: dict[str, Any] = {"kind": "hf", "path": str(target.absolute() / "tokenizer")}
    if is_ours(path) and checkpoint.config_of(path).data.tokenizer.kind == TokenizerKind.byte:
        chosen = {"kind": "byte"}
    plain = {"model": keys["model"], "data": {"tokenizer": chosen}, "train": {"init_from": str(path)}}
    is_uniform = keys["width"]["profile"] == "uniform"
    with new_directory(target) as partial:
        if chosen["kind"] == "hf":
            tokenizer.save_pretrained(partial / "tokenizer")
        _write(partial / "model", f"# @package _global_\n# The shape, tokenizer and weights of {path}.\n", plain)
        if not is_uniform:
            _write(partial / "width", f"# The widths of {path}.\n", keys["width"])
    choices = f"model={CHOICE}" if is_uniform else f"model={CHOICE} width={CHOICE}"
    return (
        f"{target} describes {path}, {counted(len(spec.layers), 'layer')} of width {spec.width}. "
        f"To start from it:\n\n  python -m orchestrator --config-dir {target} {choices}"
    )


def _write(directory: Path, head: str, keys: dict[str, Any]) -> None:
    directory.mkdir()
    (directory / f"{CHOICE}.yaml").write_text(head + yaml.safe_dump(keys, sort_keys=False), encoding="utf-8")
