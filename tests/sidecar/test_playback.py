"""Playing back: as recorded, with layers exchanged, dealt at random, pooled."""

from __future__ import annotations

import math
from typing import Any

import pytest

from sidecar.playback import Playback, permute, replay, shuffle
from sidecar.units import make_units
from tests.naming import naming

UNITS = {"decay": make_units((f"{i}.{k}", k, i, 4, 2) for i in range(4) for k in ("down", "gate"))}
VALUES = {"decay": {f"{i}.{k}": 10.0 * (i + 1) + (k == "gate") for i in range(4) for k in ("down", "gate")}}


def decision(step: int, values: Any = VALUES) -> dict[str, Any]:
    return {"step": step, "values": values}


def test_replay_is_what_was_recorded() -> None:
    assert replay(VALUES, UNITS, 0, 5) == VALUES


def test_permute_moves_every_layer_and_keeps_kinds_alike() -> None:
    for seed in range(20):
        got = permute(VALUES, UNITS, seed, 5)
        assert got == permute(VALUES, UNITS, seed, 30)
        assert sorted(got["decay"].values()) == sorted(VALUES["decay"].values())
        for layer in range(4):
            source = got["decay"][f"{layer}.down"]
            assert source != 10.0 * (layer + 1)
            assert got["decay"][f"{layer}.gate"] == source + 1
    assert len({tuple(permute(VALUES, UNITS, seed, 0)["decay"].values()) for seed in range(20)}) > 3


def test_shuffle_deals_the_values_afresh_at_every_decision() -> None:
    hands = [tuple(shuffle(VALUES, UNITS, 0, step)["decay"].values()) for step in range(50)]
    assert all(sorted(hand) == sorted(VALUES["decay"].values()) for hand in hands)
    assert len(set(hands)) == 50
    mean = [sum(hand[i] for hand in hands) / 50 for i in range(8)]
    assert max(mean) - min(mean) < 15  # of 31: no unit keeps the large ones


@pytest.mark.parametrize("mode", ["permute", "random"])
def test_exchanging_values_between_units_of_unlike_size_keeps_the_amount(mode: str) -> None:
    rows = ((f"{i}.{k}", k, i, 4 * (i + 1) * (3 if k == "gate" else 1), 4) for i in range(4) for k in ("down", "gate"))
    units = {"decay": make_units(rows)}
    sizes = {unit.name: unit.size for unit in units["decay"]}
    for step in range(5):
        _, played = Playback([decision(step)], units, mode, seed=1).at(step)  # type: ignore[misc]
        assert played["decay"] != VALUES["decay"]
        amounts = [sum(sizes[name] * m for name, m in values["decay"].items()) for values in (VALUES, played)]
        assert amounts[1] == pytest.approx(amounts[0], rel=1e-9)


def test_the_last_decision_at_or_before_a_step_is_in_force() -> None:
    playback = Playback([decision(25), decision(0), decision(50)], UNITS, "replay", 0)
    assert [playback.at(step)[0] for step in (0, 24, 25, 49, 50, 999)] == [0, 0, 25, 25, 50, 50]  # type: ignore[index]
    assert playback.at(0) == (0, VALUES)
    assert Playback([decision(25)], UNITS, "replay", 0).at(24) is None


def test_schedules_that_cannot_be_played_are_refused() -> None:
    with pytest.raises(ValueError, match="no decision"):
        Playback([], UNITS, "replay", 0)
    with pytest.raises(ValueError, match=naming("step 3", "channel 'decay'")):
        Playback([decision(3, {"decay": {"0.down": 1.0}})], UNITS, "replay", 0)
    for bad in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=naming(bad, "0.gate", "step 3")):
            Playback([decision(3, {"decay": VALUES["decay"] | {"0.gate": bad}})], UNITS, "replay", 0)


def test_what_lies_outside_the_layers_keeps_its_own_in_an_exchange() -> None:
    rows = [*((unit.name, unit.kind, unit.layer, 4, 2) for unit in UNITS["decay"]), ("wte", "embedding", None, 8, 2),
            ("wpe", "embedding", None, 8, 2), ("head", "head", None, 8, 2)]  # fmt: skip
    outside = {"wte": 3.0, "wpe": 0.2, "head": 1.5}
    got = permute({"decay": VALUES["decay"] | outside}, {"decay": make_units(rows)}, 0, 5)["decay"]
    assert {name: got[name] for name in outside} == outside
    assert {name: got[name] for name in VALUES["decay"]} == permute(VALUES, UNITS, 0, 5)["decay"]
