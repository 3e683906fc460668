"""Dropout that is active while a model is evaluated, which makes two evaluations of one state differ."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.dropout import _DropoutNd

RATES = ("dropout", "attention_dropout", "dropout_p")  # where modules that apply it by themselves keep their rate


@contextmanager
def watched(model: nn.Module) -> Iterator[list[str]]:
    """Enclose forward passes; the list receives the names of the modules that ran with dropout in train mode."""
    found: list[str] = []

    def note(name: str):  # type: ignore[no-untyped-def]
        def hook(module: nn.Module, inputs: object) -> None:
            if module.training and name not in found:
                found.append(name)

        return hook

    hooks = [m.register_forward_pre_hook(note(name)) for name, m in model.named_modules() if _rate(m) > 0]
    try:
        yield found
    finally:
        for one in hooks:
            one.remove()


def _rate(module: nn.Module) -> float:
    if isinstance(module, _DropoutNd):
        return module.p
    rates = (getattr(module, name, 0.0) for name in RATES)
    return max((float(rate) for rate in rates if isinstance(rate, int | float)), default=0.0)
