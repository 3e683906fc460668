"""The space of a search: ranges and lists as Optuna's distributions, and what is refused."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from orchestrator.common.errors import UserError
from orchestrator.search.space import check, distributions, rounded, text


def test_each_kind_of_range_is_optunas_distribution() -> None:
    space = {
        "optim.lr": "log(1e-4, 1e-2)",
        "optim.beta1": " uniform( 0.8,0.99 )",
        "model.layers": "int(2, 8)",
        "width": ["uniform", "ramp"],
        "width.multiple_of": [4, None],
    }
    assert distributions(space) == {
        "optim.lr": FloatDistribution(1e-4, 1e-2, log=True),
        "optim.beta1": FloatDistribution(0.8, 0.99),
        "model.layers": IntDistribution(2, 8),
        "width": CategoricalDistribution(["uniform", "ramp"]),
        "width.multiple_of": CategoricalDistribution(["4", "null"]),
    }


@pytest.mark.parametrize(
    "values",
    [
        "log(1e-2, 1e-4)", "log(0, 1)", "log(-1, 1)", "uniform(1, 1)", "int(1.5, 3)", "int(2, 2.5)", "gauss(0, 1)",
        "log(1e-4; 1e-2)", "log(a, b)", "log(1, 2, 3)", "1e-3", 0.001, None, [], ["one"], [1, 1], {"low": 1},
        "log(nan, 1)", "uniform(0, inf)", "uniform(1, nan)",
    ],
)  # fmt: skip
def test_what_is_no_range_is_refused_with_its_key(values: Any) -> None:
    with pytest.raises(UserError, match=r"search\.space: optim\.lr "):
        distributions({"optim.lr": values})


@pytest.mark.parametrize(
    "key",
    [
        "seed",
        "root",
        "tracker.mode",
        "launcher.parallel",
        "train.steps",
        "seeds",
        "branch.step",
        "data",
        "data.heldout_tokens",
        "train.seq_len",
        "train.eval_every",
        "train.threads",
        "search.trials",
    ],
)
def test_what_trials_share_is_no_key_of_a_space(key: str) -> None:
    with pytest.raises(UserError, match=key):
        distributions({key: "int(1, 2)"})


@pytest.mark.parametrize(
    ("broken", "refused"),
    [
        ([], False),
        (["optim.lr=0.01"], False),
        (["optim.lr=0.0001", "optim.lr=0.01"], True),
        (["width=ramp"], True),
    ],
)
def test_a_range_needs_one_end_that_composes_and_a_list_needs_all(broken: list[str], refused: bool) -> None:
    def composes(override: str) -> None:
        if override in broken:
            raise UserError(f"{override} does not compose")

    with pytest.raises(UserError, match=broken[0]) if refused else nullcontext():
        check({"optim.lr": "log(1e-4, 1e-2)", "width": ["uniform", "ramp"]}, {"optim.lr": 0.002}, composes)


def test_values_are_written_as_overrides_have_them() -> None:
    assert [text(value) for value in (0.00123456, 7, True, None, [1, 2], "ramp")] == [
        "0.00123456", "7", "true", "null", "[1, 2]", "ramp",
    ]  # fmt: skip


def test_a_proposed_number_is_near_what_was_proposed_and_within_its_range() -> None:
    wide, narrow = FloatDistribution(1e-4, 1e-2, log=True), FloatDistribution(0.9991, 0.9999)
    assert rounded(0.0012345678, wide) == "0.00123"
    for value in (0.99910001, 0.9995123, 0.99989999):
        written = float(rounded(value, narrow))
        assert 0.9991 <= written <= 0.9999
        assert abs(written - value) <= 0.0008 / 1000
    assert rounded("ramp", CategoricalDistribution(["ramp", "uniform"])) == "ramp"


def test_fractions_of_a_whole_number_are_refused_with_the_cure() -> None:
    with pytest.raises(UserError, match=r"model\.layers.*int\("):
        check({"model.layers": "uniform(2, 6)"}, {"model.layers": 4}, lambda override: None)
