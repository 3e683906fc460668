"""Finds trained weights that a package ships, without importing it: what its code needs is not installed."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest


def shipped(package: str, pattern: str) -> Path:
    """The one path in the package that fits the pattern. Skips the test where the package is not installed."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        pytest.skip(f"the weights of {package} are not installed: run `make install`")
    (found,) = Path(spec.origin).parent.glob(pattern)
    return found
