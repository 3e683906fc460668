"""On an accelerator: values are applied without a wait for the device, in the precision that trains."""

from __future__ import annotations

import pytest
import torch

from models.transformer import Decoder, init_weights
from models.width import build_spec
from sidecar import Sidecar

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
]


def test_applying_values_waits_for_nothing() -> None:
    model = Decoder(build_spec(layers=2, width=16, head_dim=8, ffn_ratio=2.0, vocab_size=32, norm="pre", seq_len=16))
    init_weights(model, 0)
    model.cuda()
    rows = torch.randint(32, (2, 17), device="cuda")
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, foreach=True)
    sidecar = Sidecar(
        model, lambda interval: model.loss(rows), lr=1e-3, weight_decay=0.5, seed=0, interval=4, warmup=0,
        channels=("decay", "lr_scale", "residual_gain"), fresh=True,
    )  # fmt: skip
    for step in range(12):
        decided = sidecar.before_step(step)
        assert decided == (step % 4 == 0)
        optimizer.zero_grad()
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = model.loss(rows)
        loss.backward()
        torch.cuda.set_sync_debug_mode("error")
        try:
            with sidecar.applied(1e-3):
                optimizer.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert len(set(sidecar.multipliers("decay").values())) > 1
    assert all(parameter.isfinite().all() for parameter in model.parameters())
