"""docs/read-a-checkpoint.md explains every column and every line of the page that forensics prints."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from orchestrator.forensics.analyzer import analyze
from orchestrator.forensics.measures.change import Change, Changes
from orchestrator.forensics.reading import Reading
from orchestrator.forensics.render import terminal
from tests.orchestrator.forensics.pages import printed, with_roles

PAGE = Path(__file__).parents[2] / "docs/read-a-checkpoint.md"
SIZES = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 4, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def reading() -> Reading:
    """A reading that lacks no column and no line."""
    torch.manual_seed(0)
    found = analyze(LlamaForCausalLM(LlamaConfig(**SIZES)), resamples=2, tokens=torch.arange(32).reshape(1, 32))
    layers = [
        replace(layer, holds=["state-space"], measures={name: value or 1.0 for name, value in layer.measures.items()})
        for layer in with_roles(found, ["hub"] * 4, ["damper"] * 4).layers
    ]
    return replace(found, layers=layers, assumed=["Something."])


@pytest.fixture(scope="module")
def explained() -> list[str]:
    """The names in the first cells of the page's tables."""
    rows = (line.split("|")[1] for line in PAGE.read_text().splitlines() if line.startswith("| "))
    return [name.strip() for row in rows for name in row.split(",")]


def test_every_column_is_explained(reading: Reading, explained: list[str]) -> None:
    names = [column.name for column in terminal.columns(reading) if column.name]
    assert {"role", "copy", "sink", "m·w", "evidence", "other"} <= set(names)
    assert [name for name in names if name not in (*explained, "holds")] == []  # `holds` has a section of its own


def test_every_line_is_explained(reading: Reading, explained: list[str]) -> None:
    change = Changes(None, [Change("t", 0.1, 0.2)], [])
    lines = printed(terminal.report(reading, 1.0, 5, change), 160)
    start = next(at for at, line in enumerate(lines) if line.startswith("roles "))
    labels = [line.split("  ")[0] for line in lines[start:] if line and not line.startswith(" ")]
    assert {"super weights", "coverage", "change", "substitutes", "missing"} <= set(labels)
    assert [label for label in labels if label not in explained] == []
