"""Deleting a layer or a branch, against models that never had it."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from models.spec import DecoderSpec, LayerShape
from models.transformer import Decoder, init_weights
from orchestrator.common.errors import UserError
from orchestrator.config import load
from orchestrator.config.schema import (
    Config,
    DataConfig,
    DomainConfig,
    ModelConfig,
    Profile,
    Source,
    TrainConfig,
    WidthConfig,
)
from orchestrator.data import prepare
from orchestrator.intervene import main
from orchestrator.interventions.deletion import BRANCHES, ablated, intervene, loss_increases, report, row_losses
from orchestrator.storage import checkpoint
from tests.naming import names, naming

WIDTHS = (8, 16, 12, 16)


def decoder_of(norm: str, seed: int = 0) -> Decoder:
    shapes = tuple(LayerShape(width=w, heads=w // 4, kv_heads=w // 4, head_dim=4, ffn=2 * w) for w in WIDTHS)
    decoder = Decoder(DecoderSpec(shapes, vocab_size=264, norm=norm))
    init_weights(decoder, seed)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.mul_(1 + torch.rand(parameter.shape, generator=torch.Generator().manual_seed(seed)))
    return decoder.eval()


def without_layer(decoder: Decoder, index: int) -> Decoder:
    """A decoder built with one layer fewer, the others' weights copied."""
    kept = [i for i in range(len(WIDTHS)) if i != index]
    smaller = Decoder(replace(decoder.spec, layers=tuple(decoder.spec.layers[i] for i in kept)))
    weights = {n: w for n, w in decoder.state_dict().items() if not n.startswith(f"model.layers.{index}.")}
    for new, old in enumerate(kept):
        for name in list(weights):
            if name.startswith(f"model.layers.{old}."):
                weights[name.replace(f"layers.{old}.", f"layers.{new}.")] = weights.pop(name)
    smaller.load_state_dict(weights)
    return smaller


@pytest.fixture
def rows() -> torch.Tensor:
    return torch.randint(0, 257, (20, 13), generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("norm", ["pre", "sandwich"])
@pytest.mark.parametrize("index", [1, 2])  # neither the first nor the last: those decide the head's width
def test_a_deleted_layer_leaves_the_model_without_it(norm: str, index: int, rows: torch.Tensor) -> None:
    decoder = decoder_of(norm)
    with ablated(decoder.model.layers[index], BRANCHES["layer"]):
        deleted = decoder(rows)
    torch.testing.assert_close(deleted, without_layer(decoder, index)(rows))
    assert not torch.allclose(deleted, decoder(rows), atol=1e-3)


@pytest.mark.parametrize("norm", ["pre", "sandwich"])
@pytest.mark.parametrize(("name", "writer"), [("attention", "self_attn.o_proj"), ("ffn", "mlp.down_proj")])
def test_a_silenced_branch_is_one_whose_last_matrix_is_zero(
    norm: str, name: str, writer: str, rows: torch.Tensor
) -> None:
    decoder, zeroed = decoder_of(norm), decoder_of(norm)
    with torch.no_grad():
        zeroed.model.layers[0].get_parameter(f"{writer}.weight").zero_()
    with ablated(decoder.model.layers[0], BRANCHES[name]):
        torch.testing.assert_close(decoder(rows), zeroed(rows))


def test_the_model_is_whole_again_afterwards_also_after_an_error(rows: torch.Tensor) -> None:
    decoder = decoder_of("sandwich")
    before = decoder(rows)
    with pytest.raises(RuntimeError), ablated(decoder.model.layers[0], BRANCHES["layer"]):
        raise RuntimeError
    assert torch.equal(decoder(rows), before)


def test_changes_are_paired_means_with_their_standard_errors(rows: torch.Tensor) -> None:
    decoder = decoder_of("sandwich")
    heldout = {"a": rows, "one row": rows[:1]}
    intact = {domain: row_losses(decoder, part, 8) for domain, part in heldout.items()}
    with torch.no_grad():
        per_row = [
            without_layer(decoder, 2).double().loss(row[None]).item()
            - decoder_of("sandwich").double().loss(row[None]).item()
            for row in rows
        ]
    change = loss_increases(decoder, 2, heldout, intact, 8)["layer"]
    assert change["a"]["mean"] == pytest.approx(np.mean(per_row), abs=1e-5)
    assert change["a"]["se"] == pytest.approx(np.std(per_row, ddof=1) / math.sqrt(len(rows)), rel=1e-3)
    assert change["one row"] == {"mean": pytest.approx(per_row[0], abs=1e-5), "se": None}


@pytest.fixture
def cell(tmp_path: Path) -> Path:
    """A cell with checkpoints of steps 0 and 7, as training leaves it."""
    text = tmp_path / "text"
    text.mkdir()
    for name in ("words", "numbers"):
        lines = (f"{name} {i} {'ab'[i % 2] * (i % 17)} {i * i}" for i in range(800))
        (text / f"{name}.txt").write_text("\n".join(lines))
    config = Config(
        name="test",
        model=ModelConfig(layers=4, width=12, head_dim=4, ffn_ratio=2.0),
        width=WidthConfig(profile=Profile.explicit, widths=list(WIDTHS)),
        data=DataConfig(
            {n: DomainConfig(Source.files, path=str(text / f"{n}.txt")) for n in ("words", "numbers")},
            heldout_tokens=256, cache_dir=str(tmp_path / "cache"),
        ),
        train=TrainConfig(seq_len=16, batch_size=6, micro_batch_size=3),
    )  # fmt: skip
    directory = tmp_path / "test" / "main" / "seed=0"
    for step in (0, 7):
        decoder = decoder_of("sandwich", seed=step)
        state = {
            "schema": 1,
            "step": step,
            "spec": decoder.spec.to_dict(),
            "data": prepare(config.data, 264, 16).digest,
            "optim": {"beta1": 0.9, "beta2": 0.95},
        }
        checkpoint.save(directory / "checkpoints", step, {"model": dict(decoder.named_parameters())}, state)
    (directory / "config.yaml").write_text(load.to_yaml(config))
    return directory


def test_a_cell_from_end_to_end(cell: Path, tmp_path: Path) -> None:
    assert main([str(cell), "--json", str(tmp_path / "out.json")]) == 0
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["step"] == 7
    config = load.from_file(cell / "config.yaml")
    corpus = prepare(config.data, 264, 16)
    assert result["rows"] == {domain: corpus.splits[domain]["validation"].rows for domain in ("words", "numbers")}
    decoder = decoder_of("sandwich", seed=7)
    for domain in ("words", "numbers"):
        rows = corpus.heldout(domain, "validation")
        with torch.no_grad():
            intact, cut = decoder.loss(rows).item(), without_layer(decoder, 1).loss(rows).item()
        assert result["heldout"][domain] == pytest.approx(intact, abs=1e-5)
        assert result["layers"][1]["change"]["layer"][domain]["mean"] == pytest.approx(cut - intact, abs=1e-5)
    assert [layer["layer"] for layer in result["layers"]] == [0, 1, 2, 3]
    assert all(layer["role"] for layer in result["layers"])
    console = Console(width=80)
    with console.capture() as capture:
        console.print(report(result))
    lines = capture.get().splitlines()
    assert sum("±" in line for line in lines) == 4 * 2 + 1
    assert not any("…" in line for line in lines if "±" in line)


def test_no_more_rows_at_once_than_in_training(cell: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    loss = Decoder.loss

    def watched(decoder: Decoder, rows: torch.Tensor, reduction: str = "mean") -> torch.Tensor:
        sizes.append(len(rows))
        return loss(decoder, rows, reduction=reduction)

    monkeypatch.setattr(Decoder, "loss", watched)
    intervene(cell)
    assert max(sizes) == 3


def test_other_data_than_the_model_was_trained_on_is_refused(cell: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A changed corpus deals its files anew: what is held out now may have been trained on."""
    text = Path(load.from_file(cell / "config.yaml").data.domains["words"].path or "")
    text.write_text(text.read_text() + "\none line more")
    assert main([str(cell)]) == 2
    printed = capsys.readouterr().err
    assert names(printed, "step_00000007", "other data")
    assert printed.count("\n") == 1


def test_a_named_checkpoint_is_taken_instead_of_the_newest(cell: Path) -> None:
    assert intervene(cell / "checkpoints" / "step_00000000")["step"] == 0


def test_a_damaged_newest_checkpoint_is_passed_over_but_refused_by_name(
    cell: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    newest = cell / "checkpoints" / "step_00000007"
    (newest / "state.json").unlink()
    assert checkpoint.find(cell).name == "step_00000000"
    assert names(capsys.readouterr().err, "step_00000000", "1 newer checkpoint(s)")
    with pytest.raises(UserError, match=naming(newest, "state.json")):
        checkpoint.find(newest)


def test_bad_input_is_one_sentence_and_exit_code_2(
    cell: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = tmp_path / "empty"
    (empty / "checkpoints").mkdir(parents=True)
    experiment = cell.parents[1]
    cases: list[tuple[list[object], list[object]]] = [
        ([tmp_path / "nowhere"], [tmp_path / "nowhere", "exist"]),
        ([empty], [empty, "0 damaged"]),
        ([experiment], [experiment, "manifest.json", "<experiment>/<arm>/seed=<k>"]),
        ([cell, "--json", tmp_path / "no/out.json"], [tmp_path / "no/out.json", tmp_path / "no"]),
    ]
    for arguments, named in cases:
        assert main([str(argument) for argument in arguments]) == 2
        printed = capsys.readouterr()
        assert names(printed.err, *named)
        assert printed.err.count("\n") == 1
        assert not printed.out
    (cell / "config.yaml").unlink()
    assert main([str(cell)]) == 2
    assert names(capsys.readouterr().err, cell / "config.yaml", "exist")
