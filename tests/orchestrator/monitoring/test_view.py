"""The status fits terminals of every width."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console

from orchestrator.forensics.roles.palette import MARKS
from orchestrator.forensics.roles.routing import ROLES
from orchestrator.monitoring import read_status
from orchestrator.monitoring.view import GROUP, View, line, sparkline, strip
from orchestrator.storage import lease

Write = Callable[..., Path]


def shown(root: Path, width: int = 120, *, cropped: bool = False, height: int = 40) -> str:
    file = io.StringIO()
    console = Console(width=width, height=height, file=file)
    console.print(View(root.name, read_status(root), cropped=cropped))
    return file.getvalue()


def test_one_table_where_it_fits_and_two_where_it_does_not(cell: Write) -> None:
    path = cell(readings=("H..S......D", "HP.S......."))
    cell("variable", state=None, losses=())
    with lease.hold(path):
        wide, narrow = (shown(path.parents[1], width) for width in (120, 80))
    (row,) = [text for text in wide.splitlines() if text.startswith("uniform/seed=0")]
    assert row.split() == [
        "uniform/seed=0", "running", "━━━━━━━━", "10/100", "2.000", "█▁", "1.500", "0:00:18",
        "20", "HP·S··", "·····", "2",
    ]  # fmt: skip
    assert "10% of" not in wide
    assert "5% of 2 cells  1 running · 1 next" in wide
    rows = [text.split() for text in narrow.splitlines() if text.startswith("uniform/seed=0")]
    assert rows[1] == ["uniform/seed=0", "20", "HP·S··", "·····", "2"]
    assert [text.split()[1] for text in narrow.splitlines() if text.startswith("variable/seed=0")] == ["next"]


def test_a_strip_folds_into_lines_of_equal_length(cell: Write) -> None:
    path = cell(readings=("HDPS.." * 8,))
    told = shown(path.parents[1], 80).splitlines()
    (first,) = [index for index, text in enumerate(told) if "HDPS··" in text][:1]
    assert [text.count("HDPS··") for text in told[first : first + 3]] == [4, 4, 0]


@pytest.mark.parametrize("width", [20, 40, 60, 80, 100, 200])
@pytest.mark.parametrize("depth", [1, 11, 24, 48, 96])
def test_strips_fold_and_every_layer_stays(cell: Write, width: int, depth: int) -> None:
    letters = ("HDPS." * depth)[:depth]
    path = cell("variable", readings=(letters,))
    text = shown(path.parents[1], width)
    assert max(map(cell_len, text.splitlines())) <= width
    told, _, _ = text.partition("H hub")
    if width >= 60:
        for letter in "DPS·":
            assert told.count(letter) == letters.replace(".", "·").count(letter)


def test_names_and_reasons_are_text(cell: Write) -> None:
    arm = "[red]a[b] \x1b[2J" + "long" * 20
    path = cell(arm, 7, state="failed", reason="[/] no \x1b]0;x\x07 such\nfile", readings=("HS",), arms=(arm,))
    for width in (80, 200):
        text = shown(path.parents[1], width)
        assert "[red]a[b] \\x1b[2J" in text
        assert "…/seed=7" in text, "the seed is seen however long the arm"
        assert "[/] no \\x1b]0;x\\x07 such file" in " ".join(text.split())
        assert "\x1b" not in text
    assert "\x1b" not in line(read_status(path.parents[1])[0])


def test_alike_alerts_are_said_once(cell: Write) -> None:
    for arm in ("uniform", "variable"):
        for seed in range(3):
            path = cell(arm, seed)
    assert "critical  uniform/seed=0,1,2, variable/seed=0,1,2  lost: " in shown(path.parents[1], 200)
    for seed in range(3, 9):
        cell("variable", seed)
    assert "uniform (3 seeds), variable (9 seeds)  lost" in shown(path.parents[1], 200)
    for arm in ("c", "d"):
        cell(arm, 0)
    assert "14 cells  lost" in shown(path.parents[1], 200)


def test_a_cropped_view_fits_the_screen_and_keeps_what_matters(cell: Write) -> None:
    for seed in range(60):
        path = cell(seed=seed, state="done", readings=("HS",))
    cell(seed=60, state="failed", reason="why", readings=("HS",))
    running = cell(seed=61, readings=("HS",))
    with lease.hold(running):
        for width in (80, 160):
            text = shown(path.parents[1], width, cropped=True, height=24)
            assert len(text.splitlines()) <= 24
            assert "uniform/seed=60  failed" in text
            assert "uniform/seed=61  running" in text
            assert " done\n" in text, "the rest is counted"
    assert len(shown(path.parents[1], 160).splitlines()) > 62


def test_a_sparkline_by_hand() -> None:
    assert sparkline([1.0, 2.0, 3.0, 8.0]) == "▁▂▃█"
    assert sparkline([2.0, 2.0]) == "▁▁"
    assert sparkline([2.0]) == sparkline([]) == ""


def test_a_strip_carries_the_palettes_letters_and_colours() -> None:
    text = strip([*ROLES, "hub/damper"] * 2)
    assert text.plain.replace(" ", "") == "HDPS·HDPS·"
    assert text.plain.split()[0] == text.plain[:GROUP]
    styles = {text.plain[span.start]: span.style for span in text.spans if text.plain[span.start] != " "}
    assert {mark.letter: styles[mark.letter] for mark in MARKS.values()} == {m.letter: m.colour for m in MARKS.values()}
