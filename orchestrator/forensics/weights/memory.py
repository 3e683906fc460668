"""Giving freed memory back."""

from __future__ import annotations

import ctypes
import ctypes.util
from collections.abc import Callable
from functools import cache


def trim() -> None:
    """Return what has been freed to the system, where the C library can (glibc).

    It keeps freed blocks of a layer's size otherwise, and pieces of the next layer's between them, so that a reading
    would grow by the layer.
    """
    if (malloc_trim := _malloc_trim()) is not None:
        malloc_trim(0)


@cache  # finding a library starts a process
def _malloc_trim() -> Callable[[int], int] | None:
    library = ctypes.util.find_library("c")
    return getattr(ctypes.CDLL(library), "malloc_trim", None) if library else None
