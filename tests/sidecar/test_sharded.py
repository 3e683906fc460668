"""In anybody's loop of several processes, sharded or not, a sidecar is what it is in one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from sidecar.sharded import all_reduce_mean, broadcast, gather, gradients, local_shard, shard_like
from tests.waiting import PATIENCE


@pytest.fixture(scope="module")
def ends() -> dict[str, list[dict[str, Any]]]:
    script = Path(__file__).with_name("several.py")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("credit", ["factored", "forks"])
@pytest.mark.parametrize("loop", ["fsdp", "replicas"])
def test_two_ranks_end_where_one_does(ends: dict[str, list[dict[str, Any]]], loop: str, credit: str) -> None:
    (alone,) = ends[f"alone, {credit}"]
    for rank in ends[f"{loop}, {credit}"]:
        assert rank["reward"] == pytest.approx(alone["reward"], abs=1e-6)
        for channel, values in alone["values"].items():
            assert rank["values"][channel] == pytest.approx(values, rel=1e-4)
        assert rank["weights"] == pytest.approx(alone["weights"], rel=1e-4, abs=1e-5)
    assert any(value != 1 for values in alone["values"].values() for value in values.values())


@pytest.mark.parametrize("credit", ["factored", "forks"])
@pytest.mark.parametrize("loop", ["fsdp", "replicas"])
def test_ranks_hold_the_same_multipliers_to_the_last_bit(
    ends: dict[str, list[dict[str, Any]]], loop: str, credit: str
) -> None:
    first, second = ends[f"{loop}, {credit}"]
    assert first["values"] == second["values"]


@pytest.mark.parametrize("credit", ["factored", "forks"])
@pytest.mark.parametrize("loop", ["alone", "fsdp", "replicas"])
def test_a_decision_leaves_no_trace_in_the_gradients(
    ends: dict[str, list[dict[str, Any]]], loop: str, credit: str
) -> None:
    assert all(rank["gradients_kept"] for rank in ends[f"{loop}, {credit}"])


@pytest.mark.parametrize("loop", ["fsdp", "replicas"])
def test_a_rule_sees_whole_matrices(ends: dict[str, list[dict[str, Any]]], loop: str) -> None:
    (alone,) = ends["alone, factored"]
    first, second = ends[f"{loop}, factored"]
    assert first["ruled"] == second["ruled"] == pytest.approx(alone["ruled"], rel=1e-3)
    assert [min(alone["ruled"].values()), max(alone["ruled"].values())] == pytest.approx([0.1, 10.0])


def test_with_one_process_everything_is_handed_back() -> None:
    weight = torch.randn(3, 2, requires_grad=True)
    assert gather(weight) is local_shard(weight) is all_reduce_mean(weight) is weight
    assert broadcast(weight) is shard_like(weight, weight) is weight
    (gradient,) = gradients(weight.square().sum(), [weight], [weight])
    assert gradient is not None
    assert torch.equal(gradient, 2 * weight)
    assert weight.grad is None
