"""Training speed against other implementations, as ratios measured in one run: `make bench`. Asserts nothing."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from models.spec import DecoderSpec
from models.transformer import Decoder, init_weights
from models.width import build_spec
from orchestrator.config.schema import Config, OptimConfig
from orchestrator.training.optimizer import DecoupledAdamW
from sidecar import Sidecar
from sidecar.channels import Arithmetic, DecayChannel

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
    adamw = torch.optim.AdamW(ours.parameters(), lr=2e-3, weight_decay=0.1, foreach=True)
    optimizer = DecoupledAdamW(ours, OptimConfig(weight_decay=0.1))
    print("update, against torch's AdamW                           ", ratio(lambda: optimizer.step(2e-3), adamw.step))
    sidecars()


def sidecars() -> None:
    """The cost of a sidecar: whole training steps with it over those without, both in this run."""
    config = Config()
    spec = build_spec(layers=11, width=64, head_dim=8, vocab_size=264, seq_len=128)
    interval, rows = config.sidecar.interval, torch.randint(264, (4, 129))

    def trainer(**settings: Any) -> Callable[[], None]:
        model = Decoder(spec)
        init_weights(model, 0)
        optimizer = DecoupledAdamW(model, config.optim)
        sidecar = None
        if settings:
            sidecar = Sidecar(
                model, lambda k: model.loss(rows[:3]), lr=config.optim.lr, weight_decay=config.optim.weight_decay,
                seed=0, interval=interval, fresh=True, **settings,
            )  # fmt: skip
        done = 0

        def run() -> None:
            nonlocal done
            for _ in range(interval):
                if sidecar:
                    sidecar.before_step(done)
                optimizer.zero_grad()
                model.loss(rows).backward()
                optimizer.step(config.optim.lr, sidecar.applied if sidecar else None)
                done += 1

        return run

    bounds = {"decay": (0.1, 8.0)}
    played = [{"step": 0, "values": {"decay": dict.fromkeys(units_of(spec), 1.5)}}]
    for name, settings in (
        ("values applied", {"mode": "replay", "playback": played}),
        ("values applied, evaluations, learning", {}),
        ("the same with all three channels", {"channels": ("decay", "lr_scale", "residual_gain")}),
    ):
        text = ratio(trainer(), trainer(bounds=bounds, **settings))
        print(f"{interval} steps with a sidecar, over without: {name:38}", text)


def units_of(spec: DecoderSpec) -> list[str]:
    model = Decoder(spec)
    return [unit.name for unit in DecayChannel(model, Arithmetic(1e-3, 0.1)).units]


if __name__ == "__main__":
    main()
