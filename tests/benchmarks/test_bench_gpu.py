"""The benchmark of a GPU, run whole on the CPU at a size without meaning, and its parts against arithmetic."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest
import torch

from models.transformer import Decoder, init_weights
from models.width import build_spec
from orchestrator.config.schema import OptimConfig
from orchestrator.training.optimizer import DecoupledAdamW
from tests.benchmarks import bench_gpu, trainers
from tests.benchmarks.live_tensors import LiveTensors, peak_bytes
from tests.benchmarks.stacked_cells import StackedCells

SPEC = build_spec(layers=2, width=32, head_dim=8, vocab_size=64, seq_len=16)
ROWS = torch.randint(64, (3, 2, 17), generator=torch.Generator().manual_seed(0))
TINY = ("model.layers=2", "model.width=16", "model.head_dim=8", "sidecar.interval=2", "data.train_tokens=4096")
CPU = ("--device", "cpu", "--model", "nano", "--batch", "2", "--seq-len", "32", "--steps", "1", "--stacked", "2")


@pytest.fixture(autouse=True)
def one_by_one() -> Iterator[None]:
    """vmap computes the CPU's attention one cell after the other, and says so."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*batching rule")
        yield


def cell(seed: int) -> Decoder:
    made = Decoder(SPEC)
    init_weights(made, seed)
    return made.double()  # in float32 a CPU's own attention and norm know no vmap


def test_the_whole_benchmark_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(trainers, "ROUNDS", 1)
    assert bench_gpu.main(CPU, TINY) == 0
    printed = capsys.readouterr().out
    for part in ("uniform", "variable", "peak of a step", "applied", "learning", "checkpoint", "reading", "stacked"):
        assert part in printed


def test_a_part_that_fails_stops_no_other(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def failing(setting: bench_gpu.Setting) -> Iterator[str]:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(bench_gpu, "PARTS", (failing, lambda setting: iter(["all is well"])))
    assert bench_gpu.main(CPU) == 1
    printed = capsys.readouterr()
    assert "all is well" in printed.out
    assert "out of memory" in printed.err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_gpu.main([]) == 2
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_stacked_cells_have_the_gradients_that_each_has_alone() -> None:
    cells = StackedCells([cell(seed) for seed in range(3)], OptimConfig())
    losses = cells.losses(ROWS)
    losses.sum().backward()
    for k in range(3):
        alone = cell(k)
        loss = alone.loss(ROWS[k])
        loss.backward()
        torch.testing.assert_close(losses[k], loss)
        for name, parameter in alone.named_parameters():
            assert parameter.grad is not None
            torch.testing.assert_close(cells.parameters[name].grad[k], parameter.grad, atol=1e-12, rtol=1e-9)


def test_a_stacked_cell_is_the_same_whatever_its_company() -> None:
    found = []
    for company in ((1, 2), (7, 8)):
        cells = StackedCells([cell(seed) for seed in (0, *company)], OptimConfig())
        cells.losses(torch.stack([ROWS[0], ROWS[company[0] % 3], ROWS[2]])).sum().backward()
        found.append({name: p.grad[0].clone() for name, p in cells.parameters.items()})
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_stacked_cells_train_as_each_does_alone() -> None:
    optim = OptimConfig(lr=1e-3, clip=0.1)
    cells = StackedCells([cell(seed) for seed in range(3)], optim)
    for _ in range(3):
        cells.update(ROWS)
    for k in range(3):
        alone = cell(k)
        optimizer = DecoupledAdamW(alone, optim)
        for _ in range(3):
            optimizer.zero_grad()
            alone.loss(ROWS[k]).backward()
            torch.nn.utils.clip_grad_norm_(alone.parameters(), optim.clip)
            optimizer.step(optim.lr)
        for name, parameter in alone.named_parameters():
            torch.testing.assert_close(cells.parameters[name][k], parameter, atol=1e-9, rtol=1e-6)


def test_live_tensors_counts_each_storage_once_and_while_it_lives() -> None:
    weight = torch.zeros(1000)  # 4 kB
    with LiveTensors([weight, weight[:10]]) as live:
        assert live.now == 4000
        made = torch.ones(500)
        view = made.view(50, 10)
        del made
        assert live.now == 6000
        del view
        assert live.now == 4000
    assert live.peak == 6000


def test_the_peak_of_a_pass_is_what_arithmetic_says() -> None:
    weight = torch.ones(250, 250, requires_grad=True)  # 250 kB, and so is every other tensor here

    def work() -> None:
        (torch.ones(250, 250) @ weight).exp().sum().backward()

    # forwards weight, input, product and exponential; backwards weight, input, slope of the product, gradient
    assert peak_bytes(torch.device("cpu"), [weight], work) == pytest.approx(4 * 250_000, rel=0.01)
