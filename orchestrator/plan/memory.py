"""Estimate the peak memory of a training step, and of interventions, by counting tensors."""

from __future__ import annotations

from models.attention import SHORT, blocks
from models.head_loss import chunk
from models.spec import NORMS, DecoderSpec, LayerShape, body_params, matmul_params, num_params
from orchestrator.config.schema import Config, Decay, Precision
from orchestrator.experiments.forks import has_forks
from orchestrator.interventions.documents import AT_ONCE

FP32, BF16 = 4, 2  # bytes


def peak(config: Config, spec: DecoderSpec, traces: int, *, on_gpu: bool) -> float:
    """Return the bytes of one rank: fp32 weights, both moments, cautious decay's copy, the sidecar's `traces`
    (entries), and the larger of all gradients and what a pass holds, activations and the loss. With several
    micro-batches a pass finds gradients there.

    Several ranks share all of these, but each gathers the whole layer that it computes. The allocator's fragmentation
    and CUDA itself (about 1 GB) are not counted. With `train.compile` activations are fewer, some 0.6 of those in bf16.
    """
    ranks = config.launcher.ranks
    train = config.train
    half = train.precision == Precision.bf16 or (train.precision == Precision.auto and on_gpu)
    rows = train.micro_batch_size or train.batch_size
    tokens = rows * train.seq_len / ranks
    params = num_params(spec)
    gathered = FP32 * (params - body_params(spec) + max(map(matmul_params, spec.layers))) if ranks > 1 else 0
    passing = (
        gathered + activations(spec, tokens, train.seq_len, half=half, on_gpu=on_gpu) + loss(spec, tokens, half=half)
    )
    gradients = FP32 * params / ranks
    copies = params if config.optim.decay == Decay.cautious else 0  # of the weights before the step
    aside = 4 * params if has_forks(config) else 0  # weights, moments and gradients of the run while it is forked
    standing = FP32 * (3 * params + copies + traces + aside) / ranks
    return standing + (passing + gradients if rows < train.batch_size else max(passing, gradients))


def activations(spec: DecoderSpec, tokens: float, seq_len: int, *, half: bool, on_gpu: bool) -> float:
    """Return the bytes that the layers and the final norm keep of `tokens` for their backward pass.

    With `half` (bf16 autocast) they also keep a bf16 copy of every matrix.
    """
    short = not (half or on_gpu) and seq_len <= SHORT  # then attention is our own
    norms = NORMS[spec.norm]
    kept = sum(_of_layer(shape, norms, seq_len, half=half, short=short, on_gpu=on_gpu) for shape in spec.layers)
    kept += FP32 * (spec.head_width + 1) + 2 * 8  # the final norm, and the tokens as int64, read and predicted
    copies = BF16 * half * sum(matmul_params(shape) for shape in spec.layers)
    copies += FP32 * short * sum(shape.width * _projected(shape) for shape in spec.layers)
    return float(tokens * kept + copies)


def loss(spec: DecoderSpec, tokens: float, *, half: bool) -> float:
    """Return the bytes that the head and its loss hold at their peak.

    At once: what the head reads, the log-softmax in fp32 and its gradient, and with `half` bf16 copies of table and
    logits. In chunks: the gradients of table and hidden states, and one chunk's logits, log-softmax and slopes.
    """
    vocab, width = spec.vocab_size, spec.head_width
    size = BF16 if half else FP32
    copies = BF16 * half * vocab * width + tokens * size * width
    rows = chunk(int(tokens), vocab, width)
    if rows is None:
        return copies + tokens * vocab * (2 * FP32 + BF16 * half)
    return copies + FP32 * vocab * width + rows * vocab * (FP32 + 2 * BF16 if half else 2 * FP32 + 1)


def intervening(spec: DecoderSpec, length: int) -> float:
    """Return the bytes that the interventions on one checkpoint hold, which the CPU makes on rows of `length` tokens.

    The model in fp32; of one batch the stream before and after every layer, the logits of the intact and of an edited
    pass, and what the largest layer computes.
    """
    tokens = length * max(1, AT_ONCE // length)
    streams = 2 * len(spec.layers) * spec.width
    largest = max(
        _of_layer(shape, NORMS[spec.norm], length, half=False, short=length <= SHORT, on_gpu=False)
        for shape in spec.layers
    )
    return FP32 * (num_params(spec) + tokens * (streams + 2 * spec.vocab_size)) + tokens * largest


def _of_layer(shape: LayerShape, norms: int, seq_len: int, *, half: bool, short: bool, on_gpu: bool) -> float:
    """Return a block's bytes per token: what norms, attention and the FFN's four products keep, and matrices read."""
    width, inner = shape.width, 4.0 * shape.ffn
    if short:  # the softmax's weights, block by block; q, k and v, the latter two once for each query head
        shares = sum((end - start) * end for start, end in blocks(seq_len))
        shared = shape.attention_width if shape.kv_heads < shape.heads else 0
        turned = _projected(shape) - shape.kv_heads * shape.head_dim
        inner += turned + shared + 2 * shape.attention_width + shape.heads * shares / seq_len
        return FP32 * (inner + norms * (width + 1) + 2 * width)
    inner += shape.attention_width + _projected(shape)
    scales = norms + shape.heads  # 1/rms of every norm, log-sum-exp of every head
    if half:  # norms keep fp32, a CPU's those behind a branch twice; five matrices each keep a bf16 input
        kept = norms + (0 if on_gpu else norms - NORMS["pre"])
        return BF16 * (inner + 5 * width) + FP32 * (kept * width + scales)
    return FP32 * (inner + (norms + 2) * width + scales)


def _projected(shape: LayerShape) -> int:
    """Return the rows of the query, key and value matrices."""
    return shape.head_dim * (shape.heads + 2 * shape.kv_heads)
