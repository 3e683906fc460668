"""Estimate the peak memory of a training step by counting tensors."""

from __future__ import annotations

from models.spec import NORMS, DecoderSpec, LayerShape, body_params, matmul_params, num_params
from orchestrator.config.schema import Config, Precision

FP32, BF16 = 4, 2  # bytes


def peak(config: Config, spec: DecoderSpec, traces: int, *, on_gpu: bool) -> float:
    """Return the bytes of one rank: fp32 weights, gradients, both moments, the sidecar's `traces` (entries), and the
    larger of a micro-batch's activations and the update's temporaries.

    Several ranks share all of these, but each gathers the whole layer that it computes. The allocator's fragmentation
    and CUDA itself (about 1 GB) are not counted.
    """
    ranks = config.launcher.ranks
    train = config.train
    half = train.precision == Precision.bf16 or (train.precision == Precision.auto and on_gpu)
    tokens = (train.micro_batch_size or train.batch_size) * train.seq_len / ranks
    params = num_params(spec)
    standing = FP32 * (4 * params + traces) / ranks
    gathered = FP32 * (params - body_params(spec) + max(map(matmul_params, spec.layers))) if ranks > 1 else 0
    # the last term: Adam's foreach keeps one more list of tensors
    return standing + max(gathered + activations(spec, tokens, half=half), FP32 * params / ranks)


def activations(spec: DecoderSpec, tokens: float, *, half: bool) -> float:
    """Return the bytes that the forward pass of `tokens` keeps for its backward pass, with the loss's own gradient.

    With `half` (bf16 autocast) it also keeps a bf16 copy of every matrix. At the peak it keeps the log-softmax of the
    logits and its gradient in fp32, and with `half` one bf16 copy.
    """
    kept = sum(_of_layer(shape, NORMS[spec.norm], half=half) for shape in spec.layers)
    kept += FP32 * 3 * spec.width + spec.vocab_size * (2 * FP32 + BF16 * half)
    copies = sum(matmul_params(shape) for shape in spec.layers) + spec.vocab_size * spec.head_width
    return float(tokens * kept + BF16 * half * copies)


def _of_layer(shape: LayerShape, norms: int, *, half: bool) -> int:
    """Return a block's bytes per token: the FFN's four products; q, k, v, their mix; inputs of norms and matrices."""
    inner = 4 * shape.ffn + 2 * shape.head_dim * (shape.heads + shape.kv_heads)
    scales = norms + shape.heads  # 1/rms of every norm, log-sum-exp of every head
    if half:  # the residual stream and the norms' outputs stay fp32; five matrices each keep a bf16 input
        return BF16 * (inner + 5 * shape.width) + FP32 * (2 * norms * shape.width + scales)
    return FP32 * (inner + (2 * norms + 2) * shape.width + scales)
