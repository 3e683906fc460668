"""The sidecar of a configuration, before anything is trained."""

from __future__ import annotations

import pytest

from orchestrator.common.errors import UserError
from orchestrator.config.compose import compose
from orchestrator.config.schema import Config
from orchestrator.training.sidecar import planned_sidecar
from tests.naming import naming

pytestmark = pytest.mark.usefixtures("hydra")


def config_of(small: list[str], *overrides: str) -> Config:
    return compose([*small, "sidecar=decay", *overrides])


@pytest.mark.parametrize("mode", ["learn", "fixed", "random"])
def test_a_sidecar_is_planned_without_weights_and_without_a_recorded_run(small: list[str], mode: str) -> None:
    sidecar = planned_sidecar(config_of(small, f"sidecar.mode={mode}"))
    assert all(parameter.is_meta for parameter in sidecar.model.parameters())
    assert len(sidecar.channels["decay"].units) == 3 * 7 + 1  # and the embedding


def test_a_feature_that_reads_the_optimizer_can_be_planned(small: list[str]) -> None:
    sidecar = planned_sidecar(config_of(small, "sidecar.features=[unit,momentum_alignment,row_cv]"))
    assert list(sidecar.settings.features) == ["unit", "momentum_alignment", "row_cv"]


def test_unsafe_bounds_are_the_users_error(small: list[str]) -> None:
    with pytest.raises(UserError, match=r"bounds\.decay"):
        planned_sidecar(config_of(small, "optim.lr=0.1", "optim.weight_decay=0.2", "sidecar.bounds.decay=[0.1,8]"))


def test_a_rule_is_planned_for_the_channel_and_the_bounds_that_it_has(small: list[str]) -> None:
    sidecar = planned_sidecar(compose([*small, "model.width=64", "sidecar=alpha_decay"]))
    assert (sidecar.settings.mode, sidecar.governed["decay"].bounds) == ("rule", (0.6666, 5))
    with pytest.raises(UserError, match=naming("'decay'", "0.1")):
        planned_sidecar(
            compose([*small, "model.width=64", "sidecar=alpha_decay", "optim.weight_decay=40", "optim.lr=1e-3"])
        )
