"""Giving freed memory back."""

from __future__ import annotations

import ctypes
import ctypes.util


def trim() -> None:
    """Return what has been freed to the system, where the C library can (glibc).

    It keeps freed blocks of a layer's size otherwise, and pieces of the next layer's between them, so that a reading
    would grow by the layer.
    """
    library = ctypes.util.find_library("c")
    trim = getattr(ctypes.CDLL(library), "malloc_trim", None) if library else None
    if trim is not None:
        trim(0)
