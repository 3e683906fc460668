"""The loop of docs/sidecar.md, as it is written there, around models and optimizers that are not ours."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPTNeoXConfig, LlamaConfig, PreTrainedConfig

PAGE = (Path(__file__).parents[2] / "docs/sidecar.md").read_text()
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 32, "intermediate_size": 32}


@pytest.mark.parametrize(
    "config",
    [LlamaConfig(**SMALL), GPTNeoXConfig(**SMALL), GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=32)],
    ids=lambda config: type(config).__name__,
)
def test_the_documented_loop_trains_and_learns(config: PreTrainedConfig) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    tokens = (torch.randint(32, (8, 1)) + torch.arange(24)) % 32  # whoever can count predicts them
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)

    def loss_of(rows: torch.Tensor) -> torch.Tensor:
        return model(input_ids=rows, labels=rows).loss

    def forward_and_backward() -> None:
        optimizer.zero_grad()
        loss_of(tokens[:4]).backward()

    code = PAGE.partition("```python\n")[2].partition("```")[0]
    assert sum(bool(line.strip()) for line in code.splitlines()) == 7, "an import, a loop, and five lines"
    first = loss_of(tokens[4:]).item()
    names = {
        "model": model, "optimizer": optimizer, "heldout_loss": lambda interval: loss_of(tokens[4:]),
        "steps": 120, "lr": 3e-3, "forward_and_backward": forward_and_backward,
    }  # fmt: skip
    exec(code.replace("...  ", "forward_and_backward()  "), names)
    assert loss_of(tokens[4:]).item() < first
    values = names["sidecar"].multipliers("decay")  # type: ignore[attr-defined]
    assert len(set(values.values())) == len(values) > 7
