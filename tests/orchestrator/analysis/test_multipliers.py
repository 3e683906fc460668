"""Tables, sections and figures of the sidecars' multipliers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from orchestrator.analysis.comparison import compute
from orchestrator.analysis.figures import draw
from orchestrator.analysis.figures.multipliers import multiplier_maps
from orchestrator.analysis.multipliers import agreement
from orchestrator.analysis.report import verdict
from orchestrator.analysis.sections import sections
from tests.naming import names

TENSORS = [f"model.layers.{i}.{kind}.weight" for i in range(4) for kind in ("self_attn.q_proj", "mlp.down_proj")]
Write = Callable[..., Path]
Edit = Callable[..., None]


def test_means_over_the_run_and_its_thirds_leave_out_the_last_decision(experiment: Write, edit_metrics: Edit) -> None:
    root = experiment(sidecar=True, steps=(0, 10, 20, 30, 40))
    tensor = "model.layers.0.mlp.down_proj.weight"

    def change(records: list[dict]) -> None:  # type: ignore[type-arg]
        for record, value in zip(records, (1.0, 4.0, 0.5, 2.0, 99.0), strict=True):
            record["sidecar"]["values"]["decay"][tensor] = value

    edit_metrics(root / "variable/seed=0", change)
    table = compute(root).tables["sidecar"].set_index(["arm", "seed", "unit"])
    row = table.loc["variable", 0, tensor]
    assert (row["channel"], row["layer"], row["kind"]) == ("decay", 0, "down")
    assert row["mean"] == pytest.approx((1.0 * 4.0 * 0.5 * 2.0) ** 0.25)
    assert (row["early"], row["middle"], row["late"]) == pytest.approx((2.0, 0.5, 2.0))
    assert "uniform" not in table.index.get_level_values("arm")


def test_what_lies_outside_the_layers_has_a_row_without_a_layer(experiment: Write, edit_metrics: Edit) -> None:
    root = experiment(sidecar=True)

    def add(records: list[dict]) -> None:  # type: ignore[type-arg]
        for record in records:
            values = record["sidecar"]["values"]
            values["decay"] = {"model.embed_tokens.weight": 2.0, **values["decay"]}

    edit_metrics(root / "variable/seed=0", add)
    c = compute(root)
    table = c.tables["sidecar"].set_index(["arm", "seed", "unit"])
    assert table.loc[("variable", 0, "model.embed_tokens.weight"), ["layer"]].isna().all()
    drawing = multiplier_maps(c)
    assert drawing is not None
    panels = drawing.plot.data
    of_layers = ["layer" in trace.hovertemplate for trace in panels]
    assert of_layers == [True] * (len(panels) - 1) + [False], "the embedding's panel is the last"
    axes = [drawing.plot.layout[f"yaxis{trace.yaxis[1:]}"] for trace in panels]
    assert [axis.showticklabels for axis in axes] == of_layers
    assert drawing.table is not None
    assert "embedding" in drawing.table.columns
    assert table.loc[("variable", 0, TENSORS[2]), "layer"] == 1


def test_seeds_agree_where_every_one_moved_the_same_way(experiment: Write) -> None:
    c = compute(experiment(sidecar=True, seeds=(0, 1, 2)))
    (found,) = agreement(c.cells_of("variable")).values()
    signs = dict(zip(found.units, found.sign, strict=True))
    assert signs["model.layers.0.mlp.down_proj.weight"] == 1
    assert signs["model.layers.1.self_attn.q_proj.weight"] == -1
    assert signs["model.layers.2.mlp.down_proj.weight"] == 0  # 0.5 in one seed, 2 in the others
    assert signs["model.layers.3.mlp.down_proj.weight"] == 0  # 1: above seed 0's mean only
    assert (found.agreeing, found.seeds) == (4, 3)
    assert found.by_chance == 8 / 4
    assert agreement(c.cells_of("uniform")) == {}
    assert verdict(c)["sidecar"]["variable"]["decay"]["agreeing"] == 4


@pytest.mark.parametrize("factor", [3.0, 0.2])
def test_what_moves_every_value_alike_is_no_agreement(experiment: Write, edit_metrics: Edit, factor: float) -> None:
    root = experiment(sidecar=True, seeds=(0, 1, 2))

    def shift(records: list[dict]) -> None:  # type: ignore[type-arg]
        for record in records:
            values = record["sidecar"]["values"]["decay"]
            record["sidecar"]["values"]["decay"] = {unit: factor * value for unit, value in values.items()}

    (before,) = agreement(compute(root).cells_of("variable")).values()
    for seed in (0, 1, 2):
        edit_metrics(root / f"variable/seed={seed}", shift)
    (after,) = agreement(compute(root).cells_of("variable")).values()
    np.testing.assert_allclose(after.mean, factor * before.mean)
    np.testing.assert_array_equal(after.sign, before.sign)


def test_one_value_for_all_agrees_nowhere(experiment: Write, edit_metrics: Edit) -> None:
    root = experiment(sidecar=True)
    for seed in (0, 1):
        edit_metrics(
            root / f"variable/seed={seed}",
            lambda r: [x["sidecar"].update(values={"decay": dict.fromkeys(TENSORS, 2.7)}) for x in r],
        )
    (found,) = agreement(compute(root).cells_of("variable")).values()
    assert found.agreeing == 0


def test_one_flattening_for_every_table(experiment: Write) -> None:
    root = experiment(sidecar=True, seeds=(0, 1))
    cvs = {"uniform": (0.9, 0.1), "variable": (0.3, 0.4)}  # per seed: ratios 3 and 1/4
    for arm, of_seeds in cvs.items():
        for seed, cv in enumerate(of_seeds):
            path = root / arm / f"seed={seed}/forensics/step_00000100.json"
            reading = json.loads(path.read_text())
            reading["layers"][0]["measures"]["cv"] = cv
            path.write_text(json.dumps(reading))
    found = sections(compute(root))
    layers, sidecar = (next(s for s in found if s.title.startswith(t)) for t in ("Layers", "Sidecar"))
    expected = f"{(3 * 0.25) ** 0.5:.2f}"
    assert [s.rows[0][s.columns.index("CV\na / b")] for s in (layers, sidecar)] == [expected, expected]


def test_the_section_marks_agreement_and_shows_the_flattening(experiment: Write) -> None:
    (section,) = (s for s in sections(compute(experiment(sidecar=True))) if s.title.startswith("Sidecar"))
    assert section.columns == ["layer", "q", "down", "CV\na / b", "satur.\na → b"]
    assert section.rows[0] == ["0", "2.00▲", "2.00▲", "1.00", "10 → 10"]
    assert section.rows[1][1] == "0.50▼"
    assert section.rows[2][1] == "1.00 "
    assert names(section.notes[1], "4", "2 seeds", "2 ▲, 2 ▼")
    assert section.notes[1].endswith(" 4.0.")
    assert not [s for s in sections(compute(experiment(name="plain"))) if s.title.startswith("Sidecar")]


def test_the_heat_map_has_the_logarithms_of_the_seeds_mean(experiment: Write) -> None:
    figure = draw(compute(experiment(sidecar=True)))["sidecar"].plot
    maps = [trace for trace in figure.data if trace.type == "heatmap"]
    assert len(maps) == 2  # q and down
    assert maps[0].x == (0, 50)
    np.testing.assert_allclose(np.array(maps[0].z)[:, 0], [1.0, -1.0, 0.0, 0.0], atol=1e-12)
    assert "sidecar" not in draw(compute(experiment(name="plain")))
