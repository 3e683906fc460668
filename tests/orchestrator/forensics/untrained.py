"""Models as they are before training, on disk: what the calibration and the planted structures start from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from models.spec import DecoderSpec
from models.transformer import Decoder, init_weights
from models.width import build_spec


def spec(layers: int = 11, profile: str = "uniform", **options: Any) -> DecoderSpec:
    """The paper's proportions at width 64: FFN 3 × width, and for `ramp` 0.75 to 1.25 of it."""
    common: dict[str, Any] = {
        "width": 64, "head_dim": 16, "vocab_size": 256, "norm": "sandwich", "tie_embeddings": False, "seq_len": 128,
    }  # fmt: skip
    return build_spec(layers=layers, profile=profile, start=0.75, end=1.25, match="none", **common | options)


def model(of: DecoderSpec, seed: int) -> Decoder:
    """The model as `init_weights` leaves it."""
    decoder = Decoder(of)
    init_weights(decoder, seed)
    return decoder


def write(decoder: Decoder, directory: Path) -> Path:
    """A checkpoint in our format, without moments."""
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().contiguous() for name, tensor in decoder.named_parameters()}
    save_file(tensors, directory / "model.safetensors")
    (directory / "state.json").write_text(json.dumps({"schema": 1, "step": 0, "spec": decoder.spec.to_dict()}))
    return directory
