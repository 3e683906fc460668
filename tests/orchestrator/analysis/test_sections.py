"""The tables' definitions are those of their columns, and their numbers belong together."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from orchestrator.analysis.comparison import Comparison, compute
from orchestrator.analysis.figures import FIGURES
from orchestrator.analysis.report.chapters import CHAPTERS, chapters
from orchestrator.analysis.report.glossary import GLOSSARY, term_of
from orchestrator.analysis.report.render import ENVIRONMENT
from orchestrator.analysis.sections import expectations, glance, layers, losses, sections, trajectory
from orchestrator.analysis.sections.section import Section
from orchestrator.analysis.statistics import holm
from tests.naming import names

Write = Callable[..., Path]
table = ENVIRONMENT.get_template("parts.html.j2").module.table
Edit = Callable[[Path, Callable[[list[dict]], object]], None]


def term(section: Section, head: str) -> str | None:
    """The definition that the head of a column opens in the page."""
    names = [name.split("\n")[0] for name in section.columns]
    cell = re.findall(r'<th scope="col">.*?</th>', table(section), re.DOTALL)[names.index(head)]
    found = re.search(r"#define-(\w+)", cell)
    return found[1] if found else None


@pytest.fixture
def rich(experiment: Write) -> Comparison:
    """A comparison with every table."""
    root = experiment(
        arms=("q", "variable", "p"), seeds=range(6), steps=range(0, 600, 50), sidecar=True,
        contrasts={"x": {"variable": 1, "q": -1}},
    )  # fmt: skip
    path = root / "experiment.yaml"
    spec = yaml.safe_load(path.read_text()) | {"expect": {"centre": "> 0.1"}}
    path.write_text(yaml.safe_dump(spec, sort_keys=False))
    return compute(root)


def test_a_column_opens_what_it_means_in_its_table(rich: Comparison) -> None:
    c = rich
    by_title = {section.title: section for chapter in chapters(c, FIGURES) for section in chapter.sections}
    differ = by_title["Differences between cells"]
    assert [term(differ, arm) for arm in c.experiment.arms] == [None] * 3  # arms called as terms are
    assert term(trajectory.coincidences(c), "p") == "p_coincidence"
    assert "One-sided" in GLOSSARY["p_coincidence"].text
    assert term(layers.role_shifts(c, "p"), "p") == "role_shift"
    assert term(layers.spreads(c), "p") == "p_spread"
    assert term(losses.arm_losses(c), "Holm") == term(glance(c), "Holm") == "holm"
    assert [term(losses.contrasts(c), head) for head in ("value", "n", "p", "verdict")] == [
        "contrast", "experiment", "p_contrast", "contrast_verdict",
    ]  # fmt: skip
    expected = {"mean": "mean", "95 % interval": "interval", "seeds": "seeds", "verdict": "verdict", "q": "mean"}
    wanted = expectations.verdicts(c)
    for head, name in expected.items():
        assert term(wanted, head) == f"expect_{name}"
    (decay,) = layers.multipliers(c, "variable")
    assert (term(decay, "q"), term(decay, "CV")) == ("sidecar", "flattening")  # q is a projection, no rate of errors
    assert term(losses.paired_losses(c, "p"), "p") == "p"


def test_a_quantity_in_every_row_carries_its_mark_and_does_not_sort(rich: Comparison) -> None:
    page = table(layers.budgets(rich, "variable"))
    for name, key in (("excess b / a", "conservation"), ("shift, b − a", "centre"), ("verdict", "conservation")):
        assert f'<th scope="row">{name}<a class="define" href="#define-{key}"' in page
    assert "<button>" not in page
    assert 'class="define"' not in table(layers.budgets(rich, "variable"), defined=False)


def every_section(c: Comparison) -> Iterator[Section]:
    yield from sections(c)
    yield glance(c)
    for chapter in chapters(c, FIGURES):
        yield from chapter.sections


def test_every_term_is_defined_and_of_a_column(rich: Comparison) -> None:
    for section in every_section(rich):
        rows = [] if section.columns[0] else [row[0] for row in section.rows]
        assert set(section.terms) <= {*section.columns, *rows}, section.title
        opened = {term_of(section, head) for head in section.columns}
        assert opened - {None} <= set(GLOSSARY), section.title


def test_many_arms_open_with_p_for_all_of_them(experiment: Write) -> None:
    c = compute(experiment(arms=tuple("abcdef"), seeds=range(6)))
    section = glance(c)
    p = [r.p for r in c.statistics if (r.metric, r.domain) == ("test_loss", "mean")]
    assert [row[1] for row in section.rows] == [f"{value:.3f}" for value in holm(p)]
    assert section.notes == losses.arm_losses(c).notes
    assert "corrected for 5 arms" in section.notes[0]


def test_an_arm_that_lacks_pairs_says_what_it_is_set_against(experiment: Write, edit_metrics: Edit) -> None:
    def loss(arm: str, seed: int, step: int, domain: str) -> float:
        return 1.0 + seed + (0.1 if arm == "third" else 0.0)

    root = experiment(arms=("uniform", "variable", "third"), seeds=range(6), loss=loss)
    for seed in (0, 1):
        edit_metrics(root / f"third/seed={seed}", lambda records: records[-1].pop("test"))
    for path in root.glob("uniform/seed=0/forensics/*.json"):  # unlike the others, so that the means differ
        reading = json.loads(path.read_text())
        reading["layers"][0]["measures"]["attention_share"] = 0.9
        path.write_text(json.dumps(reading))
    c = compute(root)
    section = losses.arm_losses(c)
    assert [row[1:3] for row in section.rows] == [["4.0000", ""], ["4.0000", "0.0000"], ["5.1000", "+0.1000"]]
    (of_losses,), (of_layers,) = section.notes[1:], layers.spreads(c).notes[1:]
    assert names(of_losses, "third", "seeds 2, 3, 4, 5", "uniform", "5.0000")
    assert names(of_layers, "third", "4 pairs", "uniform", "0.000")


def test_every_figure_names_a_chapter_of_the_report() -> None:
    assert {chapter for chapter, _ in FIGURES.values()} <= {key for key, _, _ in CHAPTERS}
