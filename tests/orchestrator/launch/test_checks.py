"""Slurm is asked before anything is submitted, and its refusal names the key that helps."""

from __future__ import annotations

import pytest

from orchestrator.common.errors import UserError
from orchestrator.launch import checks
from orchestrator.plan.cost import cost_of
from orchestrator.plan.view import warnings
from tests.naming import names, naming
from tests.orchestrator.launch.cluster import FOUR, Made
from tests.orchestrator.schedulers.scripted import Scripted


def test_no_answer_is_no_reason_to_mend_the_configuration(made: Made, cluster: Scripted) -> None:
    experiment = made(*FOUR)
    cluster.says("says", "allocation failure: Unable to contact slurm controller (connect failure)\n")
    with pytest.raises(UserError, match="not answer") as caught:
        checks.check_jobs(experiment)
    assert "mend" not in str(caught.value)
    cluster.says("says", "allocation failure: Invalid qos specification\n")
    with pytest.raises(UserError, match=naming("Invalid qos specification", "launcher.slurm")):
        checks.check_jobs(experiment)


@pytest.mark.parametrize(("array", "expected"), [("true", ["#SBATCH --array=0-3%4"]), ("false", [])])
def test_slurm_is_asked_for_the_array_that_will_be_submitted(
    made: Made, cluster: Scripted, array: str, expected: list[str]
) -> None:
    cluster.says("says", "allocation failure: Invalid job array specification\n")
    with pytest.raises(UserError) as caught:
        checks.check_jobs(made(*FOUR, f"launcher.slurm.array={array}"))
    lines = (cluster.root / "tested").read_text().splitlines()
    assert [line for line in lines if "--array" in line] == expected
    assert "launcher.slurm.array=false" in str(caught.value)


@pytest.mark.parametrize(
    ("said", "cure"),
    [
        ("allocation failure: Invalid generic resource (gres) specification", "launcher.slurm.gpus"),
        ("invalid partition specified: gpu", "launcher.slurm.partition"),
        ("allocation failure: Invalid node name specified", "launcher.slurm.options"),
        ("allocation failure: Invalid account or account/partition combination specified", "launcher.slurm"),
        ("something new", "launcher.timeout_hours"),
    ],
)
def test_a_refusal_names_the_key_that_helps_also_in_a_dry_run(
    made: Made, cluster: Scripted, said: str, cure: str
) -> None:
    experiment = made("seeds=[0]")
    cluster.says("says", f"sbatch: error: {said}\n")
    with pytest.raises(UserError, match=naming("Slurm", said.removeprefix("allocation failure: "), cure)):
        checks.check_jobs(experiment)
    assert names(next(warnings(cost_of(experiment))), cure)
