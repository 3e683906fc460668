"""A Llama-style decoder whose layers each have their own shape.

The residual stream is as wide as the widest layer. A layer reads and writes its first `width` coordinates and leaves
the others as they are (SCIENCE §7). Parameters have the Llama family's names, so that the usual tools read checkpoints.
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .attention import Attention, Rope, rope_tables
from .head_loss import head_loss, softmax_gradient
from .norm import RMSNorm
from .spec import DecoderSpec, LayerShape


def read_prefix(x: Tensor, width: int) -> Tensor:
    """The first `width` coordinates of x's last axis; x itself where that is all of it."""
    return x if x.shape[-1] == width else x[..., :width]


def write_prefix(x: Tensor, prefix: Tensor) -> Tensor:
    """x with its first coordinates replaced by `prefix`."""
    width = prefix.shape[-1]
    return prefix if x.shape[-1] == width else torch.cat((prefix, x[..., width:]), dim=-1)


class SwiGLU(nn.Module):
    """down(silu(gate·x) ⊙ up·x) (Shazeer 2020)."""

    def __init__(self, shape: LayerShape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.width, shape.ffn, bias=False)
        self.up_proj = nn.Linear(shape.width, shape.ffn, bias=False)
        self.down_proj = nn.Linear(shape.ffn, shape.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:  # [B, T, width] → [B, T, width]
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class PreNormBlock(nn.Module):
    """Attention, then FFN, each added to what it read; an RMSNorm before each (Llama's block and names)."""

    def __init__(self, shape: LayerShape, eps: float) -> None:
        super().__init__()
        self.width = shape.width
        self.self_attn = Attention(shape)
        self.mlp = SwiGLU(shape)
        self.input_layernorm = RMSNorm(shape.width, eps)
        self.post_attention_layernorm = RMSNorm(shape.width, eps)

    def attention_branch(self, h: Tensor, rope: Rope) -> Tensor:
        return self.self_attn(self.input_layernorm(h), rope)

    def ffn_branch(self, h: Tensor) -> Tensor:
        return self.mlp(self.post_attention_layernorm(h))

    def forward(self, x: Tensor, rope: Rope) -> Tensor:  # [B, T, stream] → [B, T, stream]
        h = read_prefix(x, self.width)
        h = h + self.attention_branch(h, rope)
        h = h + self.ffn_branch(h)
        return write_prefix(x, h)


class SandwichBlock(PreNormBlock):
    """An RMSNorm before and after each branch (Gemma 2's block and names)."""

    def __init__(self, shape: LayerShape, eps: float) -> None:
        super().__init__(shape, eps)
        self.pre_feedforward_layernorm = RMSNorm(shape.width, eps)
        self.post_feedforward_layernorm = RMSNorm(shape.width, eps)

    def attention_branch(self, h: Tensor, rope: Rope) -> Tensor:
        return self.post_attention_layernorm(self.self_attn(self.input_layernorm(h), rope))

    def ffn_branch(self, h: Tensor) -> Tensor:
        return self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(h)))


BLOCKS: dict[str, type[PreNormBlock]] = {"pre": PreNormBlock, "sandwich": SandwichBlock}


class Body(nn.Module):
    """Embedding, layers and final norm: tokens [B, T] → hidden states [B, T, head_width]."""

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        self.spec = spec
        # uniform as nn.Linear's weights: on `meta`, a normal draw loads torch's compiler or sympy
        table = torch.empty(spec.vocab_size, spec.table_width).uniform_(-1.0, 1.0)
        self.embed_tokens = nn.Embedding.from_pretrained(table, freeze=False)
        self.layers = nn.ModuleList(BLOCKS[spec.norm](shape, spec.norm_eps) for shape in spec.layers)
        self.norm = RMSNorm(spec.head_width, spec.norm_eps)
        self._ropes: dict[tuple[int, torch.device], Rope] = {}

    def rope(self, seq_len: int, head_dim: int, device: torch.device) -> Rope:
        """The first `seq_len` rows of the RoPE tables, of which it keeps the longest pair so far."""
        if torch.compiler.is_compiling():  # the tables become part of the compiled graph
            return rope_tables(seq_len, head_dim, self.spec.rope_theta, device)
        kept = self._ropes.get((head_dim, device))
        if kept is None or kept[0].shape[1] < seq_len:
            with torch.inference_mode(False):  # autograd cannot save tensors made in inference mode
                kept = rope_tables(seq_len, head_dim, self.spec.rope_theta, device)
            self._ropes[head_dim, device] = kept
        return kept[0][:, :seq_len], kept[1][:, :seq_len]

    def forward(self, tokens: Tensor) -> Tensor:
        seq_len, spec = tokens.shape[1], self.spec
        ropes = {dim: self.rope(seq_len, dim, tokens.device) for dim in {s.head_dim for s in spec.layers}}
        x = read_prefix(self.embed_tokens(tokens), spec.embed_width) * spec.embed_scale
        if spec.embed_width < spec.width:
            x = F.pad(x, (0, spec.width - spec.embed_width))  # coordinates that no layer has written are 0
        for shape, layer in zip(spec.layers, self.layers, strict=True):
            x = layer(x, ropes[shape.head_dim])
        return self.norm(read_prefix(x, spec.head_width))


def head_table(body: Body, head: nn.Embedding | nn.Linear) -> Tensor:
    """The rows [V, head_width] that the head reads: a prefix of its table."""
    return read_prefix(head.weight, body.spec.head_width)


def next_token_logits(body: Body, head: nn.Embedding | nn.Linear, tokens: Tensor) -> Tensor:
    """Logits [B, T, V] of the token after each of `tokens` [B, T]."""
    return F.linear(body(tokens), head_table(body, head))


class Decoder(nn.Module):
    """The language model that `spec` describes, with uniform random weights until `init_weights`."""

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        self.spec = spec
        self.model = Body(spec)
        if not spec.tie_embeddings:
            self.lm_head = nn.Linear(spec.head_width, spec.vocab_size, bias=False)
        self.softmax = softmax_gradient

    def compile_layers(self, *, fullgraph: bool = True) -> None:
        """Compile every layer, and the softmax of a head whose loss is computed in chunks.

        Layers of one shape share a graph: the time goes with the number of shapes, not of layers. An error says where a
        layer is not one graph, unless `fullgraph` is False, as the hooks of FSDP need.
        """
        options: dict[str, Any] = {"dynamic": False, "recompile_limit": 2 * len(self.model.layers)}
        for layer in self.model.layers:
            layer.compile(fullgraph=fullgraph, **options)
        self.softmax = torch.compile(softmax_gradient, fullgraph=True, **options)

    def forward(self, tokens: Tensor, targets: Tensor | None = None, reduction: str = "mean") -> Tensor:
        """Logits [B, T, V] of the token after each of `tokens` [B, T]; with `targets` [B, T] their cross-entropy."""
        head = self.model.embed_tokens if self.spec.tie_embeddings else self.lm_head
        if targets is None:
            return next_token_logits(self.model, head, tokens)
        return head_loss(self.model(tokens), head_table(self.model, head), targets, reduction, self.softmax)

    def loss(self, rows: Tensor, reduction: str = "mean") -> Tensor:
        """Next-token cross-entropy of `rows` [B, T+1] in nats: its mean, or [B, T] with reduction="none"."""
        return self(rows[:, :-1], rows[:, 1:], reduction)  # called, so that hooks see the whole pass


def seed_of(seed: int, *names: str) -> int:
    """A 63-bit seed for the random stream `names` of run `seed`, equal on every machine."""
    digest = hashlib.sha256("/".join((str(seed), *names)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def init_std(name: str, weight: Tensor, layers: int) -> float:
    """Standard deviation of a matrix at initialisation: 1/√fan_in (SCIENCE §7), less for two kinds.

    Matrices that write into the residual stream are divided by √(2·layers), the number of writes (GPT-2). Embedding and
    head are halved: logits then start with a standard deviation of ½ at most, and the loss within ⅛ of ln V.
    """
    residual = (2 * layers) ** -0.5
    factors = {"o_proj": residual, "down_proj": residual, "embed_tokens": 0.5, "lm_head": 0.5}
    return factors.get(name.split(".")[-2], 1.0) * weight.shape[1] ** -0.5


@torch.no_grad()
def init_weights(model: Decoder, seed: int, stream: int = 0) -> None:
    """Draw every parameter from its own stream (see `init_std`); norm scales γ become 1.

    A stream depends only on the seed, `stream` and the parameter's name, so that adding or reshaping one parameter
    leaves the draws of the others unchanged. Draws are made on the CPU and are equal for every device.
    """
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            parameter.fill_(1.0)
            continue
        names = ("init", name) if stream == 0 else ("init", str(stream), name)
        generator = torch.Generator().manual_seed(seed_of(seed, *names))
        std = init_std(name, parameter, len(model.spec.layers))
        parameter.copy_(torch.empty(parameter.shape).normal_(0.0, std, generator=generator))
