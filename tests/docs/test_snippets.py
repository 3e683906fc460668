"""Every command and every snippet of README.md and docs/ works as it is written there."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import pytest
import yaml

from tests.docs.pages import (
    LANGUAGES,
    PAGES,
    ROOT,
    Block,
    Section,
    apply,
    blocks_of,
    call,
    check,
    copy_code,
    reduced,
)

BLOCKS = [block for page in PAGES for block in blocks_of(page)]
SECTIONS = [list(group) for _, group in groupby(BLOCKS, key=lambda block: (block.page, block.section))]
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
TRAIN = ["python", "-m", "orchestrator", "+experiment=width_ablation", "seeds=[0,1]"]


def parameters(*languages: str, run: bool) -> list[object]:
    """One per block in these languages that is run, or that is only parsed."""
    chosen = [block for block in BLOCKS if block.language in languages and bool(block.needs) != run]
    return [pytest.param(block, id=block.name, marks=[pytest.mark.slow] * block.slow) for block in chosen]


@pytest.fixture(scope="session")
def narrow(small_cell: tuple[str, ...]) -> tuple[str, ...]:
    """Small cells with the layers of the default model, which the pages name."""
    return tuple("model.layers=11" if word.startswith("model.layers=") else word for word in small_cell)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, narrow: tuple[str, ...]) -> Path:
    """A directory in which the default experiment was run, reduced; every process of the test run shares it."""
    shared = tmp_path_factory.getbasetemp()
    shared = (shared.parent if shared.name.startswith("popen-") else shared) / "documented"
    shared.mkdir(exist_ok=True)
    with (shared / ".lock").open("w") as lock, pytest.MonkeyPatch.context() as monkeypatch:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (shared / "outputs/width_ablation/comparison/report.html").exists():
            assert call(reduced(TRAIN, narrow), shared, monkeypatch) == 0
    return shared


@pytest.fixture(scope="session")
def sections(
    tmp_path_factory: pytest.TempPathFactory, small_cell: tuple[str, ...], narrow: tuple[str, ...]
) -> dict[tuple[str, str], Section]:
    """Page and heading → its blocks, in a directory of their own that is laid out when the first of them is run."""
    base = tmp_path_factory.mktemp("sections")
    found = (Section(blocks, base / str(number), small_cell) for number, blocks in enumerate(SECTIONS))
    return {
        (one.blocks[0].page, one.blocks[0].section): replace(one, small=narrow) if one.has_outputs else one
        for one in found
    }


def section_of(block: Block, sections: dict[tuple[str, str], Section], trained: Path) -> Section:
    section = sections[block.page, block.section]
    if not section.directory.exists():
        section.prepare(trained)
    return section


@pytest.mark.parametrize("block", parameters("sh", "python", "yaml", "diff", run=True))
def test_a_block_runs(
    block: Block, sections: dict[tuple[str, str], Section], trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section_of(block, sections, trained).run(block, monkeypatch)


@pytest.mark.parametrize("block", parameters("sh", "python", "yaml", run=False))
def test_a_block_that_cannot_run_here_parses(
    block: Block, sections: dict[tuple[str, str], Section], trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = section_of(block, sections, trained)
    for above in section.blocks[: section.blocks.index(block)]:
        if above.file and not above.needs:
            section.run(above, monkeypatch)
    check(block, section.directory, monkeypatch)


LINTS = ("python docs/generate_keys.py", "ruff check .", "ruff format --check .", "mypy", "lint-imports")


@pytest.mark.slow
def test_all_recipes_together_pass_the_linters(tmp_path: Path) -> None:
    copy_code(tmp_path)
    if (checked := ROOT / ".mypy_cache").exists():  # what no recipe changes, torch above all, is checked there
        shutil.copytree(checked, tmp_path / checked.name)
    for block in BLOCKS:
        if block.page == "recipes.md" and block.file:
            apply(block, tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}
    for command in LINTS:
        done = subprocess.run(["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stdout[-8000:]}{done.stderr[-2000:]}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_has_no_block_that_nobody_runs(page: Path) -> None:
    blocks = blocks_of(page)
    assert [block.name for block in blocks if block.language not in LANGUAGES] == []
    fenced = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    assert re.findall(r"\n\n    \S.*", fenced) == [], "an indented block: fence it, so that it is run"
    for block in (block for block in blocks if block.file):
        name = Path(block.file or "").stem
        after = [b for b in blocks if b.section == block.section and b.line > block.line and b.language != "text"]
        assert any(b.language in ("sh", "python") for b in after), f"{block.name}: no command uses {name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_pictures_lie_in_the_repository(page: Path) -> None:
    for target in LINK.findall(page.read_text()):
        if not target.startswith(("http://", "https://", "mailto:")):
            assert (page.parent / target).resolve().exists(), target


@pytest.mark.parametrize("page", [page for page in PAGES if page.parent != ROOT], ids=lambda page: page.name)
def test_the_readme_names_every_page(page: Path) -> None:
    assert f"(docs/{page.name})" in (ROOT / "README.md").read_text()


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "yaml"], ids=lambda block: block.name)
def test_yaml_names_its_file_and_is_yaml(block: Block) -> None:
    assert block.file is not None, "its first line names the file: # my-conf/experiment/mine.yaml"
    assert isinstance(yaml.safe_load(block.text), dict)


def messages() -> list[str]:
    """The messages in the first column of troubleshooting's tables."""
    lines = (ROOT / "docs/troubleshooting.md").read_text().partition("## Starting")[2].splitlines()
    return [
        quoted for line in lines if line.startswith("| `") for quoted in re.findall(r"`([^`]+)`", line.split("|")[1])
    ]


@pytest.mark.parametrize("message", messages())
def test_the_program_says_what_troubleshooting_quotes(message: str) -> None:
    files = (path for name in ("orchestrator", "models", "sidecar") for path in (ROOT / name).rglob("*.py"))
    code = re.sub(r'"\s+f?"', "", "\n".join(path.read_text() for path in files))  # as if on one line
    missing = [part for part in re.split(r"\s*…\s*", message) if part not in code]
    assert missing == []
