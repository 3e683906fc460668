"""Threads with a matrix each, and the settings of the libraries around them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits

from orchestrator.forensics.analyzer import analyze
from orchestrator.forensics.measures.workers import workers
from tests.orchestrator.forensics.conftest import Checkpoint


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """torch and BLAS use this many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    with threadpool_limits(request.param, user_api="blas"):
        yield request.param
    torch.set_num_threads(before)


def _blas() -> set[int]:
    np.linalg.eigvalsh(np.eye(3))
    return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}


def test_one_thread_for_each_call_and_the_settings_return(threads: int) -> None:
    outside = _blas()
    with workers() as pool:
        inside = pool.submit(torch.get_num_threads).result(), torch.get_num_threads()
        assert inside == (1, 1)
        assert _blas() == {1}
    assert torch.get_num_threads() == threads
    assert _blas() == outside


def test_the_settings_return_after_an_error(threads: int) -> None:
    outside = _blas()
    with pytest.raises(ZeroDivisionError), workers() as pool:
        pool.submit(lambda: 1 / 0).result()
    assert torch.get_num_threads() == threads
    assert _blas() == outside


def test_a_reading_is_the_same_whatever_the_number_of_threads(checkpoint: Callable[..., Checkpoint]) -> None:
    path, before = checkpoint().write(), torch.get_num_threads()
    readings = []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        readings.append(analyze(path).to_json())
    torch.set_num_threads(before)
    assert readings[0] == readings[1] == readings[2]
