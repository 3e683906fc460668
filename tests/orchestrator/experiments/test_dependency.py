"""`needs` names a cell and orders the cells; mistakes are refused before anything is trained."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.common.errors import UserError
from orchestrator.config.compose import compose
from orchestrator.experiments.dependency import needed_cell
from orchestrator.experiments.experiment import Cell, experiment_of
from orchestrator.launch.jobs import is_ready, waves
from tests.naming import naming

pytestmark = pytest.mark.usefixtures("hydra")

REPLAY = "'sidecar=decay','sidecar.mode=replay'"
ARMS = f"++arms={{learned: ['sidecar=decay'], replayed: [{REPLAY},'needs=learned@next']}}"


def cells(*overrides: str) -> tuple[Cell, ...]:
    return experiment_of([*overrides, "name=played"], compose).cells


def test_the_next_seed_is_the_next_and_the_last_ones_is_the_first() -> None:
    found = cells(ARMS, "declared=[sidecar,needs]", "seeds=[4,2,9]")
    needed = [needed_cell(cell.config, Path("out/played")) for cell in found]
    assert needed == [None] * 3 + [Path(f"out/played/learned/seed={seed}") for seed in (2, 9, 4)]


def test_a_cell_waits_for_the_one_that_it_needs() -> None:
    learned, other, replayed, last = cells(ARMS, "declared=[sidecar,needs]", "seeds=[0,1]")
    assert needed_cell(replayed.config, replayed.directory.parents[1]) == other.directory
    ready = [is_ready(cell, [replayed, last, other]) for cell in (replayed, last)]
    assert ready == [False, True], "`last` needs the finished `learned`"
    assert not is_ready(replayed, [replayed, last, other, learned])
    assert not is_ready(last, [replayed, last, other, learned])
    assert is_ready(replayed, [replayed, last])


def test_any_arm_may_need_another_and_chains_run_in_order() -> None:
    arms = "++arms={last: ['needs=middle'], middle: ['needs=first'], first: []}"
    last, middle, first = cells(arms, "declared=[needs]", "seeds=[3]")
    assert waves([last, middle, first]) == [[first], [middle], [last]]


@pytest.mark.parametrize(
    ("arms", "seeds", "named"),
    [
        ("{a: ['needs=b'], b: ['needs=a']}", "[0,1]", ["Arm 'a'", "needs=b", "a needs b needs a"]),
        ("{a: ['needs=b@next'], b: ['needs=a']}", "[0,1]", ["Arm 'a'", "needs=b@next", "a needs b needs a"]),
        ("{a: ['needs=a'], b: []}", "[0,1]", ["Arm 'a'", "needs=a", "a needs a"]),
        ("{a: [], b: ['needs=c'], c: ['needs=b']}", "[0]", ["Arm 'b'", "needs=c", "b needs c needs b"]),
        ("{a: [], b: ['needs=nobody']}", "[0]", ["Arm 'b'", "needs=nobody", "a, b"]),
        ("{a: [], b: ['needs=a@last']}", "[0]", ["Arm 'b'", "needs=a@last", "a, b", "@next"]),
        ("{a: [], b: ['needs=no/where']}", "[0]", ["Arm 'b'", "needs=no/where", "metrics.jsonl"]),
        ("{a: [], b: ['needs=a@next']}", "[3]", ["needs=a@next", "seeds=[3]"]),
        ("{a: [], b: ['needs=a@next']}", "auto", ["Arm 'b'", "needs=a@next", "seeds=auto", "needs=a"]),
    ],
)  # fmt: skip
def test_what_can_never_be_there_is_refused(arms: str, seeds: str, named: list[str]) -> None:
    with pytest.raises(UserError, match=naming(*named)):
        cells(f"++arms={arms}", "declared=[needs]", f"seeds={seeds}")


def test_needs_is_declared_like_any_other_key() -> None:
    with pytest.raises(UserError, match=naming("needs", "None against a", "'declared'")):
        cells("++arms={a: [], b: ['needs=a']}", "seeds=[0]")
