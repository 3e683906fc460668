"""Threads that reduce matrices side by side, each of them by itself."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager

import torch
from threadpoolctl import threadpool_limits


@contextmanager
def workers() -> Iterator[Executor]:
    """As many threads as torch may use. In the block, torch and BLAS use one thread for each call.

    Threads that share one decomposition wait for each other at every step: on a machine that is busy otherwise, most
    of the time. Threads with a matrix each do not. The settings are as before after the block, which ends when all
    work that was submitted is done.
    """
    count = torch.get_num_threads()
    with threadpool_limits(1, user_api="blas"):
        torch.set_num_threads(1)
        try:
            with ThreadPoolExecutor(count, "reduce") as pool:
                yield pool
        finally:
            torch.set_num_threads(count)
