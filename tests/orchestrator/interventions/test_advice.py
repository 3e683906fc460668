"""Advice from results whose answer is plain."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from orchestrator.common import command
from orchestrator.interventions.advice import advise
from orchestrator.interventions.measured import SUM, WHOLE, predicted
from orchestrator.interventions.report import report
from tests.naming import names
from tests.orchestrator.interventions.results import DOMAINS, Value, result_of

ONES: list[Value] = [1.0] * 10


def lines(advice: dict[str, Any], kind: str, edit: str | None = None) -> list[dict[str, Any]]:
    return [line for line in advice["lines"] if line["kind"] == kind and edit in (None, line["edit"])]


def layers(result: dict[str, Any], kind: str, edit: str | None = None) -> list[int]:
    (line,) = lines(advise(result), kind, edit)
    found: list[int] = line["layers"]
    return found


def test_the_layers_that_cost_least_are_proposed_at_a_tenth_two_and_three() -> None:
    damage: list[Value] = [5.0, 0.3, (0.02, 0.06), 0.9, 0.05, 0.4, 0.5, 0.6, 0.7, 3.0]
    one, two, three = lines(advise(result_of({"delete": damage}), ["--length", "9"]), "delete")
    assert [line["layers"] for line in (one, two, three)] == [[2], [2, 4], [1, 2, 4]]
    assert three["predicted"]["code"] == pytest.approx({"mean": 0.37, "low": 0.34, "high": 0.40})
    assert three["predicted"]["prose"] == pytest.approx({"mean": 0.41, "low": 0.38, "high": 0.44})
    assert [line["under_bar"] for line in (one, two, three)] == [True, False, False]  # 0.1
    assert [line["largest"] for line in (one, two, three)] == [True, False, False]
    assert two["command"] == "python -m orchestrator.export models/one pruned --drop 2,4 --length 9"
    assert [of["layer"] for of in two["evidence"]] == [2, 4]


def test_a_deletion_is_under_the_bar_only_where_its_upper_end_is() -> None:
    result = result_of({"delete": [0.085, 0.095, *ONES[:8]]})  # ± 0.01
    assert [line["under_bar"] for line in lines(advise(result), "delete")] == [True, False, False]
    result = result_of({"delete": [(0.05, 0.095), (0.095, 0.06), *ONES[:8]]})
    assert not any(line["under_bar"] for line in lines(advise(result), "delete"))


def test_layers_of_least_relative_write_are_proposed_beside_them() -> None:
    writes = [0.1, 0.9, 0.05, None, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3]
    damage: list[Value] = [0.5, 0.1, 0.01, 0.02, *ONES[:6]]
    found = lines(advise(result_of({"delete": damage}, writes=writes)), "delete")
    assert [(line["by"], line["layers"]) for line in found] == [
        ("damage", [2]), ("damage", [2, 3]), ("relative write", [0, 2]), ("damage", [1, 2, 3]),
        ("relative write", [0, 2, 9]),
    ]  # fmt: skip
    assert found[2]["predicted"]["code"]["mean"] == pytest.approx(0.51)
    assert [line["largest"] for line in found] == [False, True, False, False, False]


def test_a_share_that_is_no_layer_or_all_of_them_is_left_out() -> None:
    assert [line["layers"] for line in lines(advise(result_of({"delete": [0.2, 0.1]})), "delete")] == [[1]]
    assert lines(advise(result_of({"delete": [0.2]})), "delete") == []


def test_blocks_have_their_measured_damage_and_tell_how_far_sums_fall_short() -> None:
    result = result_of({"delete": [0.4, 0.1, 0.2, 0.3], "delete_2": [1.0, 0.45, 1.5, None]})
    (line,) = lines(advise(result), "delete", "delete_2")
    assert (line["layers"], line["how"]) == ([1, 2], WHOLE)
    assert line["predicted"]["code"]["mean"] == 0.45
    assert line["interaction"] == pytest.approx(2.0)  # the median of 1/0.5, 0.45/0.3 and 1.5/0.5
    assert line["command"].endswith("--drop 1-2")
    assert predicted(result, [1, 2]) == (line["predicted"], WHOLE)
    cost, how = predicted(result, [1, 3]) or ({}, "")
    assert how == SUM
    assert cost["prose"]["mean"] == pytest.approx(0.4)
    assert predicted(result_of({"repeat": ONES}), [1]) is None
    assert lines(advise(result_of({"delete_2": [1.0, None]})), "delete") == []  # no layer would be left


def test_skip_gates_need_the_whole_interval_under_half_of_the_median_in_every_domain() -> None:
    damage: list[Value] = [1.0, 0.48, 0.495, (0.1, 0.6), 2.0, 1.0, 1.0]  # the median is 1
    result = result_of({"delete": damage}, roles={1: "passthrough", 4: "hub/passthrough", 5: "hub"})
    (line,) = lines(advise(result), "skip_gate")
    assert line["layers"] == [1]
    assert line["median"] == {"code": 1.0, "prose": 1.0}
    assert line["paper"] == {"role": "passthrough", "layers": [1, 4], "agree": [1]}
    assert line["predicted"]["code"]["mean"] == 0.48


def test_routers_follow_layers_whose_attention_costs_far_more_than_its_peers() -> None:
    damage: list[Value] = [0.5, 1.0, 2.005, 2.5, (3.0, 1.0), None, 1.0, 1.0, 0.9]  # the median is 1
    result = result_of({"delete_attention": damage}, roles={3: "hub", 0: "hub"})
    (line,) = lines(advise(result), "router")
    assert (line["layers"], line["predicted"]) == ([3], None)
    assert line["paper"] == {"role": "hub", "layers": [0, 3], "agree": [3]}


def test_pattern_modules_go_where_a_large_damage_sits_in_few_tokens() -> None:
    result = result_of({"delete": [1.0, 2.0, 3.0, 0.5, 0.4, 1.0]}, breadth={"delete": [0.5, 0.1, 0.6, 0.1, 0.5, 0.5]})
    assert layers(result, "pattern") == [1]  # 2 is broad, 3 is cheap


def test_layers_that_gain_by_a_second_run_are_extended_else_those_that_cost_little() -> None:
    assert layers(result_of({"repeat": [1.0, -0.02, 0.1, (-0.02, 0.1), 1.0]}), "extend") == [1]
    assert layers(result_of({"repeat": [1.0, -0.005, 0.1, 1.0, 1.0]}), "extend") == [1, 2]


def test_ffns_that_cost_most_for_their_size_are_widened() -> None:
    damage: list[Value] = [1.0, 2.5, 2.5, 1.0, None]
    result = result_of({"delete_ffn": damage}, ffn=[100, 100, 300, 25, None])
    assert layers(result, "widen", "delete_ffn") == [3]  # per parameter the median is 0.0175, and theirs 0.04
    assert layers(result_of({"delete_ffn": damage}, ffn=[None] * 5), "widen") == []


def test_and_those_whose_saturated_positions_cost_more_than_as_many_others() -> None:
    result = result_of({"zero_saturated": [0.5, 0.5, 0.03, None], "zero_random": [0.1, 0.3, -0.5, None]})
    assert layers(result, "widen", "zero_saturated") == [0, 2]


def test_edits_that_were_not_made_or_that_no_layer_has_are_named() -> None:
    advice = advise(result_of({"swap": [0.1, None], "repeat": [None, None]}))
    assert advice["lines"] == []
    assert advice["missing"] == {
        "delete": ["delete", "skip_gate", "pattern"],
        "delete_attention": ["router"],
        "repeat": ["extend"],
        "delete_ffn": ["widen"],
        "zero_saturated,zero_random": ["widen"],
    }


def test_one_document_has_no_interval_and_so_no_evidence_but_a_prediction() -> None:
    advice = advise(result_of({"delete": [9.0, *ONES[:8], 0.0], "repeat": ONES}, half=None))
    assert [line["layers"] for line in advice["lines"] if line["kind"] != "delete"] == [[], [], []]
    first = lines(advice, "delete")[0]
    assert first["predicted"]["code"] == {"mean": 0.0, "low": None, "high": None}
    assert not first["under_bar"]
    assert json.dumps(advice, allow_nan=False)


def test_an_encoder_is_not_exported_and_its_damage_sits_in_no_tokens() -> None:
    advice = advise(result_of({"delete": [0.2, 0.1]}) | {"unit": "1 − cosine"})
    assert [(line["kind"], line["command"]) for line in advice["lines"]] == [("delete", None), ("skip_gate", None)]


def test_the_bar_in_nats_is_not_one_for_cosines(capsys: pytest.CaptureFixture[str]) -> None:
    result = result_of({"delete": [0.2, 0.05]}, half=0.001) | {"unit": "1 − cosine", "intact": dict.fromkeys(DOMAINS)}
    advice = advise(result)
    assert advice["bar"] is None
    assert not any(line.get("under_bar") or line.get("largest") for line in advice["lines"])
    command.console().print(report(result | {"advice": advice}))
    assert not re.search(r"upper end|under 0\.1|nats", capsys.readouterr().out.partition("Advice")[2])


def test_the_page_says_where_evidence_and_roles_agree(capsys: pytest.CaptureFixture[str]) -> None:
    result = result_of(
        {"delete": [*ONES, 0.2, 0.1], "delete_attention": [*ONES, 5.0, 1.0]}, roles={10: "hub", 11: "passthrough"}
    )
    command.console().print(report(result | {"advice": advise(result)}))
    printed = " ".join(capsys.readouterr().out.split())
    assert names(
        printed, "L11 +0.100 code, +0.100 prose", "L10–11", "passthroughs: L11", "hubs: L10", "add repeat to --edits"
    )
    assert names(printed, "None", "0.1 nats/token or less", "upper end")


def test_what_no_command_does_names_the_key_that_does(capsys: pytest.CaptureFixture[str]) -> None:
    result = result_of({"repeat": [*ONES, -0.1], "delete_ffn": [*ONES, 3.0]})
    command.console().print(report(result | {"advice": advise(result)}))
    assert names(" ".join(capsys.readouterr().out.split()), "extend L10", "model.layers", "widen L10", "width.widths")
    none = result_of({"repeat": ONES, "delete_ffn": ONES})
    command.console().print(report(none | {"advice": advise(none)}))
    assert "width.widths" not in capsys.readouterr().out
