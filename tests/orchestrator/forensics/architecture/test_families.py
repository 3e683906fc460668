"""Every text family of transformers against the numbers that flow through its own modules; docs/families.md says so."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.common.errors import UserError
from orchestrator.forensics.architecture.families import FAMILIES, find
from orchestrator.forensics.architecture.model import CheckpointModel
from tests.naming import naming
from tests.orchestrator.forensics.architecture.zoo.outcome import outcome, reason, written
from tests.orchestrator.forensics.architecture.zoo.tiny import FFN, SEEING, WIDTH, build, marks

# Layouts that hang on a key: family of the table → model_type and keys.
VARIANTS: list[tuple[str, str, dict[str, Any]]] = [
    ("llama", "llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 12}),
    ("gemma", "gemma", {"head_dim": 12}),
    ("stablelm_parallel", "stablelm", {"use_parallel_residual": True}),
    ("gpt_neox", "gpt_neox", {"use_parallel_residual": False}),
    ("gpt_bigcode", "gpt_bigcode", {"multi_query": False}),
    ("falcon_sequential", "falcon", {"parallel_attn": False, "multi_query": False, "alibi": True}),
    ("falcon_two_norms", "falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    ("falcon_one_norm", "falcon", {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1}),
    ("opt_post", "opt", {"do_layer_norm_before": False}),
    ("albert", "albert", {"num_hidden_groups": 2}),
    ("hyperclovax", "hyperclovax", {"use_post_norm": False}),
    ("bitnet", "bitnet", {"num_key_value_heads": 4, "intermediate_size": FFN}),
]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("mark", [pytest.param(m, marks=pytest.mark.slow if m in SEEING else ()) for m in marks()])
def test_family(tmp_path: Path, mark: str) -> None:
    kind, said = outcome(mark, tmp_path)
    assert written().get(mark) == ("checked" if kind == "checked" else reason(said)), (
        f"{said}: run python -m tests.orchestrator.forensics.architecture.zoo.outcome"
    )


@pytest.mark.parametrize(("family", "mark", "keys"), VARIANTS, ids=[f"{f}-{i}" for i, (f, *_) in enumerate(VARIANTS)])
def test_variant(tmp_path: Path, family: str, mark: str, keys: dict[str, Any]) -> None:
    assert outcome(mark, tmp_path, **keys) == ("checked", family)


# Mixtures of experts and hybrids: number of matrices that each layer has.
HELD = {
    "mixtral": [4, 4, 4], "qwen2_moe": [4, 4, 4], "qwen3_moe": [4, 4, 4], "olmoe": [4, 4, 4], "gpt_oss": [4, 4, 4],
    "phimoe": [4, 4, 4], "granitemoe": [4, 4, 4], "flex_olmo": [4, 4, 4], "cohere2_moe": [4, 4, 4],
    "kolibri1": [4, 4, 4], "afmoe": [7, 4, 4], "glm4_moe": [7, 4, 4], "ernie4_5_moe": [7, 4, 4], "hy_v3": [7, 4, 4],
    "exaone_moe": [7, 4, 4], "flint": [7, 7, 4], "deepseek_v3": [3, 3, 3], "glm4_moe_lite": [3, 0, 0],
    "minicpm3": [3, 3, 3], "deepseek_v2": [0, 0, 0], "granitemoehybrid": [0, 0, 0], "nemotron_h": [0, 0, 4, 2],
    "jamba": [3, 0, 3], "bamba": [3, 3, 3], "lfm2_moe": [3, 7, 0], "lfm3": [3, 7, 7],
    "qwen3_next": [0, 4, 0], "qwen3_5_text": [3, 7, 3], "llama": [7, 7, 7],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("mark", HELD)
def test_attention_and_dense_ffns_of_mixtures_and_hybrids(tmp_path: Path, mark: str) -> None:
    build(mark).save_pretrained(tmp_path)
    opened = CheckpointModel(tmp_path)
    assert [len(layer.kinds) for layer in opened] == HELD[mark]
    assert {layer.width for layer in opened} == {WIDTH}
    assert all((layer.heads is None) == ("q" not in layer.kinds) for layer in opened)


def test_what_lacks_in_a_family_that_is_inferred_is_refused(tmp_path: Path) -> None:
    outcome("qwen3_moe", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "mystery"}))
    with pytest.raises(UserError, match=naming("mixture of experts")):
        CheckpointModel(tmp_path)


def test_the_page_lists_every_family_that_is_tried() -> None:
    assert set(written()) == set(marks())
    assert len([mark for mark, why in written().items() if why == "checked"]) > 130


def test_special_entries_stand_before_general_ones() -> None:
    for mark in {mark for family in FAMILIES.values() for mark in family.declared}:
        entries = [family for family in FAMILIES.values() if mark in family.declared]
        assert all(family.when or family.parts != entries[-1].parts for family in entries[:-1])
        assert mark == "chatglm" or not entries[-1].when  # the first ChatGLM is not in the table
        assert find(mark, {"multi_query_attention": True}) is not None
    assert find("mystery", {}) is None
