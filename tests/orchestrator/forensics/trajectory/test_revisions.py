"""A made directory of a public model's revisions, in Pythia's layout, by one command."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf

from orchestrator.common.errors import UserError
from orchestrator.forensics.__main__ import main
from orchestrator.forensics.weights.sources import revisions
from tests.naming import names, naming

STEPS = [0, 1, 2, 4, 512, *range(1000, 12000, 1000)]
LOUD = {2: 512, 4: 3000}  # layer → the step from which it has a few loud FFN positions


def save_revisions(root: Path) -> None:
    """A GPT-NeoX of six layers, as EleutherAI/pythia-* has its revisions: random weights that jitter a little."""
    torch.manual_seed(0)
    model = hf.GPTNeoXForCausalLM(
        hf.GPTNeoXConfig(
            vocab_size=64, hidden_size=32, num_hidden_layers=6, num_attention_heads=4, intermediate_size=128,
            max_position_embeddings=64,
        )
    )  # fmt: skip
    for step in STEPS:
        with torch.no_grad():
            for layer, since in LOUD.items():
                if step == since:
                    model.gpt_neox.layers[layer].mlp.dense_h_to_4h.weight[:12] *= 4
            for parameter in model.parameters():
                parameter += 5e-4 * torch.randn_like(parameter)
        model.save_pretrained(root / f"step{step}")


@pytest.fixture(scope="module")
def pythia(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("made") / "pythia-tiny"
    save_revisions(root)
    return root


@pytest.fixture(scope="module")
def cache(pythia: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in the hub's cache: branches that name snapshots by their commits; main is the last."""
    root = tmp_path_factory.mktemp("hub") / "models--EleutherAI--pythia-tiny"
    (root / "refs").mkdir(parents=True)
    for step in STEPS:
        commit = f"{step:040x}"
        shutil.copytree(pythia / f"step{step}", root / "snapshots" / commit)
        (root / "refs" / f"step{step}").write_text(commit)
    (root / "refs/main").write_text(f"{STEPS[-1]:040x}")
    return root


@pytest.fixture(scope="module")
def losses(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A noisy loss that falls straight and drops where layer 4 becomes loud."""
    path = tmp_path_factory.mktemp("losses") / "losses.csv"
    noise = 0.01 * np.random.default_rng(0).standard_normal(11001)
    lines = [f"{step},{4 - step / 11000 - (step > 2500) + noise[step]}" for step in range(11001)]
    path.write_text("\n".join(["step,loss", *lines]))
    return path


@pytest.fixture(scope="module")
def read(pythia: Path, losses: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    target = tmp_path_factory.mktemp("read") / "run.json"
    assert main([str(pythia), "--losses", str(losses), "--json", str(target)]) == 0
    return dict(json.loads(target.read_text()))


def test_the_steps_at_which_layers_were_made_loud_are_those_of_their_commitment(read: dict[str, Any]) -> None:
    assert [reading["step"] for reading in read["checkpoints"]] == STEPS
    last = read["checkpoints"][-1]["layers"]
    assert [layer["layer"] for layer in last if layer["role"] == "specialist"] == list(LOUD)
    (roles,) = (of for of in read["trajectory"]["commitment"] if (of["kind"], of["scoring"]) == ("roles", "calibrated"))
    assert (roles["layers"], roles["of"]) == (2, 6)
    assert [roles["reached"][level]["step"] for level in ("0.5", "0.9")] == [512, 3000]
    assert roles["reached"]["0.5"]["by_chance"] > 5000
    assert roles["p"] < 0.01
    assert {of["kind"] for of in read["trajectory"]["commitment"]} == {"roles", "scores"}


def test_the_drop_of_the_loss_meets_the_new_specialist(read: dict[str, Any]) -> None:
    found = {(of["event"], of["scoring"]): of for of in read["trajectory"]["loss_drops"]}
    to_specialist = found["to specialist", "calibrated"]
    assert (to_specialist["drops"], to_specialist["events"], to_specialist["together"]) == (1, 2, 1)
    assert 0 < to_specialist["p"] <= 1


def test_the_hubs_cache_is_read_as_the_directory_is(cache: Path, read: dict[str, Any], tmp_path: Path) -> None:
    assert [step for step, _ in revisions(cache)] == STEPS
    target = tmp_path / "run.json"
    assert main([str(cache), "--json", str(target)]) == 0
    found = json.loads(target.read_text())
    assert found["trajectory"]["commitment"] == read["trajectory"]["commitment"]
    assert found["trajectory"]["loss_drops"] == []


def test_what_has_no_numbered_revisions_is_one_model(cache: Path, tmp_path: Path) -> None:
    lone = tmp_path / cache.name
    shutil.copytree(cache, lone)
    for ref in (lone / "refs").glob("step*"):
        if ref.name != "step11000":
            ref.unlink()
    (lone / "refs/step9000").write_text("f" * 40)  # its snapshot was not fetched whole
    assert revisions(lone) == []
    assert revisions(cache / "snapshots") == []
    target = tmp_path / "one.json"
    assert main([str(lone), "--json", str(target)]) == 0
    assert "layers" in json.loads(target.read_text())
    (lone / "refs/epoch1").write_text(f"{0:040x}")
    with pytest.raises(UserError, match=naming("epoch1", "step11000")):
        revisions(lone)


def test_without_losses_the_page_says_what_they_are_for(
    pythia: Path, losses: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    some = tmp_path / "some"
    for step in STEPS[-9:]:
        (some / f"step{step}").parent.mkdir(exist_ok=True)
        (some / f"step{step}").symlink_to(pythia / f"step{step}")
    assert main([str(some)]) == 0
    page = " ".join(capsys.readouterr().out.split())
    assert names(page, "commitment", "layers that end with a role", "--losses FILE")
    assert main([str(some), "--losses", str(losses)]) == 0
    assert names(" ".join(capsys.readouterr().out.split()), "8 intervals", "10 are needed")
    for step in STEPS[-9:-5]:
        (some / f"step{step}").unlink()
    assert main([str(some), "--losses", str(losses)]) == 0
    page = " ".join(capsys.readouterr().out.split())
    assert names(page, "5 checkpoints were read", "8 are needed", "4 intervals", "10 are needed", "calibrated scoring")
    assert main([str(some / "step11000"), "--losses", str(losses)]) == 2
    assert "--losses" in capsys.readouterr().err
