"""The peak memory of a training step, estimated by counting tensors."""

from __future__ import annotations

from models.spec import NORMS, DecoderSpec, LayerShape, body_params, matmul_params, num_params
from orchestrator.config.schema import Config, Precision

FP32, BF16 = 4, 2  # bytes


def peak(config: Config, spec: DecoderSpec, traces: int, *, on_gpu: bool) -> float:
    """Bytes of one rank: fp32 weights, gradients, both moments, the sidecar's `traces` (entries), and the larger of the
    activations of a micro-batch and the temporaries of the update.

    Several ranks share all of these; each gathers the whole layer that it computes. Fragmentation of the allocator and
    CUDA itself (about 1 GB) come on top.
    """
    ranks = config.launcher.ranks
    train = config.train
    half = train.precision == Precision.bf16 or (train.precision == Precision.auto and on_gpu)
    tokens = (train.micro_batch_size or train.batch_size) * train.seq_len / ranks
    params = num_params(spec)
    standing = FP32 * (4 * params + traces) / ranks
    gathered = FP32 * (params - body_params(spec) + max(map(matmul_params, spec.layers))) if ranks > 1 else 0
    # Adam's foreach: one more list
    return standing + max(gathered + activations(spec, tokens, half=half), FP32 * params / ranks)


def activations(spec: DecoderSpec, tokens: float, *, half: bool) -> float:
    """Bytes that the forward pass of `tokens` keeps for its backward pass, the loss's own gradient included.

    `half`: under bf16 autocast, which also keeps a bf16 copy of every matrix. At the peak the log-softmax of the logits
    and its gradient are kept in fp32, and under autocast one bf16 copy.
    """
    kept = sum(_of_layer(shape, NORMS[spec.norm], half=half) for shape in spec.layers)
    kept += FP32 * 3 * spec.width + spec.vocab_size * (2 * FP32 + BF16 * half)
    copies = sum(matmul_params(shape) for shape in spec.layers) + spec.vocab_size * spec.head_width
    return float(tokens * kept + BF16 * half * copies)


def _of_layer(shape: LayerShape, norms: int, *, half: bool) -> int:
    """Bytes per token of one block: the FFN's four products; q, k, v, their mixture; inputs of norms and matrices."""
    inner = 4 * shape.ffn + 2 * shape.head_dim * (shape.heads + shape.kv_heads)
    scales = norms + shape.heads  # 1/rms of every norm, log-sum-exp of every head
    if half:  # the residual stream and the norms' outputs stay fp32; five matrices each keep a bf16 input
        return BF16 * (inner + 5 * shape.width) + FP32 * (2 * norms * shape.width + scales)
    return FP32 * (inner + (2 * norms + 2) * shape.width + scales)
