"""The trials of a search: proposed from the losses alone, in batches, and kept across interruptions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from statistics import median

import pytest

from orchestrator.common.errors import UserError
from orchestrator.config.schema import SearchConfig
from orchestrator.search.study import Study

SEARCH = SearchConfig(space={"optim.lr": "log(1e-4, 1e-2)", "width": ["uniform", "ramp"]}, trials=7, batch=3, seed=5)


def settle(study: Study, number: int) -> None:
    study.tell(number, (float(study.trials()[number].settings["optim.lr"]) * 1e3 - 2.0) ** 2)


def run(directory: Path, *, reopened: bool = False) -> list[dict[str, str]]:
    """The settings of all trials; `reopened`: the study is opened anew after each step, as after an interruption."""
    study = Study(directory, SEARCH, 100)
    while numbers := study.propose():
        for number in numbers:
            settle(Study(directory, SEARCH, 100) if reopened else study, number)
        study = Study(directory, SEARCH, 100) if reopened else study
    return [trial.settings for trial in study.trials()]


def test_an_interrupted_search_proposes_what_a_whole_one_does(tmp_path: Path) -> None:
    whole = run(tmp_path / "a")
    assert run(tmp_path / "b", reopened=True) == whole
    assert len(whole) == SEARCH.trials
    assert len({str(one) for one in whole}) == SEARCH.trials


def test_a_batch_is_proposed_together_and_waits_for_its_losses(tmp_path: Path) -> None:
    study = Study(tmp_path, SEARCH, 100)
    assert study.propose() == [0, 1, 2]
    settle(study, 0)
    assert study.propose() == [1, 2]
    study.tell(1, None)  # failed
    settle(study, 2)
    assert study.propose() == [3, 4, 5]
    assert [trial.name for trial in study.trials()] == [f"trial_{n}" for n in range(6)]


def test_the_losses_guide_the_proposals(tmp_path: Path) -> None:
    many = replace(SEARCH, trials=40, batch=4)
    study = Study(tmp_path, many, 100)
    while numbers := study.propose():
        for number in numbers:
            settle(study, number)
    gaps = [abs(float(trial.settings["optim.lr"]) * 1e3 - 2.0) for trial in study.trials()]
    assert median(gaps[-12:]) < 0.5 * median(gaps[:12])


def test_more_trials_go_on_and_another_search_is_refused(tmp_path: Path) -> None:
    done = run(tmp_path)
    more = Study(tmp_path, replace(SEARCH, trials=9), 100)
    assert more.propose() == [7, 8]
    assert [trial.settings for trial in more.trials()][:7] == done
    for other in (
        replace(SEARCH, seed=6),
        replace(SEARCH, space={"optim.lr": "log(1e-4, 1e-1)"}),
        replace(SEARCH, batch=2),
    ):
        with pytest.raises(UserError, match=r"search\."):
            Study(tmp_path, other, 100)


def test_losses_of_other_lengths_are_refused(tmp_path: Path) -> None:
    Study(tmp_path, SEARCH, 100)
    with pytest.raises(UserError, match="its steps"):
        Study(tmp_path, SEARCH, 200)


def test_a_torn_line_is_dropped_and_a_broken_file_is_named(tmp_path: Path) -> None:
    whole = run(tmp_path)
    log = tmp_path / "study.log"
    content = log.read_bytes()
    log.write_bytes(content + content.splitlines()[-1][:20])
    assert [trial.settings for trial in Study(tmp_path, SEARCH, 100).trials()] == whole
    assert log.read_bytes().startswith(content)
    log.write_bytes(b"{\n" + content)
    with pytest.raises(UserError, match=r"study\.log"):
        Study(tmp_path, SEARCH, 100)
