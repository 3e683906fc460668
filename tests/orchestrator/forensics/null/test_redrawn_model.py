"""The probe's null: a model with its weights redrawn, which come back."""

from __future__ import annotations

import pytest
import torch
import transformers

from orchestrator.common.errors import UserError
from orchestrator.forensics.measures.probe import probe
from orchestrator.forensics.null.redrawn import redrawn


def test_redrawn_keeps_moments_and_ties_and_gives_the_weights_back() -> None:
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=500, n_embd=32, n_layer=2, n_head=2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape).exp())  # far from Gaussian
    original = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    with redrawn(model, 0) as noise:
        assert noise.lm_head.weight is noise.transformer.wte.weight
        first = {name: parameter.detach().clone() for name, parameter in noise.named_parameters()}
    for name, drawn in first.items():
        entries = original[name]
        assert not torch.equal(drawn, entries)
        assert torch.isin(drawn, entries).all()
        assert len(drawn.unique()) < len(entries.unique())  # with replacement
        error = entries.std() / drawn.numel() ** 0.5
        assert abs(drawn.mean() - entries.mean()) < 5 * error
    with redrawn(model, 1) as noise:
        assert not torch.equal(noise.transformer.wte.weight, first["transformer.wte.weight"])
    with pytest.raises(UserError), redrawn(model, 2) as noise:
        probe(noise, torch.tensor([[500]]))
    assert all(torch.equal(parameter, original[name]) for name, parameter in model.named_parameters())
    state = torch.get_rng_state()
    with redrawn(model, 0) as noise:
        assert all(torch.equal(parameter, first[name]) for name, parameter in noise.named_parameters())
    assert torch.equal(torch.get_rng_state(), state)  # nobody else's stream is drawn from
