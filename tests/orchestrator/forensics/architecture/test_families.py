"""Every text family of transformers against the numbers that flow through its own modules; docs/families.md says so."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.forensics.architecture.families import FAMILIES, find
from tests.orchestrator.forensics.architecture.zoo.outcome import outcome, reason, written
from tests.orchestrator.forensics.architecture.zoo.tiny import FFN, SEEING, marks

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
