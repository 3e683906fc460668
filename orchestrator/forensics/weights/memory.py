"""Returning freed memory to the system."""

from __future__ import annotations

import ctypes
import ctypes.util
from collections.abc import Callable
from functools import cache


def trim() -> None:
    """Return freed memory to the system, where the C library can (glibc).

    Otherwise it keeps freed blocks of a layer's size with pieces of the next layer between them, and the process grows
    layer by layer.
    """
    if (malloc_trim := _malloc_trim()) is not None:
        malloc_trim(0)


@cache  # finding a library starts a process
def _malloc_trim() -> Callable[[int], int] | None:
    library = ctypes.util.find_library("c")
    return getattr(ctypes.CDLL(library), "malloc_trim", None) if library else None
