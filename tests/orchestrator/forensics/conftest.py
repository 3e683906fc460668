"""A hand-written checkpoint in our format: every test decides its own shapes and plants its own anomalies."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

MATRICES = {
    "q": "self_attn.q_proj.weight",
    "k": "self_attn.k_proj.weight",
    "v": "self_attn.v_proj.weight",
    "o": "self_attn.o_proj.weight",
    "gate": "mlp.gate_proj.weight",
    "up": "mlp.up_proj.weight",
    "down": "mlp.down_proj.weight",
}


@dataclass
class Checkpoint:
    """Tensors by name; `write` puts them on disk."""

    path: Path
    spec: dict[str, Any]
    tensors: dict[str, np.ndarray]
    moments: dict[str, np.ndarray]
    step: int = 7
    trace: dict[str, list[float]] = field(default_factory=dict)

    def name(self, layer: int, kind: str) -> str:
        return f"model.layers.{layer}.{MATRICES[kind]}"

    def weight(self, layer: int, kind: str) -> np.ndarray:
        """The stored fp32 matrix in float64."""
        return self.tensors[self.name(layer, kind)].astype(np.float64)

    def folded(self, layer: int, kind: str) -> np.ndarray:
        """`weight` times the scale of the norm in front of it, if any."""
        if kind in ("o", "down"):
            return self.weight(layer, kind)
        ffn = "pre_feedforward_layernorm" if self.spec["norm"] == "sandwich" else "post_attention_layernorm"
        place = "input_layernorm" if kind in ("q", "k", "v") else ffn
        return self.weight(layer, kind) * self.tensors[f"model.layers.{layer}.{place}.weight"].astype(np.float64)

    def write(self, optimizer: bool = True) -> Path:
        self.path.mkdir(parents=True, exist_ok=True)
        save_file(self.tensors, self.path / "model.safetensors")
        if optimizer:
            save_file(self.moments, self.path / "optimizer.safetensors")
        state = {"schema": 1, "step": self.step, "spec": self.spec, "trace": self.trace}
        (self.path / "state.json").write_text(json.dumps(state))
        return self.path


@pytest.fixture
def checkpoint(tmp_path: Path) -> Callable[..., Checkpoint]:
    """Builds a random checkpoint; nothing is on disk before `.write()`."""

    def build(
        widths: tuple[int, ...] = (16, 16, 24),
        heads: int = 4,
        kv_heads: int = 2,
        head_dim: int = 6,
        ffn: int = 40,
        norm: str = "sandwich",
        seed: int = 0,
        path: Path = Path("checkpoint"),
    ) -> Checkpoint:
        rng = np.random.default_rng(seed)
        a, kv = heads * head_dim, kv_heads * head_dim
        tensors: dict[str, np.ndarray] = {
            "model.embed_tokens.weight": rng.normal(size=(32, max(widths[0], widths[-1]))),
            "model.norm.weight": np.ones(widths[-1]),
        }
        moments: dict[str, np.ndarray] = {}
        norms = ["input_layernorm", "post_attention_layernorm"]
        if norm == "sandwich":
            norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
        for layer, d in enumerate(widths):
            shapes = {
                "q": (a, d), "k": (kv, d), "v": (kv, d), "o": (d, a),
                "gate": (ffn, d), "up": (ffn, d), "down": (d, ffn),
            }  # fmt: skip
            for kind, shape in shapes.items():
                name = f"model.layers.{layer}.{MATRICES[kind]}"
                tensors[name] = rng.normal(size=shape) * rng.uniform(0.5, 2, size=(shape[0], 1))
                moments[f"{name}.exp_avg"] = rng.normal(size=shape) * 10.0 ** rng.uniform(-4, 0, size=shape)
                moments[f"{name}.exp_avg_sq"] = rng.uniform(size=shape) * 10.0 ** rng.uniform(-8, 0, size=shape)
            for place in norms:
                tensors[f"model.layers.{layer}.{place}.weight"] = rng.normal(1, 0.5, size=d)
        layer_shapes = [
            {"width": d, "heads": heads, "kv_heads": kv_heads, "head_dim": head_dim, "ffn": ffn} for d in widths
        ]
        spec = {"layers": layer_shapes, "vocab_size": 32, "norm": norm, "tie_embeddings": True}
        spec |= {"rope_theta": 10_000.0, "norm_eps": 1e-6}
        fp32 = {name: value.astype(np.float32) for name, value in tensors.items()}
        return Checkpoint(
            tmp_path / path, spec, fp32, {name: value.astype(np.float32) for name, value in moments.items()}
        )

    return build


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages of 100 columns, whatever terminal the tests are started from."""
    monkeypatch.setenv("COLUMNS", "100")
