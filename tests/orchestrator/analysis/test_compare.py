"""The whole comparison from a directory alone: tables, figures, report, verdict, summary."""

from __future__ import annotations

import base64
import gzip
import io
import json
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

from orchestrator.analysis import Comparison, compare, print_summary
from orchestrator.analysis.comparison import compute
from orchestrator.analysis.figures import FIGURES
from orchestrator.analysis.sections import sections
from orchestrator.compare import main
from tests.naming import names
from tests.orchestrator.analysis.hard import HARD

Write = Callable[..., Path]
COLUMNS = {  # DESIGN, "Table columns"
    "role_migration": "arm seed step_from step layer role_from role_to margin_from margin_to changed",
    "conservation": "arm seed step reference budget expected excess early middle late centre",
    "flattening": "seed step layer cv_a cv_b flattening saturated_a saturated_b max_abs_a max_abs_b effective_rank_o_a "
    "effective_rank_o_b attention_share_a attention_share_b",
    "trajectory": "arm seed scoring kind step layers held by_chance change",
    "loss_drops": "arm event scoring domain intervals drops events together expected p smallest_p",
    "damage": "arm seed step layer role edit domain rise low high kl",
    "paired_eval": "metric domain seed a b delta",
    "sidecar": "arm seed channel layer kind unit mean early middle late",
    "contrasts": "contrast metric seed value",
}
CONTRAST = {"variable - uniform": {"variable": 1, "uniform": -1}}


def printed(comparison: Comparison, width: int = 100) -> str:
    console = Console(width=width, file=io.StringIO(), force_terminal=False)
    print_summary(comparison, console)
    text = console.file.getvalue()
    assert all(len(line) <= width for line in text.splitlines())
    assert "nan" not in text.lower()
    return text


def no_constant(value: str) -> Any:
    raise AssertionError(f"{value} is not JSON")


def verdict_of(root: Path) -> dict[str, Any]:
    return json.loads((root / "comparison/verdict.json").read_text(), parse_constant=no_constant)


def test_tables_have_the_columns_of_the_contract(experiment: Write) -> None:
    root = experiment(steps=tuple(range(0, 450, 50)), sidecar=True, interventions=True, contrasts=CONTRAST)
    comparison = compare(root)
    tables = root / "comparison/tables"
    for name, columns in COLUMNS.items():
        parquet, text = pd.read_parquet(tables / f"{name}.parquet"), pd.read_csv(tables / f"{name}.csv")
        assert list(parquet) == list(text) == columns.split()
        assert len(parquet) == len(text) == len(comparison.tables[name]) > 0
    layers = pd.read_parquet(tables / "layers.parquet")
    assert list(layers)[:10] == [
        "arm", "seed", "step", "layer", "role", "margin",
        "score_hub", "score_damper", "score_passthrough", "score_specialist",
    ]  # fmt: skip
    assert set(layers.columns[10:]) == set(
        json.loads(next(root.rglob("forensics/step_*.json")).read_text())["layers"][0]["measures"]
    )
    assert layers["head_diversity"].isna().all()  # absent, not zero
    assert len(layers) == 2 * 2 * 9 * 4
    assert layers["step"].dtype == "int64"
    row = pd.read_parquet(tables / "paired_eval.parquet").query(
        "metric == 'test_loss' and domain == 'code' and seed == 0"
    )
    assert row["delta"].item() == pytest.approx(-0.4)


def test_several_arms_share_the_paired_tables(experiment: Write) -> None:
    root = experiment(arms=("uniform", "variable", "third"))
    comparison = compute(root)
    for name in ("flattening", "paired_eval"):
        assert ["arm", *COLUMNS[name].split()] == list(comparison.tables[name])
        assert set(comparison.tables[name]["arm"]) == {"variable", "third"}
    text = printed(comparison)
    assert "b = variable" in text
    assert "b = third" in text


def test_the_verdict_says_what_was_found(experiment: Write) -> None:
    root = experiment()
    compare(root)
    found = verdict_of(root)
    assert found["question"] == "Does width decide?"
    assert found["pairs"] == [{"arm": "variable", "seed": 0}, {"arm": "variable", "seed": 1}]
    assert set(found["cells"].values()) == {"complete"}
    primary = found["losses"][0]
    assert (primary["metric"], primary["domain"], primary["verdict"]) == ("test_loss", "mean", "inconclusive")
    assert primary["delta"] == pytest.approx(-0.1)
    assert {(r["metric"], r["domain"]) for r in found["losses"]} == {
        (m, d) for m in ("test_loss", "validation_loss", "best_validation_loss") for d in ("mean", "code", "facts")
    }
    assert [(r["reference"], r["region"]) for r in found["conservation"]] == [
        *(("saturated_robust", region) for region in ("stack", "middle", "late")),
        ("saturated_fixed", "stack"), ("saturated", "stack"),
    ]  # fmt: skip
    assert found["roles"]["variable"]["1"] == {
        "step": 100, "roles": ["passthrough", "specialist", "hub/specialist", "hub"],
    }  # fmt: skip
    assert any("p under 0.5" in note for note in found["notes"])
    assert any("16 of 16 layers" in note for note in found["notes"])


def test_the_summary_shows_both_arms(experiment: Write) -> None:
    text = printed(compute(experiment()))
    for words in ("Does width decide?", "1,000,001 parameters", "Δ = b − a", "−0.1000", "inconclusive",
                  "64 → 64", "passthrough", "specialist", "10 (1)", "conserved", "--full"):  # fmt: skip
        assert words in text
    assert "comparison/report.html" in "".join(text.split())  # a long path folds
    assert "P S ·" not in text


def test_many_seeds_print_letters(experiment: Write) -> None:
    text = printed(compute(experiment(seeds=range(6))))
    assert "P P P P P P" in text
    assert "better" in text
    assert "Student" not in text


def test_eight_seeds_are_legible_at_100_columns(experiment: Write) -> None:
    text = printed(compute(experiment(seeds=range(8))))
    rows = [line for line in text.split("Layers at")[1].splitlines() if line.startswith(" 0 ")]
    assert rows[0].split() == [
        "0", "64", "→", "64", *"PPPPPPPP", *"PPPPPPPP", "0.10", "0.10", "1.00", "14", "(1)", "14", "(1)",
    ]  # fmt: skip
    assert "seed 0…7" in text


def test_one_domain_is_told_once_and_by_its_name(experiment: Write, edit_metrics: Callable[..., None]) -> None:
    root = experiment(seeds=range(6), sidecar=True)
    for cell in root.glob("*/seed=*"):
        edit_metrics(cell, lambda r: [x[split].pop("facts") for x in r for split in ("heldout", "test") if split in x])
    c = compute(root)
    assert [(r.metric, r.domain) for r in c.statistics] == [
        ("test_loss", "mean"), ("validation_loss", "mean"), ("best_validation_loss", "mean"),
        ("validation_loss_at_equal_flops", "mean"),
    ]  # fmt: skip
    assert set(c.tables["paired_eval"]["domain"]) == {"mean"}
    test, equal = sections(c)[:2]
    assert [row[0] for row in test.rows] == ["code"]
    note, margin = test.notes
    assert names(note, "sign-flip", "14 pairs")
    assert "0.25" in margin
    steps, at_flops = (r for r in c.statistics if r.metric.startswith("validation_loss"))
    assert (steps.p_adjusted, at_flops.p_adjusted) == (2 * 2 / 2**6, 2 / 2**6)
    assert (equal.rows[0][-1], equal.rows[1][-1]) == ("inconclusive", "better")
    assert names(equal.notes[0], "equal steps", "Holm", "2 tests", "p under 0.062")
    assert "mean" not in printed(c).split("Layers at")[0]


def test_a_narrow_terminal_prints_letters(experiment: Write) -> None:
    assert "passthrough" not in printed(compute(experiment()), width=80).split("Specialist budget")[0]


def unpacked(packed: str) -> str:
    return gzip.decompress(base64.b64decode(packed)).decode()


@pytest.mark.parametrize("name", HARD)
def test_what_cannot_be_said_is_said(experiment: Write, name: str) -> None:
    make, expected = HARD[name]
    root = make(experiment)
    text = " ".join(printed(compare(root)).split())
    for words in expected:
        assert words in text
    verdict_of(root)
    page = (root / "comparison/report.html").read_text()
    packed = re.findall(r'<script type="application/gzip\+base64" id="(?!plotly)[^"]*">([^<]*)</script>', page)
    assert packed
    for text in (re.sub(r"<script type=.*?</script>", "", page, flags=re.DOTALL), *map(unpacked, packed)):
        assert "NaN" not in text
    assert set(COLUMNS) | {"layers"} == {p.stem for p in (root / "comparison/tables").glob("*.parquet")}


def test_names_are_text_wherever_they_are_shown(experiment: Write) -> None:
    hostile = "<script>alert(1)<[red]"
    root = experiment(arms=("uniform", hostile), question="<img src=x onerror=alert(2)> [bold]?")
    text = printed(compare(root))
    assert hostile in text
    assert "[bold]?" in text
    page = (root / "comparison/report.html").read_text()
    assert "<img" not in page
    assert "<script>alert(1)" not in page
    for figure in (root / "comparison/figures").glob("*.html"):
        assert "<script>alert(1)" not in figure.read_text()


def test_the_figures_need_no_network_and_share_one_script(experiment: Write) -> None:
    root = experiment(steps=tuple(range(0, 450, 50)), sidecar=True, interventions=True)
    compare(root)
    figures = {p.name for p in (root / "comparison/figures").iterdir()}
    assert figures == {*(f"{name}.html" for name in FIGURES), "plotly.min.js"}
    for name in FIGURES:
        page = (root / f"comparison/figures/{name}.html").read_text()
        assert 'src="plotly.min.js"' in page
        assert 'src="http' not in page


def test_rebuilding_gives_the_same_files(experiment: Write) -> None:
    root = experiment()
    compare(root)
    files = [p for p in (root / "comparison").rglob("*") if p.is_file() and p.parent.name != "figures"]
    first = {p: p.read_bytes() for p in files}
    compare(root)
    assert first == {p: p.read_bytes() for p in files}


def comparison_is_a_file(root: Path) -> None:
    (root / "comparison").write_text("mine")


def a_table_is_a_directory(root: Path) -> None:
    (root / "comparison/tables/layers.parquet").mkdir(parents=True)


def the_metrics_log_is_a_directory(root: Path) -> None:
    path = root / "variable/seed=1/metrics.jsonl"
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("harm", [comparison_is_a_file, a_table_is_a_directory, the_metrics_log_is_a_directory])
def test_what_the_disk_refuses_is_one_sentence(
    experiment: Write, capsys: pytest.CaptureFixture[str], harm: Callable[[Path], None]
) -> None:
    root = experiment()
    harm(root)
    assert main([str(root)]) == 2
    said = capsys.readouterr().err
    assert said.startswith(str(root))
    assert len(said.splitlines()) == 1


def test_a_full_disk_is_one_sentence_and_leaves_no_half_file(
    experiment: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    root = experiment()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))  # tables fit, figures do not
        assert main([str(root)]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    said = capsys.readouterr().err
    assert names(said, root / "comparison/figures", "File too large")
    assert len(said.splitlines()) == 1
    assert len(pd.read_parquet(root / "comparison/tables/paired_eval.parquet")) > 0
    assert not list(root.glob("comparison/figures/[!.]*"))
    compare(root)
    assert len((root / "comparison/figures/plotly.min.js").read_text()) > 1_000_000


def test_the_terminal_is_brief_and_full_shows_every_table(
    experiment: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    root = experiment(sidecar=True)
    shown = {}
    for flags in ([], ["--full"]):
        assert main([str(root), *flags]) == 0
        shown[bool(flags)] = capsys.readouterr().out
    tables = ("Test loss", "Layers at step")
    behind = ("Specialist budget", "Sidecar of variable", "Symmetry")
    assert [title in shown[full] for full in (False, True) for title in (*tables, *behind)] == [
        True, True, False, False, False, True, True, True, True, True,
    ]  # fmt: skip
    assert f"{root} --full" in "".join(shown[False].split("\n")).replace("  ", "")


def test_command_line(experiment: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [sys.executable, "-m", "orchestrator.compare", str(experiment())]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "Does width decide?" in done.stdout
    assert main([str(tmp_path)]) == 2
    assert names(capsys.readouterr().err, tmp_path, "experiment.yaml")
