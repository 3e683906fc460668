"""A cell whose multipliers a sidecar chooses resumes bitwise; its checkpoints and costs include the sidecar."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from orchestrator.common.errors import UserError
from orchestrator.experiments.experiment import Cell, decoder_spec, sidecar_flops, training_flops
from orchestrator.plan.arm import ArmPlan
from orchestrator.storage import checkpoint
from orchestrator.training.trainer import Trainer
from tests.naming import naming
from tests.orchestrator.training.cells import (
    Crash,
    CrashAt,
    SignalAt,
    complete,
    fingerprints,
    new_cell,
    new_experiment,
    rows,
    run_with,
)

EVERYTHING = (
    "sidecar=decay", "sidecar.channels=[decay,lr_scale,residual_gain]", "sidecar.unexplained=0.5",
    "sidecar.features=[kind,log_norm,momentum_alignment,row_cv,progress]", "sidecar.policy=mlp",
)  # fmt: skip
FORKS = (
    "sidecar=decay", "sidecar.channels=[decay,residual_gain]", "sidecar.credit=forks", "sidecar.pairs=1",
    "++sidecar.coefficients={decay: {depth: 0.1, time: 0.2}, residual_gain: {amount: 0.1}}",
    "optim.lr=0.002", "optim.weight_decay=2.5", "sidecar.horizon=0.02",
)  # fmt: skip
TRACED = ("sidecar=decay", "sidecar.channels=[decay,lr_scale]", "sidecar.trace=run", "sidecar.unexplained=0")


@pytest.mark.parametrize(
    "options",
    [
        ["sidecar=decay"],
        ["sidecar=decay", "sidecar.credit=joint", "sidecar.mean_matched=true"],
        EVERYTHING,
        FORKS,
        TRACED,
    ],
)
def test_resuming_is_bitwise_with_the_sidecar_on(small: list[str], tmp_path: Path, options: Sequence[str]) -> None:
    overrides = [
        *small,
        *options,
        "sidecar.interval=3",
        "sidecar.warmup=0",
        "sidecar.sigma=1.0",
        "train.keep_checkpoints=1",
    ]
    whole, broken = (new_cell([*overrides, f"name={name}"], tmp_path) for name in ("whole", "broken"))
    assert complete(whole)
    for step in (5, 7, 10):
        with pytest.raises(Crash):
            run_with(broken, CrashAt(step))
    assert run_with(broken, SignalAt(11, signal.SIGTERM)) is False
    assert complete(broken)
    assert fingerprints(broken) == fingerprints(whole)
    assert rows(broken) == rows(whole)
    decisions = [r["sidecar"] for r in rows(whole) if "sidecar" in r]
    assert [d["step"] for d in decisions] == [0, 3, 6, 9]  # what would be proposed at 12, no step would follow
    assert decisions[0]["values"] != decisions[1]["values"]
    steps = [checkpoint.step_of(p) for p in checkpoint.saved(whole.directory / "checkpoints")]
    assert steps == [0, 12], "only the newest and the reference are kept"


def test_forks_are_planned_and_counted_and_leave_no_trace(small: list[str], tmp_path: Path) -> None:
    options = [*small, *FORKS, "sidecar.interval=3", "train.log_every=1"]
    forking = new_cell([*options, "sidecar.policy_lr=0", "name=forking"], tmp_path)
    plain = new_cell([*options, "sidecar.mode=replay", "name=plain"], tmp_path)
    assert complete(forking)
    assert complete(plain)
    weights = "checkpoints/step_00000012/model.safetensors"
    assert fingerprints(forking)[weights] == fingerprints(plain)[weights]
    for one, other in zip(rows(forking), rows(plain), strict=True):
        for key in ("step", "tokens", "lr", "loss", "grad_norm", "digest", "heldout"):
            assert one.get(key) == other.get(key)
    last = [r["sidecar"] for r in rows(forking) if "sidecar" in r][-1]
    assert last["fork_steps"] == 2 * (4 + 4 + 4 + 3)  # 0.02 memories of 200 steps, or to the end
    plan = ArmPlan("main", forking.config, decoder_spec(forking.config))
    beside = sidecar_flops(forking.config, plan.spec, last["evaluations"], last["backwards"], last["fork_steps"])
    assert plan.flops == pytest.approx(training_flops(forking.config, plan.spec) + beside)


def test_a_checkpoint_holds_the_model_that_its_gains_make(small: list[str], tmp_path: Path) -> None:
    """Whoever reads it, forensics and rivals included, gets the held-out loss that the metrics log has."""
    options = ["sidecar=all", "sidecar.interval=3", "sidecar.warmup=0"]
    cell = new_cell([*small, *options], tmp_path)
    assert complete(cell)
    path = checkpoint.path_of(cell.directory / "checkpoints", 12)
    run = Trainer(cell.config, cell.directory, 1, [])
    run.model.load_state_dict(checkpoint.read_tensors(path, "model"))
    gains = [r["sidecar"] for r in rows(cell) if "sidecar" in r][-1]["values"]["residual_gain"]
    assert len(set(gains.values())) == 6
    for domain, loss in rows(cell)[-1]["heldout"].items():
        # the last decision, which is in force in the checkpoint, was made before the loss was measured
        assert run.heldout.mean(run.corpus.heldout(domain, "validation")) == pytest.approx(loss, rel=1e-6)
    trained = checkpoint.read_tensors(path, "masters")
    assert set(trained) == {f"{unit}.weight" for unit in gains}
    name = "model.layers.1.post_feedforward_layernorm.weight"
    assert torch.equal(checkpoint.read_tensors(path, "model")[name], trained[name] * torch.tensor(gains[name[:-7]]))


@pytest.mark.parametrize(
    "sidecar",
    [
        ["sidecar=decay", "sidecar.mode=fixed", "sidecar.channels=[decay,lr_scale,residual_gain]"],
        ["sidecar=decay_by_depth", "sidecar.coefficients.decay.depth=0", "sidecar.interval=4",
         "+sidecar.coefficients.decay={time: 0, embedding: 0}"],
    ],
)  # fmt: skip
def test_multipliers_of_one_are_bitwise_the_run_without_a_sidecar(
    whole: Cell, small: list[str], tmp_path: Path, sidecar: list[str]
) -> None:
    cell = new_cell([*small, *sidecar], tmp_path)
    assert complete(cell)
    assert fingerprints(cell) == fingerprints(whole)
    assert [{key: row[key] for key in row if key != "sidecar"} for row in rows(cell)] == rows(whole)


def test_a_run_replayed_is_that_run_and_its_layers_exchanged_are_another(small: list[str], tmp_path: Path) -> None:
    modes = ("replay", "permute", "random")
    others = [f"{mode}: ['sidecar=decay','sidecar.mode={mode}','needs=a']" for mode in modes]
    arms = f"++arms={{a: ['sidecar=decay'], {', '.join(others)}}}"
    every = ["sidecar.interval=3", "sidecar.warmup=0", "sidecar.sigma=1.0"]
    overrides = [*small, arms, "declared=[sidecar,needs]", "seeds=[0,1]", *every]
    cells = {cell.id: cell for cell in new_experiment(overrides, tmp_path).cells}
    with pytest.raises(UserError, match=naming("needs=a", cells["a/seed=0"].directory, "finished")):
        complete(cells["replay/seed=0"])
    for arm in ("a", *modes):
        assert complete(cells[f"{arm}/seed=0"])
    learned, replayed, permuted, dealt = (cells[f"{arm}/seed=0"] for arm in ("a", "replay", "permute", "random"))
    weights = "checkpoints/step_00000012/model.safetensors"
    assert fingerprints(replayed)[weights] == fingerprints(learned)[weights]
    assert fingerprints(permuted)[weights] != fingerprints(learned)[weights]
    values = [[r["sidecar"]["values"]["decay"] for r in rows(c) if "sidecar" in r] for c in (learned, permuted, dealt)]
    for one, others in zip(values[0], zip(*values[1:], strict=True), strict=True):
        for other in others:
            ratios = np.sort(list(other.values())) / np.sort(list(one.values()))
            assert ratios == pytest.approx(ratios[0], rel=1e-9)  # dealt to unlike sizes, they are scaled alike
            assert one != other
    assert rows(permuted)[0]["sidecar"]["summary"]["decay"]["mean"] == pytest.approx(
        rows(learned)[0]["sidecar"]["summary"]["decay"]["mean"]
    )


def test_a_run_of_the_rivals_of_learned_decay_resumes_bitwise(small: list[str], tmp_path: Path) -> None:
    rivals = (
        "model.width=56", "sidecar=alpha_decay", "sidecar.interval=5", "optim.decay=cautious",
        "++optim.layer_lr={early: 0.3, late: -0.3}", "train.eval_every=12", "forensics.every=12",
    )  # fmt: skip
    whole, cell = (new_cell([*small, *rivals], tmp_path / name) for name in ("whole", "cut"))
    assert complete(whole)
    with pytest.raises(Crash):
        run_with(cell, CrashAt(7))
    assert complete(cell)
    assert fingerprints(cell) == fingerprints(whole)
    assert rows(cell) == rows(whole)
    decided = [row["step"] for row in rows(whole) if "sidecar" in row]
    assert decided == [0, 5, 10]
