"""The damage of deleting layers in two arms: the files' numbers, tables, tests and figure."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from rich.console import Console

from orchestrator.analysis.comparison import compute
from orchestrator.analysis.figures import draw
from orchestrator.analysis.report.chapters import chapters
from orchestrator.analysis.summary import print_summary
from orchestrator.common.errors import UserError
from orchestrator.forensics.roles.palette import letter
from tests.naming import naming
from tests.orchestrator.analysis.conftest import damage_of

Write = Callable[..., Path]


def test_the_table_has_a_row_per_layer_edit_and_domain(experiment: Write) -> None:
    table = compute(experiment(interventions=True)).tables["damage"]
    assert len(table) == 2 * 2 * 3 * 4 * 2  # arms, seeds, steps, layers, domains; swap has none
    assert set(table["edit"]) == {"delete"}
    of = table[(table["arm"] == "variable") & (table["seed"] == 1) & (table["step"] == 50) & (table["layer"] == 2)]
    assert of["rise"].mean() == pytest.approx(damage_of("variable", 1, 50, 2))


def test_layers_are_compared_pair_by_pair_at_the_newest_step(experiment: Write) -> None:
    seeds = range(6)
    (shift,) = compute(experiment(interventions=True, seeds=seeds)).damage
    assert (shift.arm, shift.step, shift.seeds) == ("variable", 100, list(seeds))
    for layer in shift.layers:
        a, b = (np.array([damage_of(arm, seed, 100, layer.layer) for seed in seeds]) for arm in ("uniform", "variable"))
        assert layer.a == pytest.approx(a.mean())
        assert layer.b == pytest.approx(b.mean())
        assert layer.delta == pytest.approx(0.2 if layer.layer < 3 else 0.0)
        if layer.layer < 3:
            exact = scipy.stats.permutation_test(
                (b - a,), np.mean, permutation_type="samples", n_resamples=np.inf
            ).pvalue
            assert layer.p == pytest.approx(exact)  # of layers that all change alike, none is less sure


def test_arms_without_interventions_at_one_step_are_not_compared(experiment: Write) -> None:
    root = experiment(interventions=True, seeds=(0,))
    for step in (50, 100):
        (root / f"variable/seed=0/interventions/step_{step:08d}.json").unlink()
    assert compute(root).damage[0].step == 0
    (root / "variable/seed=0/interventions/step_00000000.json").unlink()
    c = compute(root)
    assert c.damage == []
    assert [one.key for one in chapters(c, draw(c)) if one.key == "damage"] == ["damage"]  # the baseline's figure
    assert len(c.tables["damage"]) == 3 * 4 * 2


def test_nothing_is_shown_where_there_were_no_interventions(experiment: Write) -> None:
    c = compute(experiment())
    assert c.damage == []
    assert "damage" not in draw(c)
    assert c.tables["damage"].empty
    assert "damage" not in [one.key for one in chapters(c, draw(c))]


def test_the_map_holds_the_means_over_the_seeds_and_the_roles(experiment: Write) -> None:
    drawing = draw(compute(experiment(interventions=True)))["damage"]
    for arm, heatmap in zip(("uniform", "variable"), drawing.plot.data, strict=True):
        for layer in range(4):
            for column, step in enumerate((0, 50, 100)):
                mean = np.mean([damage_of(arm, seed, step, layer) for seed in (0, 1)])
                assert list(heatmap.customdata[layer][column]) == [step, pytest.approx(mean)]
                assert heatmap.z[layer][column] == pytest.approx(np.log10(1 + mean / 0.01))
    assert drawing.plot.data[0].text[0][0] == "H"  # both seeds
    assert drawing.table is not None
    assert len(drawing.table.rows) == 4


def test_a_damage_below_zero_has_a_hue_of_its_own(experiment: Write) -> None:
    root = experiment(interventions=True)
    helps = {"code": {"mean": -0.3}, "facts": {"mean": -0.1}}
    for path in root.glob("*/seed=*/interventions/*.json"):
        rewrite(path, lambda document: document["layers"][1]["damage"].update(delete=helps))
    drawing = draw(compute(root))["damage"]
    for heatmap in drawing.plot.data:
        assert heatmap.z[1][0] == pytest.approx(-np.log10(1 + 0.2 / 0.01))
        scale = [(place, *map(float, re.findall(r"[\d.]+", colour))) for place, colour in heatmap.colorscale]
        places, red, _, blue = np.array(scale).T
        heights = heatmap.zmin + places * (heatmap.zmax - heatmap.zmin)
        assert np.all((red - blue > 0) == (heights < 0))  # orange below zero, blue above
        assert np.all(np.diff(np.abs(red - blue)[heights > 0]) > 0)
    bar = drawing.plot.data[0].colorbar
    assert bar.tickvals[bar.ticktext.index("0")] == 0
    assert {"−0.1", "+0.1"} <= set(bar.ticktext)
    assert "lower" in drawing.text


def rewrite(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def test_pairs_that_were_measured_otherwise_are_left_out(experiment: Write) -> None:
    root = experiment(interventions=True, seeds=range(3))
    for step in (0, 50, 100):
        path = root / f"variable/seed=1/interventions/step_{step:08d}.json"
        rewrite(path, lambda document: document.update(documents={"code": 9, "facts": 9}))
    (shift,) = compute(root).damage
    assert (shift.seeds, shift.left_out) == ([0, 2], [1])


@pytest.mark.parametrize("full", [False, True])
def test_the_terminal_has_the_table_with_the_roles_of_both_arms(experiment: Write, full: bool) -> None:
    printed = io.StringIO()
    console = Console(width=80, file=printed)
    c = compute(experiment(interventions=True))
    print_summary(c, console, full=full)
    _, _, after = printed.getvalue().partition("Damage of deleting each layer at step 100")
    lines = [line for line in after.splitlines()[:10] if re.match(r"\s+\d ", line)]
    assert len(lines) == 4
    for layer, line in enumerate(lines):
        index, *letters, a, b = line.split()[:7]
        read = [pair.cells[side].readings[100].layers for side in (0, 1) for pair in c.pairs]
        assert (int(index), letters) == (layer, [letter(layers[layer].role) for layers in read])
        means = [np.mean([damage_of(arm, seed, 100, layer) for seed in (0, 1)]) for arm in ("uniform", "variable")]
        assert [float(a), float(b)] == pytest.approx(means, abs=1e-3)


def test_other_edits_than_the_deletion_are_in_the_table_alone(experiment: Write) -> None:
    root = experiment(interventions=True)
    for path in root.glob("*/seed=*/interventions/*.json"):
        for layer in (document := json.loads(path.read_text()))["layers"]:
            layer["damage"] = {"delete": None, "swap": layer["damage"]["delete"]}
        path.write_text(json.dumps(document))
    c = compute(root)
    assert c.damage == []
    assert "damage" not in draw(c)
    assert set(c.tables["damage"]["edit"]) == {"swap"}


def test_arms_of_unequal_depth_are_drawn_and_not_compared(experiment: Write) -> None:
    root = experiment(interventions=True)
    for path in root.glob("variable/seed=*/*/step_*.json"):
        rewrite(path, lambda document: document["layers"].pop())
    c = compute(root)
    assert c.damage == []
    assert len(draw(c)["damage"].plot.data) == 2


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"step": 0, "layers": [{}]}',
        '{"step": 50, "layers": 3}',
        '{"step": 0, "layers": []}',
        '{"step": 50, "layers": [{"layer": 0, "role": "hub", "damage": {"delete": 1}}]}',
    ],
)
def test_a_file_of_something_else_is_named_with_its_cure(experiment: Write, content: str) -> None:
    root = experiment(interventions=True)
    path = root / "uniform/seed=0/interventions/step_00000050.json"
    path.write_text(content)
    with pytest.raises(UserError, match=naming(path, "delete it")):
        compute(root)


def test_a_damage_that_is_no_number_is_refused(experiment: Write) -> None:
    root = experiment(interventions=True)
    path = root / "uniform/seed=0/interventions/step_00000050.json"
    document = json.loads(path.read_text())
    document["layers"][1]["damage"]["delete"]["code"]["mean"] = "much"
    path.write_text(json.dumps(document))
    with pytest.raises(UserError, match=naming(path, "layers.1.damage.delete.code", "mean")):
        compute(root)
