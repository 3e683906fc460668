"""Adam's moments come back under their parameters' names, whoever saved them; without names nothing is guessed."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file

from orchestrator.common.errors import UserError
from orchestrator.forensics.weights.optimizer import moments_beside, open_moments
from tests.naming import naming


def _step(named: bool = True) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    decayed = [(name, p) for name, p in model.named_parameters() if p.ndim == 2]
    other = [(name, p) for name, p in model.named_parameters() if p.ndim < 2]
    groups = [{"params": part if named else [p for _, p in part]} for part in (decayed, other)]  # numbers ≠ order
    optimizer = torch.optim.AdamW(groups, lr=0.1)
    for _ in range(3):
        model(torch.randn(5, 3)).square().sum().backward()
        optimizer.step()
    return model, optimizer


def _expected(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    moments = ("exp_avg", "exp_avg_sq")
    return {f"{name}.{of}": optimizer.state[p][of] for name, p in model.named_parameters() for of in moments}


def _same(source: Path, expected: dict[str, torch.Tensor]) -> None:
    moments = open_moments(source)
    assert moments.names == set(expected)
    for name, value in expected.items():
        assert moments.shape(name) == tuple(value.shape)
        assert torch.equal(moments.read(name), value)


def _by_name(state: dict[str, Any]) -> dict[str, Any]:
    """As FSDP's full optimizer state dicts are: names instead of numbers."""
    names = {n: name for group in state["param_groups"] for n, name in zip(group["params"], group["param_names"])}  # noqa: B905
    groups = [{"lr": 0.1, "params": [names[n] for n in group["params"]]} for group in state["param_groups"]]
    return {"state": {names[n]: of for n, of in state["state"].items()}, "param_groups": groups}


def _prefixed(state: dict[str, Any]) -> dict[str, Any]:
    for group in state["param_groups"]:
        group["param_names"] = [f"module._orig_mod.{name}" for name in group["param_names"]]
    return state


SAVED: list[Callable[[dict[str, Any]], Any]] = [
    lambda state: state,
    lambda state: {"model": {"w": torch.ones(2)}, "optimizer": state},
    lambda state: {"epoch": 1, "optimizer_states": {"adam": state}},
    _by_name,
    lambda state: {"optimizer": _by_name(state)},
    _prefixed,
]


@pytest.mark.parametrize("saved", range(len(SAVED)))
@pytest.mark.parametrize("inside", [True, False])
def test_state_dict_with_names(tmp_path: Path, saved: int, inside: bool) -> None:
    model, optimizer = _step()
    torch.save(SAVED[saved](optimizer.state_dict()), tmp_path / "optimizer.pt")
    _same(tmp_path if inside else tmp_path / "optimizer.pt", _expected(model, optimizer))


def test_our_own_file(tmp_path: Path) -> None:
    model, optimizer = _step()
    expected = _expected(model, optimizer)
    save_file(expected, tmp_path / "optimizer.safetensors")
    _same(tmp_path, expected)
    _same(tmp_path / "optimizer.safetensors", expected)


@pytest.mark.parametrize("flat", [True, False])
def test_distributed_directory(tmp_path: Path, flat: bool) -> None:
    model, optimizer = _step()
    state = _by_name(optimizer.state_dict())["state"]
    flattened = {f"state.{name}.{of}": value for name, moments in state.items() for of, value in moments.items()}
    with warnings.catch_warnings(action="ignore"):  # that there is one process
        saved = {"model": model.state_dict(), "optimizer": flattened if flat else {"state": state}}
        dcp.save(saved, checkpoint_id=tmp_path, no_dist=True)
    _same(tmp_path, _expected(model, optimizer))


def test_numbers_without_names_are_not_guessed(tmp_path: Path) -> None:
    torch.save(_step(named=False)[1].state_dict(), tmp_path / "optimizer.pt")
    with pytest.raises(UserError, match=naming("optimizer.pt", "numbers", "model.named_parameters()")):
        open_moments(tmp_path)


def test_some_numbers_without_names(tmp_path: Path) -> None:
    state = _step()[1].state_dict()
    del state["param_groups"][1]["param_names"]
    torch.save(state, tmp_path / "optimizer.pt")
    with pytest.raises(UserError, match=naming("optimizer.pt", "numbers", "model.named_parameters()")):
        open_moments(tmp_path)


def test_optimizer_without_moments(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.named_parameters(), momentum=0.9)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    with pytest.raises(UserError, match=naming("optimizer.pt", "exp_avg", "exp_avg_sq")):
        open_moments(tmp_path)


@pytest.mark.parametrize("groups", [3, [3], [{}], [{"params": 3, "param_names": ["a"]}], {}])
def test_groups_that_are_no_groups(tmp_path: Path, groups: Any) -> None:
    torch.save({"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": groups}, tmp_path / "optimizer.pt")
    with pytest.raises(UserError, match=naming("optimizer.pt", "numbers", "model.named_parameters()")):
        open_moments(tmp_path)


def test_beside_the_weights(tmp_path: Path) -> None:
    """In a directory, ours come first, then those of torch that have names; beside a file, ours alone are read."""
    model, optimizer = _step()
    assert moments_beside(tmp_path) is None
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    found = moments_beside(tmp_path)
    assert found is not None
    assert found.names == set(_expected(model, optimizer))
    assert moments_beside(tmp_path / "step_4.pt") is None
    for unusable in (_step(named=False)[1].state_dict(), {"state": {}, "param_groups": []}):
        torch.save(unusable, tmp_path / "optimizer.pt")
        assert moments_beside(tmp_path) is None
    (tmp_path / "optimizer.pt").write_bytes(b"PK\3\4")
    assert moments_beside(tmp_path) is None
    save_file({"w.exp_avg": torch.ones(2)}, tmp_path / "optimizer.safetensors")
    for source in (tmp_path, tmp_path / "step_4.pt"):
        ours = moments_beside(source)
        assert ours is not None
        assert ours.names == {"w.exp_avg"}


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=naming(tmp_path, "optimizer.safetensors")):
        open_moments(tmp_path)
    with pytest.raises(UserError, match=naming(tmp_path / "nowhere", "exist")):
        open_moments(tmp_path / "nowhere")
