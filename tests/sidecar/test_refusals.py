"""Settings, models and saved states that the sidecar refuses."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from tests.naming import naming
from tests.sidecar.loop import ALL, Loop, Model, make

PLAYED = [{"step": 0, "values": {"decay": {unit.name: 50.0 for unit in make().channels["decay"].units}}}]


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"weight_decay": 2.0}, ["channel 'decay'", "0.2", "bounds.decay"]),
        ({"mode": "sometimes"}, ["mode 'sometimes'", "learn"]),
        ({"credit": "blame"}, ["credit 'blame'"]),
        ({"share": "some"}, ["share 'some'"]),
        ({"policy": "forest"}, ["policy 'forest'"]),
        ({"features": ("luck",)}, ["feature 'luck'"]),
        ({"channels": ["dacay"]}, ["channel 'dacay'", "decay"]),
        ({"channels": []}, ["channels []", "decay"]),
        ({"interval": 0}, ["interval=0"]),
        ({"sigma": math.nan}, ["sigma=nan"]),
        ({"policy_lr": math.inf}, ["policy_lr=inf"]),
        ({"unexplained": -1.0}, ["unexplained=-1.0"]),
        ({"baseline_decay": 0.0}, ["baseline_decay=0.0"]),
        ({"bounds": {"decay": (0.5,)}}, ["bounds.decay=[0.5]"]),
        ({"bounds": {"decay": (1.5, 2.0)}}, ["bounds.decay=[1.5, 2.0]"]),
        ({"bounds": {"decay": (0.0, 2.0)}}, ["bounds.decay=[0.0, 2.0]"]),
        ({"bounds": {"decay": (0.5, math.inf)}}, ["bounds.decay"]),
        ({"bounds": {"decoy": (0.5, 2.0)}}, ["bounds 'decoy'"]),
        ({"mode": "replay"}, ["mode 'replay'", "playback"]),
        ({"mode": "permute"}, ["mode 'permute'", "playback"]),
        ({"mode": "learn", "playback": []}, ["mode 'learn'", "playback", "replay", "permute", "random"]),
        ({"mode": "replay", "playback": []}, ["playback", "no decision"]),
        ({"mode": "replay", "playback": PLAYED}, ["'decay'", "0.25", "bounds.decay"]),
        ({"features": ("progress",)}, ["feature 'progress'", "steps"]),
        ({"features": ("momentum_alignment",)}, ["feature 'momentum_alignment'", "optimizer"]),
        ({"optimizer": torch.optim.AdamW(Model().parameters())}, ["0.01", "weight_decay"]),
        ({"mean_matched": True, "share": "all"}, ["mean_matched", "share='all'"]),
        ({"trace": "always"}, ["trace 'always'", "interval", "run"]),
        ({"trace": "run"}, ["trace 'run'", "unexplained=1", "unexplained=0"]),
        ({"trace": "run", "unexplained": 0.0, "credit": "joint"}, ["trace 'run'", "'joint'", "factored"]),
        ({"mode": "learn", "coefficients": {"decay": {"depth": 0.1}}}, ["'learn'", "coefficients", "credit=forks"]),
        ({"beta2": 1.0}, ["beta2=1.0", "0", "1"]),
        ({"decay": "coupled"}, ["decay 'coupled'", "decoupled", "cautious"]),
        ({"lr_factors": {"layers.9.weight": 2.0}}, ["lr_factors", "layers.9.weight"]),
        ({"lr_factors": {"head.weight": 0.0}}, ["lr_factors", "head.weight=0.0"]),
        ({"lr_factors": {"head.weight": 5.0}}, ["channel 'decay'", "0.25", "bounds.decay"]),
        ({"warmup": -1}, ["warmup=-1", "0"]),
        ({"channels": ["lr_scale"], "bounds": {"lr_scale": (0.5, 3.0)}}, ["'lr_scale'", "lr_max", "bounds.lr_scale"]),
        ({"channels": ["lr_scale"], "eps": 0.0}, ["'lr_scale'", "ε=0", "eps"]),
        ({"channels": ["residual_gain"], "bounds": {"residual_gain": (0.5, 3.0)}}, ["'residual_gain'", "3", "2"]),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], named: list[str]) -> None:
    with pytest.raises(ValueError, match=naming(*named)) as error:
        make(**settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("channel", ALL)
def test_a_model_without_numbered_layers_is_refused(channel: str) -> None:
    with pytest.raises(ValueError, match=naming(f"channel '{channel}'", "Linear", "layers.0.mlp.down_proj")):
        make(nn.Linear(2, 2), channels=[channel])


def test_fixed_mode_is_checked_against_its_own_multiplier() -> None:
    make(weight_decay=2.0, mode="fixed")
    with pytest.raises(ValueError, match=naming("'decay'", "0.2", "0.1")):
        make(weight_decay=20.0, mode="fixed")


def test_state_of_another_model_or_other_channels_is_refused() -> None:
    state = Loop().run(6).sidecar.state_dict()
    with pytest.raises(ValueError, match=naming("channel 'decay'", "parameters")):
        make(Model(4)).load_state_dict(state, make(Model(4)).tensors())
    with pytest.raises(ValueError, match=naming("['decay']", "['lr_scale']")):
        make(channels=["lr_scale"]).load_state_dict(state, {})
    tensors = Loop().run(6).sidecar.tensors()
    changed = {("credit", "factored"): "joint", ("mode", "learn"): "random", ("share", "none"): "kind"}
    for (what, saved), other in {**changed, ("policy", "linear"): "mlp"}.items():
        with pytest.raises(ValueError, match=naming(f"{what} '{saved}'", f"'{other}'")):
            make(**{what: other}).load_state_dict(state, tensors)
    with pytest.raises(ValueError, match=naming("0 tensors", "7")):
        make().load_state_dict(state, {})
    with pytest.raises(ValueError, match=naming("'decay'", "8 parameters", "9")):
        make(features=("unit", "depth")).load_state_dict(state, tensors)
