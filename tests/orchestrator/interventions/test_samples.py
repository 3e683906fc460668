"""A model's own samples follow its own distribution, whatever family it is of."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from orchestrator import export
from orchestrator.common.errors import UserError
from orchestrator.intervene import main
from orchestrator.interventions import samples
from orchestrator.interventions.samples import DOMAIN, sampled
from tests.naming import names
from tests.orchestrator.interventions.models import model_of, subject_of


def chatty() -> torch.nn.Module:
    """A model with settings of its own for generation, such as chat models bring."""
    model: Any = model_of("llama")
    model.generation_config = transformers.GenerationConfig(
        do_sample=True, temperature=0.2, top_p=0.5, top_k=3, repetition_penalty=2.0, eos_token_id=7, max_length=5
    )
    return model


@pytest.mark.parametrize("family", ["ours, pre", "llama", "gemma2", "llama with settings"])
def test_their_loss_is_the_entropy(family: str) -> None:
    """The mean of −log p(token) under p is p's entropy; the 4.5 standard errors are by the terms' own spread."""
    subject = subject_of("llama", chatty()) if family == "llama with settings" else subject_of(family)
    state = torch.get_rng_state()
    documents = sampled(subject, 200, 12)
    assert torch.equal(torch.get_rng_state(), state)
    tokens = torch.tensor([document.tokens for document in documents])
    assert tokens.shape == (200, 12)
    assert {document.domain for document in documents} == {DOMAIN}
    with torch.no_grad():
        said = subject.run(tokens, torch.ones_like(tokens, dtype=torch.bool))[:, :-1].log_softmax(-1)
    surprise = -said.gather(-1, tokens[:, 1:, None]).squeeze(-1) + (said.exp() * said).sum(-1)
    error = surprise.mean(1).std() / len(tokens) ** 0.5
    assert abs(surprise.mean()) < 4.5 * error
    assert sampled(subject, 200, 12) == documents
    assert sampled(subject, 3, None)[0].tokens[:1] == documents[0].tokens[:1]


@pytest.mark.parametrize("family", ["ours, pre", "llama"])
def test_a_group_of_them_depends_on_seed_and_place_alone(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever was drawn before, and however many groups there are."""
    monkeypatch.setattr(samples, "AT_ONCE", 24)  # two texts at once
    subject, done = subject_of(family), {}
    whole = sampled(subject, 6, 12, done=done)
    assert len({document.tokens for document in whole}) == 6
    assert sampled(subject, 4, 12) == whole[:4]
    torch.rand(9)
    assert sampled(subject, 6, 12, done={key: of for key, of in done.items() if key[0] != 1}) == whole
    assert sampled(subject, 6, 12, done={key: of for key, of in done.items() if key[0] == 2}) == whole
    assert {rows.shape for rows in done.values()} == {(2, 12)}, "nothing else needs to be kept"


def test_a_cell_is_judged_on_them(cell: Path, tmp_path: Path) -> None:
    out = tmp_path / "own.json"
    assert main([str(cell), "--own", "--documents", "4", "--length", "9", "--edits", "delete", "--json", str(out)]) == 0
    result = json.loads(out.read_text())
    assert result["documents"] == {DOMAIN: 4}
    assert result["tokens"] == {DOMAIN: 4 * 8}


def test_the_advised_command_deletes_on_the_same_samples(
    cell: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--own", "--documents", "4", "--length", "9", "--edits", "delete", "--json", "own.json"]
    assert main([str(cell), *options]) == 0
    evidence = json.loads(Path("own.json").read_text())
    line = evidence["advice"]["lines"][0]
    python, flag, module, *arguments = shlex.split(line["command"])
    assert (python, flag, module) == ("python", "-m", export.__name__)
    assert export.main([*arguments, "--json", "out.json"]) == 0
    result = json.loads(Path("out.json").read_text())
    assert result["dropped"] == line["layers"]
    assert result["prediction"]["same_text"]
    rise, of_one = result["rise"][DOMAIN]["mean"], evidence["layers"][line["layers"][0]]["damage"]["delete"][DOMAIN]
    assert rise == pytest.approx(of_one["mean"], abs=1e-5)


def test_an_encoder_writes_nothing() -> None:
    with pytest.raises(UserError, match="encoder"):
        sampled(subject_of("bert"), 2, 8)


def test_what_cannot_be_done(cell: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(cell), "--own", "--length", "1000"]) == 2
    assert names(capsys.readouterr().err, "--length 1000", "16 tokens")
    assert main([str(cell), "--own", "--data", "x.txt"]) == 2
    assert names(capsys.readouterr().err, "--own", "--data")
    assert export.main([str(cell), str(tmp_path / "out"), "--own", "--data", "x.txt"]) == 2
    assert names(capsys.readouterr().err, "--own", "--data")
