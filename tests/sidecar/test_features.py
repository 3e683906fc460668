"""Each feature against its definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sidecar.features import FEATURES, Observation, features_of
from sidecar.units import Unit, groups_of

GENERATOR = torch.Generator().manual_seed(0)
UNITS = [Unit(f"{i}.{k}", k, i, i / 2, 12) for i in range(3) for k in ("down", "gate")]
WEIGHTS = [[torch.randn(4, 3, generator=GENERATOR) * (i + 1)] for i in range(6)]
MOMENTA = {group[0]: torch.randn(4, 3, generator=GENERATOR) for group in WEIGHTS}
SEEN = Observation(UNITS, WEIGHTS, MOMENTA, 0.25)


def zscore(values: list[float]) -> np.ndarray:
    column = np.array(values)
    return (column - column.mean()) / column.std()


def test_where_a_unit_is_and_what() -> None:
    assert FEATURES["depth"](SEEN).flatten().tolist() == [0, 0, 0.5, 0.5, 1, 1]
    assert FEATURES["kind"](SEEN).tolist() == [[1, 0], [0, 1]] * 3
    assert torch.equal(FEATURES["unit"](SEEN), torch.eye(6, dtype=torch.float64))
    assert FEATURES["progress"](SEEN).flatten().tolist() == [0.25] * 6


def test_what_its_weights_and_moments_say() -> None:
    expected = {
        "log_norm": zscore([np.log(np.linalg.norm(w.numpy())) for (w,) in WEIGHTS]),
        "row_cv": zscore([(n := np.linalg.norm(w.numpy(), axis=1)).std() / n.mean() for (w,) in WEIGHTS]),
        "momentum_alignment": zscore(
            [
                -float((w * MOMENTA[w]).sum()) / np.linalg.norm(w.numpy()) / np.linalg.norm(MOMENTA[w].numpy())
                for (w,) in WEIGHTS
            ]
        ),
    }
    for name, values in expected.items():
        np.testing.assert_allclose(FEATURES[name](SEEN).numpy()[:, 0], values, rtol=1e-4, atol=1e-5, err_msg=name)


def test_every_feature_is_finite_whatever_the_weights() -> None:
    hostile = [[torch.zeros(4, 3)], [torch.full((4, 3), torch.inf)], [torch.full((4, 3), torch.nan)], *WEIGHTS[3:]]
    for weights in (hostile, [[torch.zeros(2, 2)]] * 6):
        seen = Observation(UNITS, weights, {}, 0.0)
        assert features_of(list(FEATURES), seen).isfinite().all()


def test_a_bias_comes_first() -> None:
    assert features_of([], SEEN).tolist() == [[1.0]] * 6


@pytest.mark.parametrize(
    ("share", "groups"),
    [("none", range(6)), ("kind", [0, 1] * 3), ("layer", [0, 0, 1, 1, 2, 2]), ("all", [0] * 6)],
)
def test_groups(share: str, groups: list[int]) -> None:
    assert groups_of(UNITS, share) == list(groups)
