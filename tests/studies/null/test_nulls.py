"""The candidates of the study against numpy, scipy and theory."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from tests.orchestrator.forensics.plantings import passthrough, planted
from tests.orchestrator.forensics.untrained import model, spec
from tests.studies.null.nulls import (
    PEERS,
    RESAMPLED,
    beside_low_rank,
    beside_peers,
    beside_resamples,
    deviation_of_others,
    median_deviation,
    one_in_a_thousand,
    read,
    redrawn,
    within_scales,
)

RNG = torch.Generator()


def test_deviations() -> None:
    values = np.random.default_rng(0).normal(3, 2, 11)
    assert median_deviation(values) == pytest.approx(stats.median_abs_deviation(values, scale="normal"), rel=1e-4)
    others = [np.delete(values, layer).std(ddof=1) for layer in range(11)]
    np.testing.assert_allclose(deviation_of_others(values), others)


def test_the_limit_is_what_one_gaussian_layer_in_a_thousand_exceeds() -> None:
    """About the mean of the others the distance would follow Student's t; the median lies near it."""
    theory = stats.t.ppf(0.9995, 39) * np.sqrt(1 + 1 / 40)
    assert one_in_a_thousand(deviation_of_others, 41) == pytest.approx(theory, rel=0.05)


def test_within_scales_the_scales_stay() -> None:
    scale = torch.linspace(0.1, 3, 300)[:, None] * torch.linspace(1, 2, 200)
    draw = within_scales(scale * torch.randn(300, 200, generator=RNG.manual_seed(0)))
    squares = torch.stack([draw(RNG).square() for _ in range(20)]).mean(0) / scale.square()
    torch.testing.assert_close(squares.mean(0), torch.ones(200), rtol=0.4, atol=0)
    torch.testing.assert_close(squares.mean(1), torch.ones(300), rtol=0.4, atol=0)


def test_beside_a_signal_its_directions_stay() -> None:
    noise, u, v = (torch.randn(shape, generator=RNG.manual_seed(1)) for shape in ((300, 200), (300, 2), (2, 200)))
    signal = 5 * u @ v / 300**0.5
    redrawn_mean = torch.stack([beside_low_rank(noise + signal)(RNG) for _ in range(20)]).mean(0)
    _, s, _ = torch.linalg.svd(redrawn_mean)
    assert s[1] > 3 * s[2]
    alike = torch.nn.functional.cosine_similarity(redrawn_mean.flatten(), signal.flatten(), dim=0)
    assert alike > 0.8


@pytest.mark.parametrize("name", ["entries", "the same, low rank kept"])
def test_loud_positions_are_a_specialist_s(name: str) -> None:
    decoder = model(spec(layers=5), 0)
    with torch.no_grad():
        for weight in (decoder.model.layers[2].mlp.gate_proj.weight, decoder.model.layers[2].mlp.up_proj.weight):
            weight[:12] *= 3
    rows, _ = read(decoder)
    resampled = [read(other)[0] for other in redrawn(decoder, RESAMPLED[name], 0)]
    assert beside_resamples(rows, resampled)[2] == "specialist"


@pytest.mark.parametrize("name", PEERS)
def test_beside_peers_a_write_that_lacks_is_a_passthrough_s(name: str) -> None:
    decoder, at = planted(passthrough, 3.0, 0)
    roles = beside_peers(*read(decoder), PEERS[name])
    assert [layer for layer, role in enumerate(roles) if role == "passthrough"] == [at]
