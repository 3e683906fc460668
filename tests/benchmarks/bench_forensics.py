"""Speed and memory of the forensics, as ratios measured in one run: `make bench`. Asserts nothing."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command does; for both

import contextlib
import io
import json
import logging
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import weightwatcher
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM
from weightwatcher.RMT_Util import svd_vals

from orchestrator.forensics.analyzer import analyze
from orchestrator.forensics.architecture.model import CheckpointModel
from orchestrator.forensics.measures.spectrum import perplexity, spectra

THREADS = 2
LLAMA = {  # the paper's layer, six times: 106M parameters in the body
    "hidden_size": 1168, "intermediate_size": 3504, "num_hidden_layers": 6, "num_attention_heads": 8,
    "num_key_value_heads": 8, "head_dim": 146, "vocab_size": 1024,
}  # fmt: skip
PEAK = """
import sys, torch
torch.set_num_threads(2)
from pathlib import Path
from orchestrator.forensics.analyzer import analyze
analyze(sys.argv[1])
status = Path("/proc/self/status").read_text()
print(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))
"""


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def quietly(work: Callable[[], object]) -> None:
    """A call whose prints and logs nobody needs."""
    logging.disable(logging.WARNING)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        work()
    logging.disable(logging.NOTSET)


def against_weightwatcher(directory: Path) -> None:
    """Complete weights-only classification from the file, and spectra alone, beside WeightWatcher's."""
    model = LlamaForCausalLM(LlamaConfig(**LLAMA))
    model.save_pretrained(directory)
    body = sum(p.numel() for p in model.model.layers.parameters())
    ours = statistics.median(seconds(lambda: analyze(directory)) for _ in range(3))
    rival = seconds(lambda: quietly(lambda: weightwatcher.WeightWatcher(model=model.model.layers).analyze()))
    print(f"Llama, {body / 1e6:.0f}M parameters in {LLAMA['num_hidden_layers']} layers, {THREADS} threads")
    print(f"  classification   {rival / ours:6.1f}x  (WeightWatcher.analyze {rival:.1f} s, ours {ours:.2f} s)")

    weights = {
        f"{layer.index}.{kind}": layer.weight(kind) for layer in CheckpointModel(directory) for kind in layer.kinds
    }
    for dtype, name in ((torch.float64, "its precision"), (torch.float32, "in float32")):
        rivals = [w.to(dtype).numpy() for w in weights.values()]
        ratios = []
        for _ in range(3):
            fast = seconds(lambda: [spectra({name: w}, {}) for name, w in weights.items()])
            slow = seconds(lambda rivals=rivals: [svd_vals(w) for w in rivals])  # type: ignore[misc]
            ratios.append(slow / fast)
        told = f"{min(ratios):.1f} ... {max(ratios):.1f}; ours {fast:.2f} s"
        print(f"  spectra          {statistics.median(ratios):6.1f}x  ({told}; its svd_vals {name})")
    ranks = []
    for w in list(weights.values())[:7]:
        ours_and_exact = (spectra({"w": w}, {})["w"], torch.linalg.svdvals(w.double()).numpy())
        ranks.append([perplexity(values) or 0.0 for values in ours_and_exact])
    print(f"  largest error of an effective rank: {max(abs(a / b - 1) for a, b in ranks):.1e}")


def llama_shaped(directory: Path, layers: int, width: int, ffn: int, heads: int, vocab: int) -> tuple[int, int]:
    """A random checkpoint in shards of one layer, never whole in memory. Returns (parameters, bytes of a layer)."""
    config = LlamaConfig(
        hidden_size=width, intermediate_size=ffn, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=heads, head_dim=width // heads, vocab_size=vocab, tie_word_embeddings=False,
    )  # fmt: skip
    directory.mkdir()
    config.save_pretrained(directory)
    shapes = {f"self_attn.{k}_proj": (width, width) for k in "qkvo"}
    shapes |= {"mlp.gate_proj": (ffn, width), "mlp.up_proj": (ffn, width), "mlp.down_proj": (width, ffn)}
    index, total = {}, 0
    for layer in range(-1, layers):
        prefix = "model." if layer < 0 else f"model.layers.{layer}."
        tensors = {} if layer < 0 else {prefix + n + ".weight": torch.randn(s) / s[1] ** 0.5 for n, s in shapes.items()}
        norms = ["norm"] if layer < 0 else ["input_layernorm", "post_attention_layernorm"]
        tensors |= {prefix + name + ".weight": torch.ones(width) for name in norms}
        if layer < 0:
            for name in ("model.embed_tokens.weight", "lm_head.weight"):
                tensors[name] = torch.randn(vocab, width) / width**0.5
        shard = f"model-{layer + 1:05d}.safetensors"
        save_file({name: tensor.bfloat16() for name, tensor in tensors.items()}, directory / shard)
        index |= dict.fromkeys(tensors, shard)
        total += sum(tensor.numel() for tensor in tensors.values())
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return total, 4 * sum(m * n for m, n in shapes.values())


def peak(name: str, directory: Path, **shape: Any) -> None:
    """Time, and peak memory in a process of its own, beside the promise: 1.5 layers in fp32 and 300 MB."""
    parameters, layer = llama_shaped(directory, **shape)
    started = time.perf_counter()
    out = subprocess.run([sys.executable, "-c", PEAK, str(directory)], check=True, capture_output=True, text=True)
    took = time.perf_counter() - started
    memory, promise = int(out.stdout) / 1024, 1.5 * layer / 2**20 + 300
    print(f"{name}: {parameters / 1e6:.0f}M parameters in {shape['layers']} layers of {layer / 2**20:.0f} MB (fp32)")
    share = f"{memory / promise:.2f} of the promised {promise:.0f} MB"
    print(f"  {took:.1f} s with start-up; peak {memory:.0f} MB = {share}")


def main() -> None:
    """Print the table."""
    torch.set_num_threads(THREADS)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        peak("24 layers", root / "deep", layers=24, width=1088, ffn=3264, heads=17, vocab=50304)
        peak("large", root / "large", layers=16, width=2048, ffn=8192, heads=32, vocab=32000)
        against_weightwatcher(root / "llama")


if __name__ == "__main__":
    main()
