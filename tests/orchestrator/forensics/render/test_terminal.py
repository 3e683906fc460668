"""The page of one result: what it says, and that it fits."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from orchestrator.forensics.analyzer import analyze
from orchestrator.forensics.measures.entry import NEEDS
from orchestrator.forensics.measures.finding import Finding
from orchestrator.forensics.reading import Reading
from orchestrator.forensics.render.terminal import report, written
from orchestrator.forensics.roles.routing import ROLES
from tests.naming import names
from tests.orchestrator.forensics.pages import entry, printed, with_roles

TIE = "damper/hub"


@pytest.fixture
def result(checkpoint: Callable[..., Any]) -> Reading:
    """A real one, of six layers."""
    return analyze(checkpoint(widths=(16,) * 6).write(), resamples=2)


def page(result: Reading, width: int = 100) -> list[str]:
    return printed(report(result, 1.25, 478_200_000), width)


def header(lines: list[str]) -> str:
    """The names of the columns."""
    return next(line for line in lines if line.split()[:1] == ["role"])


def table(lines: list[str]) -> list[str]:
    """The rows of the layers."""
    head = lines.index(header(lines))
    return lines[head + 1 : lines.index("", head)]


def test_tokens_that_were_run_are_counted(result: Reading) -> None:
    run = replace(result, options=replace(result.options, tokens=4096, gradients=1024))
    assert names(entry(page(run), "tokens"), "4,096", "1,024", "--json")
    assert not any(line.startswith("tokens ") for line in page(result))


@pytest.mark.parametrize("width", [50, 80, 100, 200])
@pytest.mark.parametrize("depth", [1, 6, 40])
def test_no_line_is_longer_than_the_terminal_and_nothing_is_cut(
    checkpoint: Callable[..., Any], width: int, depth: int
) -> None:
    ours = checkpoint(widths=(8,) * depth, heads=2, kv_heads=2, head_dim=4, ffn=12)
    if depth > 1:
        ours.tensors[ours.name(0, "gate")] *= np.float32(100)
    result = analyze(ours.write(), resamples=2)
    result = with_roles(result, [ROLES[i % 4] if i % 3 else "hub/specialist" for i in range(depth)], [TIE] * depth)
    lines = page(result, width)
    assert max(map(len, lines)) <= width
    assert "…" not in "".join(lines)
    assert len(table(lines)) == depth + (depth > 30)  # the header again below a long table
    assert result.source in "".join(lines)  # folded, not cut


def test_headline_and_counts(result: Reading) -> None:
    roles = ["hub", "specialist", "specialist", TIE, "specialist", "damper/specialist"]
    lines = page(with_roles(result, roles, ["passthrough"] * 6))
    assert lines[1] == "llama_sandwich · step 7 · 6 layers · 478.2M parameters in the layers' matrices · read in 1.2 s"
    assert names(lines[3], "4 of 6 layers", "above chance", "hub L0 · specialist L1–2, L4")
    counts = ["above chance: hub 1 · specialist 3 · none 2", "the paper's rule: passthrough 6 · none 0"]
    assert names(entry(lines, "roles"), *counts)


def test_one_layer_alone_differs(result: Reading) -> None:
    lines = page(with_roles(result, ["hub", *[TIE] * 5]))
    assert names(lines[3], "1 of 6 layers", "above chance", "hub L0")


def test_where_no_layer_has_a_role(result: Reading) -> None:
    lines = page(with_roles(result, [TIE] * 6, ["hub", "hub", *[TIE] * 4]))
    assert names(lines[3], "No layer", "above chance", "paper's rule", "2 of 6")


def test_by_the_papers_rule_the_rate_of_untrained_models_stands_beside(result: Reading) -> None:
    lines = page(replace(with_roles(result, ["hub"] * 6), scoring="paper"))
    assert names(lines[3], "6 of 6 layers", "paper's rule", "untrained", "60 %")


def test_ties_are_dashes_without_evidence_and_letters_with_it(result: Reading) -> None:
    rows = table(page(with_roles(result, ["hub", TIE, "hub/specialist", "damper", TIE, TIE])))
    assert [row.split()[1:3] for row in rows[:3]] == [["hub", "0.25"], ["–", "–"], ["H/S", "0.01"]]
    assert rows[1].split()[-1] != "mean", "a layer without evidence shows none"
    assert rows[0].endswith("+cv −source mean")


def test_a_role_without_evidence_says_why_it_leads(result: Reading) -> None:
    alone = with_roles(result, ["hub", *[TIE] * 5])
    alone.layers[0].evidence.clear()
    assert "others" in table(page(alone))[0]


def test_the_other_rule_shows_only_where_it_differs(result: Reading) -> None:
    roles = ["hub", TIE, TIE, "damper", "hub", TIE]
    same = page(with_roles(result, roles, ["hub", TIE, "damper/specialist", "damper", "hub", TIE]))
    assert "other" not in header(same)
    differing = page(with_roles(result, roles, ["hub", "specialist", TIE, "damper/hub", "hub", TIE]), 120)
    assert names("\n".join(differing), "paper's rule", "first letters")
    at = header(differing).index("other")
    assert [row[at : at + 5].strip() for row in table(differing)] == ["", "S", "", "D/H", "", ""]


def test_numbers_of_the_table_are_the_results(result: Reading) -> None:
    lines = page(with_roles(result, [TIE] * 6), 150)
    for row, layer in zip(table(lines), result.layers, strict=True):
        values = layer.measures
        assert f" {values['cv']:.2f} " in row
        assert f"{values['saturated_robust']} / {values['saturated_robust_expected']:.1f}" in row
        assert f"{values['effective_rank.o_fraction']:.0%}" in row
        assert f"{values['momentum_alignment.down']:+.2f}".replace("-", "−") in row
    totals = result.totals
    robust = f"{totals['saturated_robust']} / {totals['saturated_robust_expected']:.1f} robust"
    assert entry(lines, "saturated").startswith(robust)


def test_narrow_terminals_lose_the_least_important_columns_first(result: Reading) -> None:
    wide, narrow = (header(page(result, width)) for width in (150, 44))
    assert {"role", "cv", "saturated", "att.", "→", "m·w"} <= set(wide.split())
    assert {"role", "cv"} <= set(narrow.split()) < set(wide.split())


def test_missing_measures_name_their_need(checkpoint: Callable[..., Any]) -> None:
    lines = page(analyze(checkpoint(norm="pre").write(optimizer=False), resamples=2))
    text = entry(lines, "missing")
    assert names(text, "momentum alignment, stuck fraction", f"needs {NEEDS['O']}", "--optimizer")
    assert names(text, "post norm damped fraction", f"needs {NEEDS['P']}")
    assert names(text, f"needs {NEEDS['A']}", "--probe")
    assert names(text, "saturated fixed", f"needs {NEEDS['R']}")
    assert names(entry(lines, "substitutes"), "gamma concentration: read from the FFN's pre-norm")


def test_where_no_tokens_can_be_run_it_says_why_and_names_no_option(checkpoint: Callable[..., Any]) -> None:
    path = checkpoint(norm="pre").write(optimizer=False)
    (path / "state.json").unlink()  # neither ours nor, without a config.json, one of transformers
    text = entry(page(analyze(path, resamples=2), 200), "missing")
    assert names(text, "copy density", "gradient alignment", f"{path} cannot be run without a config.json")
    assert "--probe" not in text
    assert "--gradients" not in text


def test_norms_whose_place_is_not_known_are_the_need(checkpoint: Callable[..., Any]) -> None:
    ours = checkpoint(norm="pre")
    bare = {
        name.replace("input_layernorm", "n1").replace("post_attention_layernorm", "n2"): torch.from_numpy(value)
        for name, value in ours.tensors.items()
    }
    text = entry(page(analyze(bare, resamples=2), 200), "missing")
    assert names(text, f"gamma concentration: needs {NEEDS['N']}")
    assert "needs weights" not in text


def test_a_single_layer_misses_its_peers_and_not_weights(checkpoint: Callable[..., Any]) -> None:
    lines = page(analyze(checkpoint(widths=(16,)).write(), resamples=2))
    assert lines[1].startswith("llama_sandwich · step 7 · 1 layer · ")
    assert "no peers" in lines[3]
    assert names(entry(lines, "missing"), "coupling, head composition top", "second layer")
    assert "needs weights" not in " ".join(lines)


def test_findings_beyond_the_worst_are_counted(result: Reading) -> None:
    ill = replace(result, pathology=[Finding(f"t{i}", 50.0 - 5 * i, "critical") for i in range(6)])
    told = entry(page(ill), "pathology")
    assert re.match(r"critical: t0 .*50\.0×.* critical: t1 .*45\.0×", told)
    assert names(told, "2 more")
    assert "t4" not in told
    assert entry(page(result), "pathology").startswith("none: ")


def test_a_write_has_two_digits() -> None:
    shown = {0.004: "0%", 0.83: "83%", 1.26: "1.3×", 48.94: "49×", 102.6: "100×", 1234.0: "1,200×"}
    assert {value: str(written(value)) for value in shown} == shown
    assert str(written(None)) == "–"
