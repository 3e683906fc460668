"""Multipliers by formula, against the values worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from models.transformer import Decoder
from models.width import build_spec
from sidecar.channels import Arithmetic, DecayChannel
from sidecar.coefficients import decisions_of, log_multipliers
from sidecar.units import make_units
from tests.naming import naming
from tests.sidecar.loop import Loop, make

KINDS = {"self_attn.q_proj.weight": 4, "mlp.down_proj.weight": 16}
UNITS = make_units(
    [
        ("embed_tokens.weight", "embedding", None, 40, 4),
        *((f"layers.{i}.{kind}", kind, i, 4 * inputs, inputs) for i in range(5) for kind, inputs in KINDS.items()),
        ("lm_head.weight", "head", None, 40, 4),
    ]
)


def of(progress: float = 0.0, **coefficients: float) -> dict[str, float]:
    logs = log_multipliers(coefficients, UNITS, progress).tolist()
    return {unit.name.removesuffix(".weight"): value for unit, value in zip(UNITS, logs, strict=True)}


def down(values: dict[str, float]) -> list[float]:
    return [values[f"layers.{i}.mlp.down_proj"] for i in range(5)]


@pytest.mark.parametrize(
    ("term", "in_layers", "outside"),
    [("amount", [1, 1, 1, 1, 1], 1), ("depth", [-1, -0.5, 0, 0.5, 1], 0), ("ends", [1, -0.5, -1, -0.5, 1], 0),
     ("early", [1, 1, 0, 0, 0], 0), ("middle", [0, 0, 1, 0, 0], 0), ("late", [0, 0, 0, 1, 1], 0),
     ("attention", [-1] * 5, 0), ("depth_x_depth", [1, 0.25, 0, 0.25, 1], 0), ("down_proj", [1] * 5, 0),
     ("mlp.down_proj", [1] * 5, 0), ("q_proj", [0] * 5, 0)],
)  # fmt: skip
def test_terms_by_hand(term: str, in_layers: list[float], outside: float) -> None:
    found = of(**{term: 2.0})
    assert down(found) == pytest.approx([2 * value for value in in_layers])
    assert found["embed_tokens"] == found["lm_head"] == 2 * outside


def test_embedding_head_and_attention_are_terms() -> None:
    found = of(embedding=3.0, head=-1.0, attention=0.5)
    assert (found["embed_tokens"], found["lm_head"]) == (3.0, -1.0)
    assert found["layers.2.self_attn.q_proj"] == 0.5


def test_decay_by_the_root_of_fan_in() -> None:
    found = of(fan_in=0.5)
    q, d = found["layers.1.self_attn.q_proj"], found["layers.1.mlp.down_proj"]
    assert math.exp(d - q) == pytest.approx(math.sqrt(16 / 4))
    assert 16 * q + 64 * d == pytest.approx(0.0, abs=1e-12)  # weighted by parameters
    assert found["embed_tokens"] == 0.0


def test_decay_by_fan_in_follows_the_width_of_a_ramp() -> None:
    spec = build_spec(layers=4, width=32, head_dim=8, ffn_ratio=2.0, vocab_size=32, seq_len=16, profile="ramp", end=3.0)
    with torch.device("meta"):
        model = Decoder(spec)
    units = DecayChannel(model, Arithmetic(1e-3, 0.1)).units
    (decision,) = decisions_of({"decay": {"fan_in": 0.5}}, {"decay": units}, 20, None)
    found = decision["values"]["decay"]
    inputs = {name: p.shape[1] for name, p in model.named_parameters() if ".layers." in name and p.ndim == 2}
    assert len({inputs[f"model.layers.{i}.mlp.gate_proj.weight"] for i in range(4)}) == 4
    first = "model.layers.0.self_attn.q_proj.weight"
    for name, count in inputs.items():
        assert found[name] / found[first] == pytest.approx(math.sqrt(count / inputs[first]))
    mean = sum(u.size * math.log(found[u.name]) for u in units if u.layer is not None)
    assert mean == pytest.approx(0.0, abs=1e-6 * sum(u.size for u in units))
    assert found["model.embed_tokens.weight"] == 1.0


def test_time_runs_from_minus_one_to_one_and_makes_a_decision_at_every_interval() -> None:
    found = decisions_of({"decay": {"time_x_depth": 1.0}}, {"decay": UNITS}, interval=25, steps=100)
    assert [decision["step"] for decision in found] == [0, 25, 50, 75]
    first, last = (found[i]["values"]["decay"]["layers.4.mlp.down_proj.weight"] for i in (0, 3))
    assert (first, last) == (pytest.approx(math.exp(-1)), pytest.approx(math.exp(0.5)))
    assert len(decisions_of({"decay": {"depth": 1.0}}, {"decay": UNITS}, interval=25, steps=100)) == 1


def test_mean_matched_multipliers_have_the_mean_one() -> None:
    (found,) = decisions_of({"decay": {"depth": -0.5}}, {"decay": UNITS}, 20, None, mean_matched=True)
    values = found["values"]["decay"]
    assert sum(u.size * values[u.name] for u in UNITS) == pytest.approx(sum(u.size for u in UNITS))
    assert values["layers.0.mlp.down_proj.weight"] / values["layers.4.mlp.down_proj.weight"] == pytest.approx(math.e)


def test_a_formula_trains_as_the_multipliers_that_it_stands_for() -> None:
    formula = Loop(mode="replay", coefficients={"decay": {"depth": -0.5}}).run(20)
    depths = {"layers.0": -1, "layers.1": 0, "layers.2": 1}
    values = {
        unit.name: math.exp(-0.5 * next((d for layer, d in depths.items() if unit.name.startswith(layer)), 0))
        for unit in formula.sidecar.channels["decay"].units
    }
    assert formula.sidecar.multipliers("decay") == pytest.approx(values)
    by_hand = Loop(mode="replay", playback=[{"step": 0, "values": {"decay": values}}]).run(20)
    assert all(torch.allclose(a, b) for a, b in zip(formula.weights(), by_hand.weights(), strict=True))
    assert formula.sidecar.evaluation.forwards == 0


@pytest.mark.parametrize("mode", ["permute", "random"])
def test_a_formula_has_its_controls(mode: str) -> None:
    replayed = make(mode="replay", coefficients={"decay": {"depth": -0.5, "head": 0.3}})
    control = make(mode=mode, coefficients={"decay": {"depth": -0.5, "head": 0.3}})
    for one in (replayed, control):
        one.before_step(0)
    then, now = replayed.multipliers("decay"), control.multipliers("decay")
    assert now != then
    assert now["head.weight"] == then["head.weight"]
    assert sorted(now.values()) == pytest.approx(sorted(then.values()))


@pytest.mark.parametrize(
    ("settings", "named"),
    [({"coefficients": {"decay": {"deep": 1.0}}}, ("'deep'", "depth", "down_proj")),
     ({"coefficients": {"decay": {"depth_x_deep": 1.0}}}, ("'deep'",)),
     ({"coefficients": {"decay": {"depth": math.nan}}}, ("depth=nan", "finite")),
     ({"coefficients": {"decay": {"depth": "large"}}}, ("depth=large", "finite")),
     ({"coefficients": {"lr_scale": {"depth": 1.0}}}, ("lr_scale",)),
     ({"coefficients": {"decay": {"time": 1.0}}, "steps": None}, ("'time'", "steps")),
     ({"coefficients": {"decay": {"depth": 9.0}}}, ("'decay'", "0.1")),
     ({"coefficients": {"decay": {"depth": 1.0}}, "mode": "learn"}, ("'learn'", "coefficients")),
     ({"coefficients": {"decay": {"depth": 1.0}}, "playback": [{"step": 0, "values": {}}]}, ("playback", "one of"))],
)  # fmt: skip
def test_a_formula_that_cannot_be_played_is_refused(settings: dict[str, Any], named: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=naming(*named)):
        make(**{"mode": "replay", **settings})


def test_multipliers_stay_within_bounds_that_are_given() -> None:
    (free,) = decisions_of({"decay": {"depth": -2.0}}, {"decay": UNITS}, 20, None)
    (bound,) = decisions_of({"decay": {"depth": -2.0}}, {"decay": UNITS}, 20, None, bounds={"decay": (0.5, 1.5)})
    for name, value in free["values"]["decay"].items():
        assert bound["values"]["decay"][name] == min(max(value, 0.5), 1.5)
    assert max(free["values"]["decay"].values()) > 7 > 1.5
