"""Benchmark this machine: the time to save and to read checkpoints of one and of two layers, and to run a layer."""

from __future__ import annotations

import math
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from models.spec import DecoderSpec, LayerShape, forward_flops_per_token, matmul_params
from models.transformer import Decoder, init_weights
from orchestrator.config.schema import Config
from orchestrator.forensics.analyzer import analyze
from orchestrator.forensics.reading import Reading
from orchestrator.storage import checkpoint

LARGEST = 9e6  # most entries of a layer; a larger one is scaled down
VOCAB = 64  # rows of the embedding
AT_ONCE, REPEATS = 512, 4  # tokens of a forward pass, as in `interventions.intervene`; passes
SMALLEST = LayerShape(width=16, heads=2, kv_heads=2, head_dim=8, ffn=32)  # read first, untimed, to load libraries
# Seconds of a layer ∝ entries^1.1: passes over the entries are linear, Gram matrices and spectra go as entries^1.5.
# Measured: 0.75 from width 256 to 1168, 1.0 from 657 to 1168.
EXPONENT = 1.1


@dataclass(frozen=True)
class Benchmark:
    """The time to save and to read a layer of this shape."""

    shape: LayerShape
    first: float  # core-seconds of reading one layer
    further: float  # of every further layer
    write_rate: float  # bytes/s of saving a checkpoint, with digests and fsync
    reading: Reading  # of one layer
    forward: float  # FLOP/s of passes without gradients, with the threads of one cell

    def seconds_of(self, spec: DecoderSpec) -> float:
        """Return the core-seconds of one reading of a model, without embedding and head."""
        own = matmul_params(self.shape)
        layers = [(matmul_params(shape) / own) ** EXPONENT for shape in spec.layers]
        return self.first * layers[0] + self.further * sum(layers[1:])

    def reading_of(self, spec: DecoderSpec) -> Reading:
        """Return the benchmark's reading with the depth of `spec`; only its size is meaningful."""
        (layer,) = self.reading.layers
        return replace(self.reading, layers=[replace(layer, layer=index) for index in range(len(spec.layers))])


def run_benchmark(config: Config, spec: DecoderSpec) -> Benchmark:
    """Save and read layers like the first of `spec` in a temporary directory, with the threads of one cell."""
    shape, threads = _scaled_down(spec.layers[0]), torch.get_num_threads()
    torch.set_num_threads(config.train.threads)
    try:
        _save_and_read(config, replace(spec, layers=(SMALLEST,)))
        first, write_rate, reading = _save_and_read(config, replace(spec, layers=(shape,)))
        both, _, _ = _save_and_read(config, replace(spec, layers=(shape, shape)))
        forward = _forward(config, replace(spec, layers=(shape,)))
    finally:
        torch.set_num_threads(threads)
    return Benchmark(shape, first, max(0.0, both - first), write_rate, reading, forward)


def _save_and_read(config: Config, spec: DecoderSpec) -> tuple[float, float, Reading]:
    """Return the core-seconds to read a random model's second checkpoint, the bytes/s to save it, and the reading."""
    model = Decoder(replace(spec, vocab_size=VOCAB, tie_embeddings=True))
    init_weights(model, 0)
    weights: dict[str, torch.Tensor] = {name: p.detach() for name, p in model.named_parameters()}
    moments = {f"{name}.exp_avg": weight * 1e-3 for name, weight in weights.items()}
    moments |= {f"{name}.exp_avg_sq": weight.square() for name, weight in weights.items()}
    traced = {name: [0.1] * config.forensics.trace_steps for name, weight in weights.items() if weight.ndim >= 2}
    state = {"spec": model.spec.to_dict(), "optim": {"beta1": config.optim.beta1, "beta2": config.optim.beta2}}
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        checkpoint.save(directory, 0, {"model": weights}, {**state, "step": 0, "trace": {}})
        started = time.perf_counter()
        tensors = {"model": weights, "optimizer": moments}
        path = checkpoint.save(directory, 1, tensors, {**state, "step": 1, "trace": traced})
        rate = sum(file.stat().st_size for file in path.iterdir()) / (time.perf_counter() - started)
        started = time.process_time()  # other processes do not count
        reading = analyze(path, scoring=config.forensics.scoring.value, resamples=config.forensics.resamples)
        return time.process_time() - started, rate, reading


@torch.inference_mode()
def _forward(config: Config, spec: DecoderSpec) -> float:
    """Return the FLOP/s of forward passes as interventions make them: on the CPU, a few rows at once."""
    length = config.train.seq_len
    model = Decoder(replace(spec, vocab_size=VOCAB)).eval()
    init_weights(model, 0)
    rows = torch.randint(VOCAB, (max(1, AT_ONCE // length), length))
    fastest = math.inf  # other processes interfere
    for _ in range(REPEATS):
        started = time.process_time()
        model(rows)
        fastest = min(fastest, time.process_time() - started)
    return forward_flops_per_token(model.spec, length) * rows.numel() * config.train.threads / fastest


def _scaled_down(shape: LayerShape) -> LayerShape:
    """Scale the layer down to at most `LARGEST` entries."""
    while matmul_params(shape) > LARGEST:
        kv = max(1, shape.kv_heads * 3 // 4)
        heads = kv * (shape.heads // shape.kv_heads)
        shape = LayerShape(shape.width * 3 // 4, heads, kv, shape.head_dim, shape.ffn * 3 // 4)
    return shape
