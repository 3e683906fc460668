"""Additions to an experiment are reported if its cells had finished before, and only then."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.analysis import compare
from orchestrator.analysis.cells import read_experiment
from orchestrator.analysis.comparison import compute
from orchestrator.analysis.late_changes import Change, late_changes, notes
from orchestrator.analysis.sections import sections
from orchestrator.common.errors import UserError
from orchestrator.storage import metrics_log
from tests.naming import names, naming

Write = Callable[..., Path]
BEFORE, DONE, AFTER, LATER = (f"2026-03-0{day}T10:00:00+00:00" for day in (1, 2, 3, 4))
FIRST = {"b - a": {"variable": 1, "uniform": -1}}
OTHER = {"a - b": {"uniform": 1, "variable": -1}}


def entry(since: str, **what: Any) -> dict[str, Any]:
    return {"since": since, "seeds": [0, 1], "contrasts": FIRST, "expect": {"variable": {"late": "hub"}}} | what


def launched(root: Path, *entries: dict[str, Any], done: str | None = DONE) -> Path:
    """An experiment that says what its last entry does, with a cell that finished at `done`."""
    path = root / "experiment.yaml"
    now = {key: entries[-1][key] for key in ("seeds", "contrasts", "expect")}
    spec = yaml.safe_load(path.read_text()) | json.loads(json.dumps(now | {"history": entries}))
    path.write_text(yaml.safe_dump(spec, sort_keys=False))
    twice = [(BEFORE, "running"), (done, "done"), (LATER, "running"), (LATER, "done")]
    for time, state in twice if done else []:
        record = {"time": time, "cell": "uniform/seed=0", "state": state, "attempt": 1, "job": "", "reason": ""}
        metrics_log.append(root / "events.jsonl", record)
    return root


def test_what_was_added_before_a_cell_had_finished_is_not_late(experiment: Write) -> None:
    root = experiment(seeds=(0, 1, 2))
    entries = entry(BEFORE), entry(BEFORE, seeds=[0, 1, 2], contrasts=FIRST | OTHER, expect={"last": "hub"})
    assert late_changes(read_experiment(launched(root, *entries))) == []
    unfinished = launched(experiment(name="b"), entry(BEFORE), entry(AFTER, contrasts={}), done=None)
    assert late_changes(read_experiment(unfinished)) == []
    assert late_changes(read_experiment(experiment(name="old"))) == []  # it keeps no such list


def test_what_was_added_after_is_told_wherever_results_are(experiment: Write) -> None:
    later = {"centre": "> 0.1"}
    root = launched(
        experiment(seeds=(0, 1, 4, 5)),
        entry(BEFORE),
        entry(
            AFTER, seeds=[0, 1, 4, 5], contrasts=FIRST | OTHER, expect={"variable": {"late": "hub"}, "uniform": later}
        ),
    )
    c = compare(root)
    told = [note for note in c.notes if "2026-03-03" in note]
    for note, named in zip(told, ("Seeds 4, 5", "'a - b'", "'uniform: centre > 0.1'"), strict=True):
        assert names(note, named, "added on 2026-03-03")
    assert set(told) <= set(json.loads((root / "comparison/verdict.json").read_text())["notes"])
    shown = [row[0] for section in sections(c) if section.columns[0] in ("contrast", "wanted") for row in section.rows]
    marked = [str(name) for name in shown if "afterwards" in str(name)]
    assert [name.partition(" (")[0] for name in marked] == ["a - b", "uniform: centre > 0.1"]
    assert {"b - a", "variable: late hub > 0.5"} <= set(shown)


def test_other_weights_another_order_and_a_withdrawal_are_changes(experiment: Write) -> None:
    heavier = {"b - a": {"variable": 2, "uniform": -2}}
    entries = (
        entry(BEFORE, contrasts=FIRST | OTHER),
        entry(AFTER, contrasts=OTHER | heavier),
        entry(LATER, contrasts=OTHER, expect={}),
    )
    root = launched(experiment(), *entries)
    assert late_changes(read_experiment(root)) == [
        Change("contrasts", "b - a", "changed", "2026-03-03"),
        Change("contrasts", "the order of the contrasts", "changed", "2026-03-03"),
        Change("contrasts", "b - a", "withdrawn", "2026-03-04"),
        Change("expect", "variable: late hub > 0.5", "withdrawn", "2026-03-04"),
    ]
    assert all(note.endswith(".") and "  " not in note for note in notes(read_experiment(root)))
    assert compute(root).contrasts[0].contrast == "a - b"


@pytest.mark.parametrize(
    "broken", ["x", {"since": BEFORE}, entry(BEFORE) | {"seeds": 3}, entry(BEFORE) | {"decide": 3}]
)
def test_a_broken_entry_is_a_sentence(experiment: Write, broken: Any) -> None:
    path = experiment() / "experiment.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"history": [broken]}))
    with pytest.raises(UserError, match=naming(path, "history.0")) as caught:
        read_experiment(path.parent)
    assert "\n" not in str(caught.value)


def test_arms_and_lengths_that_changed_late_are_told(experiment: Write) -> None:
    before = entry(BEFORE, arms=["uniform"], steps={"uniform": 50})
    after = entry(AFTER, arms=["uniform", "variable"], steps={"uniform": 100, "variable": 100})
    found = read_experiment(launched(experiment(), entry(BEFORE), before, after))  # the first is of an older version
    assert [(change.kind, change.name, change.how) for change in late_changes(found)] == [
        ("arms", "variable", "added"), ("steps", "uniform", "extended"),
    ]  # fmt: skip
    added, extended = notes(found)
    assert names(added, "variable", "added")
    assert names(extended, "uniform", "extended")


@pytest.mark.parametrize(("before", "now", "silent"), [(True, True, True), (True, False, False), (False, True, False)])
def test_late_seeds_are_told_unless_both_launches_add_them_by_themselves(
    experiment: Write, before: bool, now: bool, silent: bool
) -> None:
    entries = entry(BEFORE, decide={"auto": before}), entry(AFTER, seeds=[0, 1, 2], decide={"auto": now})
    told = notes(read_experiment(launched(experiment(seeds=(0, 1, 2)), *entries)))
    assert bool(told) != silent
    for sentence in told:
        assert names(sentence, "Seed 2", "fixed beforehand")


def test_a_margin_that_changed_late_is_told(experiment: Write) -> None:
    margins = (BEFORE, 0.01), (AFTER, 0.0025), (AFTER, 0.005)
    entries = [entry(since, decide={"auto": False, "margin": margin, "max": 12}) for since, margin in margins]
    found = read_experiment(launched(experiment(), *entries))
    assert [(change.kind, change.how) for change in late_changes(found)] == [("decide", "changed")] * 2
    (told,) = notes(found)
    assert names(told, "decide.margin", "was changed on 2026-03-03", "margin was fixed beforehand")
    other = [entry(BEFORE, decide={"margin": 0.01}), entry(AFTER, decide={"margin": 0.01, "max": 30})]
    assert late_changes(read_experiment(launched(experiment(name="b"), *other))) == []
    older = [entry(BEFORE), entry(AFTER, decide={"margin": 0.01})]  # which recorded no margin
    assert late_changes(read_experiment(launched(experiment(name="c"), *older))) == []
