"""docs/keys.md is what docs/generate_keys.py makes of the schema."""

from __future__ import annotations

import importlib.util
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import ModuleType
from typing import get_type_hints

import pytest

from orchestrator.config import schema

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_keys", DOCS / "generate_keys.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_up_to_date(generator: ModuleType) -> None:
    assert (DOCS / "keys.md").read_text(encoding="utf-8") == generator.page(), "run `make docs`"


def test_every_key_has_a_row() -> None:
    page = (DOCS / "keys.md").read_text(encoding="utf-8")

    def keys(kind: type, prefix: str = "") -> list[str]:
        found = []
        for field in fields(kind):
            hint = get_type_hints(kind)[field.name]
            found += keys(hint, f"{prefix}{field.name}.") if is_dataclass(hint) else [f"{prefix}{field.name}"]
        return found

    missing = [key for key in keys(schema.Config) if key != "data.domains" and f"| `{key}` |" not in page]
    assert missing == []
