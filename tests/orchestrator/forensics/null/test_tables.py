"""The null's tables say which measures have a null, and no feature is routed without one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.forensics.analyzer import read_stack
from orchestrator.forensics.architecture.kinds import KINDS
from orchestrator.forensics.architecture.model import CheckpointModel
from orchestrator.forensics.measures.probe import MEASURES as PROBED
from orchestrator.forensics.measures.table import measure
from orchestrator.forensics.null import redrawn
from orchestrator.forensics.null.redrawn import OTHERWISE, RESAMPLED, draws
from orchestrator.forensics.roles.routing import ROUTING
from orchestrator.forensics.roles.scoring import MEASURED, check_nulls
from tests.naming import names, naming

ROOT = Path(__file__).resolve().parents[4]


def test_a_redrawn_layer_has_what_the_tables_name(checkpoint: Callable[..., Any]) -> None:
    ours = checkpoint(widths=(16,) * 3)
    stack, compositions = read_stack(CheckpointModel(ours.write()), torch.device("cpu"))
    for layer in stack.layers:
        layer.threshold = 1.0
    activations = [[dict.fromkeys(PROBED, 0.5) for _ in stack.layers]] * 2
    (first, _) = draws(stack, compositions, 2, 0, activations)
    held = {name for name, value in measure(first.layers[1]).items() if value is not None}
    law = {f"momentum_alignment.{kind}_chance" for kind in KINDS}  # of the shape alone: no null of its own
    assert held - law >= RESAMPLED | set(OTHERWISE)
    assert held >= MEASURED
    assert all(reason.strip() for reason in OTHERWISE.values())


def test_a_measure_of_what_resampling_leaves_as_it_is_has_no_null(checkpoint: Callable[..., Any]) -> None:
    stack, compositions = read_stack(CheckpointModel(checkpoint(widths=(16,)).write()), torch.device("cpu"))
    (null,) = draws(stack, compositions, 1, 0)
    assert null.layers[0].entries["down"].count == stack.layers[0].entries["down"].count
    with pytest.raises(AttributeError, match=naming("entries[…].tail", "RESAMPLED")):
        _ = null.layers[0].entries["down"].tail


def test_a_statistic_that_nobody_redraws_is_refused(
    checkpoint: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    stack, compositions = read_stack(CheckpointModel(checkpoint(widths=(16,)).write()), torch.device("cpu"))
    monkeypatch.setattr(redrawn, "KEPT", redrawn.KEPT - {"loudest"})  # as if it were new
    with pytest.raises(ValueError, match=naming("LayerStatistics.loudest", "_drawn", "KEPT")):
        next(draws(stack, compositions, 1, 0))


def test_a_route_without_a_null_names_itself_and_the_line_to_add() -> None:
    check_nulls()
    routing = {**ROUTING, "hub": ROUTING["hub"] | {"effective_rank.q_fraction": +1}}
    with pytest.raises(ValueError, match=r"effective_rank\.q_fraction.*SPECTRA"):
        check_nulls(routing)
    with pytest.raises(ValueError, match=r"'unheard_of'.*RESAMPLED.*OTHERWISE"):
        check_nulls({"damper": {"unheard_of": -1}})


def test_importing_the_roles_with_such_a_route_fails() -> None:
    program = (
        "from orchestrator.forensics.roles import routing\n"
        "routing.ROUTING['hub']['effective_rank.q_fraction'] = +1\n"
        "import orchestrator.forensics.analyzer\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 1
    assert names(done.stderr, "ValueError", "ROUTING['hub']['effective_rank.q_fraction']")
