"""The spec of a decoder, the shape of each of its layers, and their cost in parameters and FLOPs."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

NORMS = {"pre": 2, "sandwich": 4}  # placement → RMSNorms per layer


@dataclass(frozen=True)
class LayerShape:
    """The sizes of one layer. Raises `ValueError` for sizes that no layer can have."""

    width: int  # residual coordinates it reads and writes
    heads: int  # query heads
    kv_heads: int  # key/value heads, each shared by heads/kv_heads query heads
    head_dim: int
    ffn: int  # hidden positions of the feed-forward network

    def __post_init__(self) -> None:
        for field in fields(self):
            size = getattr(self, field.name)
            if isinstance(size, bool) or not isinstance(size, int) or size < 1:
                raise ValueError(f"{field.name}={size!r} is not a positive integer, as every size of a layer must be.")
        if self.head_dim % 2:
            raise ValueError(
                f"head_dim={self.head_dim} is odd, and RoPE rotates pairs of coordinates: choose an even head_dim."
            )
        if self.heads % self.kv_heads:
            raise ValueError(
                f"kv_heads={self.kv_heads} does not divide heads={self.heads}, and every key/value head serves equally "
                "many query heads: choose a divisor."
            )

    @property
    def attention_width(self) -> int:
        """Inner width of attention, heads × head_dim (`a` in SCIENCE)."""
        return self.heads * self.head_dim


@dataclass(frozen=True)
class DecoderSpec:
    """Everything that determines a decoder's shapes and function. Raises `ValueError` where no decoder fits."""

    layers: tuple[LayerShape, ...]
    vocab_size: int
    norm: str = "sandwich"  # pre: one RMSNorm before each branch · sandwich: one after it as well
    tie_embeddings: bool = True
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-6
    embedding: int | None = None  # coordinates that the embedding writes; None: the first layer's
    head: int | None = None  # coordinates that the final norm and the head read; None: the last layer's

    def __post_init__(self) -> None:
        if not self.layers:
            raise ValueError("a decoder needs at least one layer: give one LayerShape per layer.")
        if self.norm not in NORMS:
            raise ValueError(f"norm={self.norm!r} is unknown: choose one of {', '.join(NORMS)}.")
        for name in ("vocab_size", "rope_theta", "norm_eps", "embedding", "head"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name}={value} must be positive.")

    @property
    def width(self) -> int:
        """Width of the residual stream: that of the widest part which reads or writes it."""
        return max(self.embed_width, self.head_width, *(shape.width for shape in self.layers))

    @property
    def embed_width(self) -> int:
        """Coordinates that the embedding writes."""
        return self.embedding or self.layers[0].width

    @property
    def head_width(self) -> int:
        """Coordinates that the final norm and the head read."""
        return self.head or self.layers[-1].width

    @property
    def table_width(self) -> int:
        """Columns of the embedding table. A tied one serves embedding and head, each by a prefix."""
        return max(self.embed_width, self.head_width) if self.tie_embeddings else self.embed_width

    @property
    def embed_scale(self) -> float:
        """Factor on what the embedding writes: √columns in Gemma 2's layout (sandwich), 1 in Llama's.

        Beside branches of unit RMS, which sandwich norms make, an embedding of a head's scale would vanish.
        """
        return self.table_width**0.5 if self.norm == "sandwich" else 1.0

    def without(self, dropped: Collection[int]) -> DecoderSpec:
        """The spec of the other layers, between an embedding and a head as wide as before.

        Raises `ValueError` where no layer is left.
        """
        kept = tuple(shape for layer, shape in enumerate(self.layers) if layer not in dropped)
        embedding, head = self.embed_width, self.head_width
        return replace(
            self,
            layers=kept,
            embedding=None if kept and embedding == kept[0].width else embedding,
            head=None if kept and head == kept[-1].width else head,
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-able values, from which `from_dict` makes an equal spec."""
        plain = {name: value for name, value in asdict(self).items() if value is not None}
        return {**plain, "layers": [asdict(shape) for shape in self.layers]}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> DecoderSpec:
        """The spec that `to_dict` wrote. Raises `ValueError` where keys are missing or unknown."""
        try:
            return cls(**{**plain, "layers": tuple(LayerShape(**shape) for shape in plain["layers"])})
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"this is not a decoder spec ({error}): give what DecoderSpec.to_dict returned."
            ) from error


def matmul_params(shape: LayerShape) -> int:
    """Parameters of one layer's matrices."""
    attention = 2 * shape.width * shape.head_dim * (shape.heads + shape.kv_heads)  # q and o, k and v
    return attention + 3 * shape.width * shape.ffn


def body_params(spec: DecoderSpec) -> int:
    """Parameters of the layers: matrices and norms, without embedding, final norm and head."""
    return sum(matmul_params(shape) + NORMS[spec.norm] * shape.width for shape in spec.layers)


def num_params(spec: DecoderSpec) -> int:
    """Parameters of the whole decoder; a tied table counts once."""
    head = 0 if spec.tie_embeddings else spec.vocab_size * spec.head_width
    return spec.vocab_size * spec.table_width + body_params(spec) + spec.head_width + head


def forward_flops_per_token(spec: DecoderSpec, seq_len: int) -> int:
    """Floating-point operations of one token's forward pass in a sequence of `seq_len`; training costs 3 ×.

    Two for each parameter of a matrix, with the head and without the embedding's look-up, and 4·a·T per layer for
    attention's scores and mixing over the full square, as in PaLM (appendix B) and torch's FlopCounterMode.
    """
    matrices = sum(matmul_params(shape) for shape in spec.layers) + spec.vocab_size * spec.head_width
    return 2 * matrices + sum(4 * shape.attention_width * seq_len for shape in spec.layers)
