"""Training speed against named rivals, as ratios measured in one run: `make bench`. Asserts nothing."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from models.transformer import Decoder, init_weights
from models.width import build_spec
from orchestrator.optim import DecoupledAdamW
from orchestrator.schema import OptimConfig

REPEATS = 9


def ratio(ours: Callable[[], object], rival: Callable[[], object]) -> str:
    """Median of rival's time over ours, the two alternating, with its range."""
    ratios = []
    for _ in range(REPEATS):
        times = []
        for work in (ours, rival):
            started = time.perf_counter()
            work()
            times.append(time.perf_counter() - started)
        ratios.append(times[1] / times[0])
    return f"{statistics.median(ratios):.2f}x  ({min(ratios):.2f} ... {max(ratios):.2f})"


def main() -> None:
    """Print one line per comparison."""
    torch.set_num_threads(1)
    common: dict[str, Any] = {
        "layers": 11, "width": 64, "head_dim": 8, "vocab_size": 264, "norm": "pre", "seq_len": 128,
    }  # fmt: skip
    spec = build_spec(**common)
    ours = Decoder(spec)
    init_weights(ours, 0)
    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=264, hidden_size=64, intermediate_size=192, num_hidden_layers=11, num_attention_heads=8,
            head_dim=8, max_position_embeddings=128, tie_word_embeddings=True,
        )
    )  # fmt: skip
    rows = torch.randint(264, (4, 129))

    def step(loss: Callable[[], torch.Tensor], model: torch.nn.Module) -> Callable[[], None]:
        def run() -> None:
            loss().backward()
            model.zero_grad()

        return run

    our_step = step(lambda: ours.loss(rows), ours)
    their_step = step(lambda: llama(input_ids=rows, labels=rows).loss, llama)
    print("forward + backward, tiny, against transformers' Llama  ", ratio(our_step, their_step))

    ramp = Decoder(build_spec(**common, profile="ramp", start=1024 / 1168, end=1372 / 1168, match="flops"))
    init_weights(ramp, 0)
    print(
        "forward + backward, ramp against uniform at equal FLOPs", ratio(step(lambda: ramp.loss(rows), ramp), our_step)
    )

    ours.loss(rows).backward()
    per_tensor = DecoupledAdamW(ours, OptimConfig())
    per_tensor.multipliers = {name: 1.0 + i / 100 for i, name in enumerate(per_tensor.decayed)}
    adamw = torch.optim.AdamW(ours.parameters(), lr=2e-3, weight_decay=0.1, foreach=True)
    print("update with a rate per tensor, against torch's AdamW   ", ratio(lambda: per_tensor.step(2e-3), adamw.step))


if __name__ == "__main__":
    main()
