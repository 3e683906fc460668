"""A norm at one position, its divisor σ held fixed: then it is linear, and a sum can be followed through it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

TOLERANCE = 1e-4  # of a norm's output, relative: beyond it the module is no norm of the known kinds
LARGE = 1e4  # entries of the vectors that ask for γ: nothing is small beside ε


@dataclass(frozen=True)
class FrozenNorm:
    """x ↦ scale ⊙ (x − mean x, where `centred`) + shift, in float64."""

    scale: Tensor  # γ/σ [D]
    shift: Tensor  # β [D]
    centred: bool

    def __call__(self, x: Tensor) -> Tensor:
        """The linear part, of vectors [..., D]."""
        return (x - x.mean(-1, keepdim=True) if self.centred else x) * self.scale

    def back(self, direction: Tensor) -> Tensor:
        """The direction before the norm [D] that writes as `direction` [D] does after it: the transposed map."""
        scaled = direction * self.scale
        return scaled - scaled.mean() if self.centred else scaled


def identity(width: int, device: torch.device) -> FrozenNorm:
    """No norm."""
    one = torch.ones(width, dtype=torch.float64, device=device)
    return FrozenNorm(one, torch.zeros_like(one), centred=False)


@torch.inference_mode()
def freeze(norm: nn.Module, x: Tensor) -> FrozenNorm | None:
    """The norm at x [D]: any RMSNorm or LayerNorm, whatever it is called. None for a module that is neither.

    γ and β are asked of the module itself, by vectors whose mean is 0 and whose mean square is 1, which both kinds
    divide by one number; a constant vector tells the kinds apart.
    """
    width = len(x)
    probe = torch.ones(width, dtype=x.dtype, device=x.device)
    probe[1::2] = -1
    if width % 2:
        if width < 3:
            return None
        probe[-3:] = torch.tensor([1.0, 1.0, -2.0])
    unit = probe.double() / probe.double().square().mean().sqrt()
    shift = norm(torch.zeros_like(x)).double()
    gamma = (norm(probe * LARGE).double() - shift) / unit
    constant = norm(torch.full_like(x, LARGE)).double() - shift
    centred = bool(constant.norm() < 0.5 * gamma.norm())
    read = x.double() - x.double().mean() if centred else x.double()
    shaped, written = gamma * read, norm(x).double() - shift
    if not (power := shaped.square().sum()):
        return None
    inverse = (written * shaped).sum() / power  # 1/σ
    fits = (written - inverse * shaped).norm() <= TOLERANCE * written.norm()
    return FrozenNorm(gamma * inverse, shift, centred) if fits else None
