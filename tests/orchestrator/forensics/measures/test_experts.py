"""Experts one by one: their matrices' measures against numpy, the router's share, and what is refused."""

from __future__ import annotations

import json
import logging
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from orchestrator.common.errors import UserError
from orchestrator.forensics.__main__ import main
from orchestrator.forensics.analyzer import analyze
from orchestrator.forensics.architecture.experts import Router
from orchestrator.forensics.architecture.model import CheckpointModel
from orchestrator.forensics.measures.experts import MEASURED, read_experts
from orchestrator.forensics.measures.router import choose, router_shares
from orchestrator.forensics.reading import Reading
from orchestrator.forensics.weights.tensors import Tensors
from tests.naming import naming
from tests.orchestrator.forensics.architecture.zoo.mixture import check_experts
from tests.orchestrator.forensics.architecture.zoo.outcome import outcome
from tests.orchestrator.forensics.architecture.zoo.tiny import build

MOE = "model.layers.{}.mlp.experts.{}.{}_proj.weight"


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture
def mixture(tmp_path: Path) -> tuple[Path, dict[str, Tensor]]:
    build("qwen2_moe").save_pretrained(tmp_path)
    return tmp_path, load_file(tmp_path / "model.safetensors")


def test_measures_are_those_of_each_experts_matrices(mixture: tuple[Path, dict[str, Tensor]]) -> None:
    path, tensors = mixture
    reading = analyze(path)
    for layer in reading.layers:
        assert [of.expert for of in layer.experts] == [0, 1, 2, 3, None]
        scale = tensors[f"model.layers.{layer.layer}.post_attention_layernorm.weight"].double().numpy()
        for of in layer.experts:
            assert set(of.measures) == MEASURED
            name = MOE.format(layer.layer, of.expert, "{}")
            if of.expert is None:
                name = f"model.layers.{layer.layer}.mlp.shared_expert.{{}}_proj.weight"
            gate, up, down = (tensors[name.format(kind)].double().numpy() for kind in ("gate", "up", "down"))
            c = np.linalg.norm(gate * scale, axis=1) * np.linalg.norm(up * scale, axis=1)
            assert of.measures["cv"] == pytest.approx(c.std() / c.mean(), rel=1e-5)
            gain = c * np.linalg.norm(down, axis=0)
            assert of.measures["loudest_gain"] == pytest.approx(gain.max() / np.median(gain), rel=1e-5)
            sigma = np.linalg.svd(up * scale, compute_uv=False)
            p = sigma / sigma.sum()
            assert of.measures["effective_rank.up"] == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-4)
            assert of.measures["spectral_norm.down"] == pytest.approx(np.linalg.norm(down, 2), rel=1e-5)
            assert of.measures["max_abs"] == pytest.approx(max(np.abs(w).max() for w in (gate, up, down)))
        assert sum(of.router_share or 0.0 for of in layer.experts) == pytest.approx(1)
    assert Reading.from_json(json.loads(json.dumps(reading.to_json(), allow_nan=False))) == reading


@pytest.mark.parametrize("mark", ["mixtral", "gpt_oss", "aria_text", "nemotron_h"])
def test_a_model_in_memory_gives_what_its_files_give(tmp_path: Path, mark: str) -> None:
    model = build(mark)
    model.save_pretrained(tmp_path)
    on_disk, live = analyze(tmp_path), analyze(model)
    assert any(layer.experts for layer in live.layers)
    for a, b in zip(on_disk.layers, live.layers, strict=True):
        assert (a.holds, a.experts) == (b.holds, b.experts)


# A layout of experts, or a way to choose them, that hangs on a key: model_type and keys.
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("deepseek_v3", {"n_routed_experts": 8, "num_local_experts": 8, "n_group": 4, "topk_group": 2,
                     "first_k_dense_replace": 1, "num_experts_per_tok": 3}),
    ("deepseek_v2", {"n_routed_experts": 8, "n_group": 4, "topk_group": 2, "topk_method": "group_limited_greedy",
                     "num_experts_per_tok": 3}),
    ("cohere2_moe", {"expert_selection_fn": "sigmoid"}),
    ("ernie4_5_moe", {"moe_num_experts": 8, "moe_k": 3}),
    ("laguna", {"moe_router_logit_softcapping": 1.5}),
    ("minimax_m2", {"num_local_experts": 8}),
]  # fmt: skip


@pytest.mark.parametrize(("mark", "keys"), VARIANTS, ids=[mark for mark, _ in VARIANTS])
def test_experts_and_router_of(tmp_path: Path, mark: str, keys: dict[str, Any]) -> None:
    assert outcome(mark, tmp_path, **keys)[0] == "checked"
    assert any(CheckpointModel(tmp_path).mixture(index) for index in range(3))


def test_an_experts_planted_anomalies_are_its_own(mixture: tuple[Path, dict[str, Tensor]]) -> None:
    path, tensors = mixture
    tensors[MOE.format(1, 2, "gate")][3] *= 400
    tensors[MOE.format(2, 0, "down")].zero_()
    tensors["model.layers.0.mlp.gate.weight"][1] *= 30  # this expert is first, or out
    save_file(tensors, path / "model.safetensors")
    reading = analyze(path)
    loudest = [of.measures["loudest_gain"] for of in reading.layers[1].experts]
    assert np.argmax(loudest) == 2
    found = {(finding.tensor, finding.severity): finding for finding in reading.pathology}
    assert ("model.layers.1 expert 2 gate", "critical") in found
    assert "all zeros" in found["model.layers.2 expert 0 down", "warn"].text
    shares = [of.router_share for of in reading.layers[0].experts]
    assert shares[1] == pytest.approx(0.25, abs=0.02)  # of two places, one in half of the cases
    assert reading.layers[0].experts[4].router_share is None


def test_a_rotation_of_the_stream_leaves_the_routers_share(tmp_path: Path) -> None:
    build("flex_olmo").save_pretrained(tmp_path)  # without a norm before the router
    before = router_shares(CheckpointModel(tmp_path), 0)
    tensors = load_file(tmp_path / "model.safetensors")
    turn, _ = torch.linalg.qr(torch.randn(32, 32, generator=torch.Generator().manual_seed(3)))
    tensors["model.layers.0.mlp.gate.weight"] = (tensors["model.layers.0.mlp.gate.weight"] @ turn).contiguous()
    save_file(tensors, tmp_path / "model.safetensors")
    assert router_shares(CheckpointModel(tmp_path), 0) == pytest.approx(before, abs=1e-3)


def test_choices_by_hand() -> None:
    logits = torch.tensor([[4.0, 0.0, 3.0, 2.9]])
    router = Router("", None, None, "sigmoid", places=1)
    assert choose(logits, router, None).tolist() == [[0]]
    assert choose(logits, router, torch.tensor([-1.0, 0, 0, 0])).tolist() == [[2]]
    grouped = Router("", None, None, "sigmoid", places=2, groups=2, kept=1)
    assert sorted(choose(logits, grouped, None)[0].tolist()) == [2, 3]  # the best two sum higher there
    assert sorted(choose(logits, Router("", None, None, "sigmoid", 2, 2, 1, pooled=1), None)[0].tolist()) == [0, 1]


Spoil = Callable[[dict[str, Tensor], dict[str, Any]], None]


def _lost(tensors: dict[str, Tensor], _: dict[str, Any]) -> None:
    del tensors[MOE.format(1, 2, "up")]


def _gone(tensors: dict[str, Tensor], _: dict[str, Any]) -> None:
    for kind in ("gate", "up", "down"):
        del tensors[MOE.format(1, 3, kind)]


def _narrow(tensors: dict[str, Tensor], _: dict[str, Any]) -> None:
    tensors[MOE.format(1, 2, "down")] = torch.ones(32, 23)


def _declared(_: dict[str, Tensor], config: dict[str, Any]) -> None:
    config["num_experts"] = 6


def _short(tensors: dict[str, Tensor], _: dict[str, Any]) -> None:
    tensors["model.layers.1.mlp.gate.weight"] = torch.ones(3, 32)


def _too_many_places(_: dict[str, Tensor], config: dict[str, Any]) -> None:
    config["num_experts_per_tok"] = 5


REFUSED: list[tuple[Spoil, tuple[object, ...]]] = [
    (_lost, ("model.layers.1", "mlp.experts.2.up_proj.weight", "expert 2")),
    (_gone, ("model.layers.1", "3 experts", "declares 4")),
    (_narrow, ("model.layers.1.mlp.experts.2.down_proj.weight", "(32, 23)", "(32, 24)")),
    (_declared, ("4 experts", "declares 6")),
    (_short, ("model.layers.1.mlp.gate.weight", "(3, 32)", "4 experts")),
    (_too_many_places, ("4 experts", "5")),
]


@pytest.mark.parametrize(("spoil", "named"), REFUSED, ids=[spoil.__name__ for spoil, _ in REFUSED])
def test_what_does_not_belong_together_is_refused(
    mixture: tuple[Path, dict[str, Tensor]], spoil: Spoil, named: tuple[object, ...]
) -> None:
    path, tensors = mixture
    config = json.loads((path / "config.json").read_text())
    spoil(tensors, config)
    save_file(tensors, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=naming(*named)):
        analyze(path)


def test_an_unknown_number_of_places_leaves_the_share_out(mixture: tuple[Path, dict[str, Tensor]]) -> None:
    path, _ = mixture
    config = json.loads((path / "config.json").read_text())
    del config["num_experts_per_tok"]
    (path / "config.json").write_text(json.dumps(config))
    experts = analyze(path).layers[0].experts
    assert len(experts) == 5
    assert {of.router_share for of in experts} == {None}


def test_tables_have_a_row_per_expert_and_the_page_a_line_per_layer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build("qwen3_moe", num_experts=12, num_local_experts=12).save_pretrained(tmp_path)
    assert main([str(tmp_path), "--csv", str(tmp_path / "out.csv")]) == 0
    page = capsys.readouterr().out
    assert len(page.splitlines()) < 60
    assert "12 experts" in page
    rows = (tmp_path / "out.csv").read_text().splitlines()
    assert rows[0].startswith("layer,expert,router_share,")
    assert len(rows) == 1 + 3 * 13
    reading = analyze(tmp_path)
    table = reading.to_pandas(experts=True)
    assert table["router_share"].sum() == pytest.approx(3)
    assert list(table["expert"][:3]) == ["", "0", "1"]
    assert table["cv"].notna().sum() == 3 * 12
    assert len(reading.to_pandas()) == 3


def test_the_experts_of_a_gguf_file(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    model = build("qwen2_moe")
    model.save_pretrained(tmp_path)
    config = model.config
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "qwen2moe")
    writer.add_block_count(3)
    writer.add_embedding_length(32)
    writer.add_head_count(4)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(8)
    writer.add_expert_count(4)
    writer.add_expert_used_count(config.num_experts_per_tok)
    names = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
             "self_attn.o_proj": "attn_output", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
             "mlp.gate": "ffn_gate_inp", **{f"mlp.shared_expert.{k}_proj": f"ffn_{k}_shexp" for k in
                                            ("gate", "up", "down")}}  # fmt: skip
    tensors = load_file(tmp_path / "model.safetensors")
    for layer in range(3):
        for name, stored in names.items():
            writer.add_tensor(f"blk.{layer}.{stored}.weight", tensors[f"model.layers.{layer}.{name}.weight"].numpy())
        for kind in ("gate", "up", "down"):
            joined = np.stack([tensors[MOE.format(layer, k, kind)].numpy() for k in range(4)])
            writer.add_tensor(f"blk.{layer}.ffn_{kind}_exps.weight", joined)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found, wanted = analyze(tmp_path / "m.gguf"), analyze(tmp_path)
    for a, b in zip(found.layers, wanted.layers, strict=True):
        assert (a.holds, a.experts) == (b.holds, b.experts)
    assert check_experts(CheckpointModel(tmp_path / "m.gguf"), model) == 15


@pytest.mark.parametrize("mark", ["mixtral", "gpt_oss"])
def test_one_expert_in_memory_at_a_time(tmp_path: Path, mark: str, monkeypatch: pytest.MonkeyPatch) -> None:
    build(mark).save_pretrained(tmp_path)  # matrices of their own, and tensors of all experts
    live = {"now": 0, "peak": 0}
    read = Tensors.read

    def release(size: int) -> None:
        live["now"] -= size

    def counted(self: Tensors, name: str, rows: slice | None = None) -> Tensor:
        values = read(self, name, rows)
        if "experts" in name:
            live["now"] += values.nbytes
            live["peak"] = max(live["peak"], live["now"])
            weakref.finalize(values.untyped_storage(), release, values.nbytes)
        return values

    monkeypatch.setattr(Tensors, "read", counted)
    reports, _ = read_experts(CheckpointModel(tmp_path), torch.device("cpu"))
    assert sum(map(len, reports)) == 12
    assert 0 < live["peak"] <= 4 * 3 * 32 * 40  # gate, up and down of one, in fp32


def test_experts_that_read_a_projection_of_the_stream_are_named_and_left_out(tmp_path: Path) -> None:
    build("nemotron_h", moe_latent_size=16).save_pretrained(tmp_path)
    reading = analyze(tmp_path)
    assert reading.layers[1].holds == ["experts"]
    assert not reading.layers[1].experts
    assert any("experts of 1 layer" in sentence and "not measured" in sentence for sentence in reading.assumed)


def test_layers_that_predict_later_tokens_are_left_aside(tmp_path: Path) -> None:
    build("glm4_moe").save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    config = json.loads((tmp_path / "config.json").read_text()) | {"num_nextn_predict_layers": 1}
    (tmp_path / "config.json").write_text(json.dumps(config))
    before = analyze(tmp_path)
    later = {
        name.replace("layers.2.", "layers.3."): value.clone() for name, value in tensors.items() if "layers.2." in name
    }
    save_file(tensors | later | {"model.layers.3.eh_proj.weight": torch.ones(32, 64)}, tmp_path / "model.safetensors")
    assert analyze(tmp_path).layers == before.layers
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_nextn_predict_layers": 0}))
    with pytest.raises(UserError, match=naming("model.layers.3.eh_proj.weight", "3 layers")):
        analyze(tmp_path)
