"""From made records to the page: what predicts by construction is found, and nothing is taken for something else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from orchestrator.forensics.roles.routing import ROLES
from tests.naming import names
from tests.studies.prediction import __main__ as study
from tests.studies.prediction import figure, gather, markdown, tuning
from tests.studies.prediction.fits import fits
from tests.studies.prediction.predictors import GROUPS, correlations, measures, newest
from tests.studies.prediction.tables import table

EDITS = ("delete", "delete_attention", "delete_ffn", "repeat", "zero_saturated", "zero_random")
NAMES = ("stable_rank.o", "stable_rank.k", "saturated", "total_write", "saturated_robust", "gradient_alignment.o")


def of_domain(mean: float) -> dict[str, float]:
    return {"mean": mean, "low": mean - 0.1, "high": mean + 0.1, "kl": mean, "breadth": 0.5, "lengthening": 1.0}


def record(draw: np.random.Generator, group: str, run: str, step: int | None, depth: int = 11) -> dict[str, Any]:
    """`stable_rank.k` orders the damage from behind, in every domain."""
    cause = draw.permutation(depth) + 1.0
    layers = [
        {
            "measures": dict(zip(NAMES, draw.normal(size=len(NAMES)), strict=True)) | {"stable_rank.k": -value},
            "paper": dict(zip(ROLES, draw.random(4), strict=True)), "calibrated": dict.fromkeys(ROLES, 0.5),
            "parameter_norm": 1.0 + value, "alpha": 2.0, "width": 64,
        }
        for value in cause
    ]  # fmt: skip
    damage = [
        {"relative_write": value, "block_influence": value}
        | {"damage": {edit: {"code": of_domain(value), "facts": of_domain(3 * value)} for edit in EDITS}}
        for value in cause
    ]
    identity = {"text": None if step else "abc"}
    return {
        "group": group, "run": run, "step": step, "layers": layers, "identity": identity, "damage": {"layers": damage},
        "own": {"layers": damage},
    }  # fmt: skip


def records() -> list[dict[str, Any]]:
    draw = np.random.default_rng(3)
    cells = [
        record(draw, group, f"{arm}/seed={seed}", step)
        for group in ("tiny", "nano")
        for arm in ("a", "b")
        for seed in range(4)
        for step in (100, 200)
    ]
    return [record(draw, "smollm2", "smollm2", None, 30), record(draw, "small", "main/seed=0", 800), *cells]


def test_a_row_holds_what_was_measured() -> None:
    made = record(np.random.default_rng(3), "tiny", "a/seed=3", 100)
    made["damage"]["layers"][2]["damage"]["delete_ffn"] = {"code": of_domain(0.05)}
    layers = table([made])
    assert list(layers["seed"].unique()) == ["seed=3"]
    assert list(layers["edge"]) == [0, 1, 2, 3, 4, 5, 4, 3, 2, 1, 0]
    code = made["damage"]["layers"][0]["damage"]["delete"]["code"]["mean"]
    row = layers.iloc[0]
    assert row["damage.layer"] == pytest.approx(2 * code)
    assert (row["damage.layer.a"], row["damage.layer.b"]) == pytest.approx((code, 3 * code))
    assert row["own.ffn"] == pytest.approx(2 * code)
    assert row["saturated_share"] == 0
    assert pd.isna(layers.iloc[2]["saturated_share"])  # its interval holds no damage


def test_the_page_finds_the_cause_and_the_figure_is_drawn(tmp_path: Path) -> None:
    made = records()
    layers = table(made)
    assert set(newest(layers)["step"].dropna()) == {200, 800}
    assert measures(layers) == ["stable_rank.o", "stable_rank.k", "saturated", "total_write", "saturated_robust"]
    assert measures(layers[layers.columns[::-1]]) == measures(layers)[::-1]  # by name, wherever they stand
    text = markdown.page(layers, made, fits(layers))
    rows = {line.split("|")[1].strip(): line.split("|")[2:-1] for line in text.splitlines() if line.startswith("| ")}
    assert all("−1.00" in cell for cell in rows["`stable_rank.k`"])
    assert rows["passthrough (calibrated)"] == [" – "] * 5
    assert rows["weights"][-1].strip() == "− `stable_rank.k`"
    assert all(cell.strip().startswith("+1.00") for cell in rows["weights"][: len(GROUPS)])
    found = correlations(layers).set_index(["target", "predictor", "group"]).sort_index()
    assert set(found.loc[("ffn", "stable_rank.k")]["partial"]) == {-1.0}
    assert found.loc[("layer", "passthrough (calibrated)", "tiny")]["defined"] == 0
    figure.draw(found.reset_index(), tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 20_000


def test_a_study_without_its_arguments_says_what_it_needs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [str(tmp_path)]
    for main, arguments in (
        (study.main, []),
        (study.main, ["a", *given, "b"]),
        (tuning.main, []),
        (tuning.main, given),
    ):
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert names(error, "width_study" if str(tmp_path) in arguments else "OUTPUTS")
    with pytest.raises(SystemExit) as end:
        study.main(["--help"])
    assert end.value.code == 0
    assert names(capsys.readouterr().out, "DIR", "+experiment=decay_ablation")


def test_a_predictor_that_is_depth_has_no_dot_and_one_of_few_models_a_hollow_one() -> None:
    axes = Figure().subplots()
    of = {"models": 12, "defined": 12, "partial_low": np.nan, "partial_high": np.nan}
    figure._draw_one(axes, 0, pd.Series(of | {"partial": 0.0}), "red")
    assert not axes.lines
    assert [text.get_text() for text in axes.texts] == ["–"]
    for defined, filled in ((12, "red"), (2, "white")):
        figure._draw_one(axes, 1, pd.Series(of | {"partial": 0.5, "defined": defined}), "red")
        assert axes.lines[-1].get_markerfacecolor() == filled


def test_a_record_of_something_else_is_computed_again(tmp_path: Path) -> None:
    made = []

    def compute(partial: Path) -> dict[str, Any]:
        partial.touch()
        made.append(1)
        return {"value": len(made)}

    for identity, value in (({"text": "a"}, 1), ({"text": "a"}, 1), ({"text": "b"}, 2)):
        assert gather.kept(tmp_path / "x/one.json", identity, compute) == {"value": value, "identity": identity}
    assert not list(tmp_path.rglob("*.partial"))


def test_an_arm_without_checkpoints_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="width_study/uniform"):
        list(gather.cells("tiny", tmp_path / "width_study", ("uniform",)))
