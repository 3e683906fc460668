"""What the sidecar may press on. A channel is one class and one line in `CHANNELS` (SCIENCE §6)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from sidecar.units import Unit, make_units, place_of

DECAY_LIMIT = 0.1  # largest share of a weight that one step may take away
GROWTH_LIMIT = 2.0  # largest factor on what a branch writes into the residual stream
TINIEST_ROOT = 3.8e-23  # √ of float32's smallest number: a smaller gradient leaves no second moment


@dataclass(frozen=True)
class Arithmetic:
    """What the bounds of multipliers are checked against: the highest values of the run."""

    lr: float
    weight_decay: float
    eps: float = 1e-8  # Adam's
    lr_max: float = 0.02  # the largest learning rate that any layer may reach


class Channel(Protocol):
    """A named list of units, and how their multipliers act on the model.

    `slope` is the derivative of `−held-out loss` by every unit's log-multiplier per unit of `reach`, and
    `reach` what the multiplier acted through since the last `set`: their product is the unit's credit.
    `acted` is the part of it that a restart must know.
    """

    name: str
    bounds: tuple[float, float]  # default range of the multipliers
    units: list[Unit]
    acted: float

    def check(self, largest: float, arithmetic: Arithmetic) -> None:
        """Raise `ValueError` where a multiplier of `largest` would not be safe."""

    def set(self, multipliers: Sequence[float]) -> None:
        """Put these multipliers, one per unit, in force."""

    def tensors(self) -> list[Tensor]:
        """What the held-out loss must be differentiated by for `slope`."""

    def slope(self, gradients: Sequence[Tensor | None]) -> Tensor:
        """[units], from the gradients of `tensors`; None counts as zero."""

    def reach(self) -> list[float]:
        """Per unit, what its log-multiplier acted through since the last `set`."""

    def weights(self) -> list[list[str]]:
        """Names of the parameters that each unit governs."""

    def folded(self) -> dict[str, Tensor]:
        """Parameter → its value with the multiplier worked in, where the forward pass depends on it."""

    def before_update(self, lr: float) -> None:
        """Called before every optimizer step."""

    def after_update(self) -> None:
        """Called after every optimizer step."""


class DecayChannel:
    """Decoupled weight decay of each weight matrix: `w ← (1 − lr·λ·m)·w`, before the optimizer's step.

    Every parameter of two or more dimensions decays. Units are the matrices of numbered layers; embeddings and
    heads keep m = 1. One foreach call per step.
    """

    name = "decay"
    bounds = (0.1, 10.0)

    def __init__(self, model: nn.Module, arithmetic: Arithmetic) -> None:
        self.weight_decay = arithmetic.weight_decay
        decayed = [(name, param) for name, param in model.named_parameters() if param.ndim >= 2]
        units = [(n, p, place) for n, p in decayed if p.ndim == 2 and (place := place_of(n))]
        self.units = make_units((name, place[2], place[1], param.numel()) for name, param, place in units)
        self._params: list[Tensor] = [param for _, param, _ in units]
        governed = {name for name, _, _ in units}
        self._others: list[Tensor] = [param for name, param in decayed if name not in governed]
        self._multipliers = [1.0] * len(self.units)
        self.acted = 0.0  # Σ lr·λ since the last `set`

    def check(self, largest: float, arithmetic: Arithmetic) -> None:
        share = arithmetic.lr * arithmetic.weight_decay * largest
        if not share < DECAY_LIMIT:
            raise ValueError(
                f"sidecar channel 'decay' may take {share:.3g} of a weight per step (lr·λ·m = {arithmetic.lr:g} · "
                f"{arithmetic.weight_decay:g} · {largest:.4g}) and its bound is {DECAY_LIMIT}: lower the upper end of "
                "bounds.decay, weight_decay or lr."
            )

    def set(self, multipliers: Sequence[float]) -> None:
        self._multipliers, self.acted = list(multipliers), 0.0

    def tensors(self) -> list[Tensor]:
        return self._params

    def slope(self, gradients: Sequence[Tensor | None]) -> Tensor:
        return _inner(gradients, self._params)

    def reach(self) -> list[float]:
        return [self.acted * m for m in self._multipliers]

    def folded(self) -> dict[str, Tensor]:
        return {}

    def weights(self) -> list[list[str]]:
        return [[unit.name] for unit in self.units]

    @torch.no_grad()
    def before_update(self, lr: float) -> None:
        shrink = lr * self.weight_decay
        self.acted += shrink
        factors = [1 - shrink * m for m in self._multipliers] + [1 - shrink] * len(self._others)
        alive = [(t, f) for t, f in zip([*self._params, *self._others], factors, strict=True) if t.numel()]
        if alive and shrink:
            torch._foreach_mul_([t for t, _ in alive], [f for _, f in alive])

    def after_update(self) -> None:
        pass


class LrScaleChannel:
    """The optimizer's step of every layer, scaled: `w ← w + m·Δw`. Weight decay is not part of it.

    Keeps one copy of the layers' parameters; two foreach calls per step.
    """

    name = "lr_scale"
    bounds = (0.5, 2.0)

    def __init__(self, model: nn.Module, arithmetic: Arithmetic) -> None:
        layers: dict[tuple[str, int], list[tuple[str, Tensor]]] = {}
        for name, param in model.named_parameters():
            if place := place_of(name):
                layers.setdefault(place[:2], []).append((name, param))
        self.units = make_units(
            (prefix, prefix.rpartition(".")[0] or "layer", layer, sum(p.numel() for _, p in members))
            for (prefix, layer), members in layers.items()
        )
        self._members = [[name for name, _ in members] for members in layers.values()]
        self._groups = [[param for _, param in members] for members in layers.values()]
        self._params = [param for group in self._groups for param in group]
        self._before: list[Tensor] = []  # the parameters before the optimizer's step
        self._multipliers = [1.0] * len(self.units)
        self.acted = 0.0  # steps since the last `set`

    def check(self, largest: float, arithmetic: Arithmetic) -> None:
        lr, eps, lr_max = arithmetic.lr, arithmetic.eps, arithmetic.lr_max
        if not lr * largest <= lr_max:
            raise ValueError(
                f"sidecar channel 'lr_scale' may reach a learning rate of {lr * largest:.3g} (lr·m = {lr:g} · "
                f"{largest:.4g}) and its bound is lr_max={lr_max:g}: lower the upper end of bounds.lr_scale or lr."
            )
        stuck = lr * largest * TINIEST_ROOT / eps if eps > 0 else float("inf")
        if not stuck <= lr_max:
            raise ValueError(
                f"sidecar channel 'lr_scale' may move a stuck parameter by {stuck:.3g} in a step: where the gradient's "
                f"square underflows, Adam divides by ε={eps:g} alone (lr·m·{TINIEST_ROOT:g}/ε), and the bound is "
                f"lr_max={lr_max:g}: raise eps or lower the upper end of bounds.lr_scale."
            )

    def set(self, multipliers: Sequence[float]) -> None:
        self._multipliers, self.acted = list(multipliers), 0.0

    def tensors(self) -> list[Tensor]:
        return self._params

    def slope(self, gradients: Sequence[Tensor | None]) -> Tensor:
        """Along the last step taken, as the loss falls: −⟨∇L, Δw⟩ / m."""
        if not self._before:
            return torch.zeros(len(self.units))
        grads, slopes, i = list(gradients), [], 0
        for group, m in zip(self._groups, self._multipliers, strict=True):
            part = slice(i, i := i + len(group))
            moves = [now.detach() - before for now, before in zip(group, self._before[part], strict=True)]
            slopes.append(-_inner(grads[part], moves).sum() / m)
        return torch.stack(slopes)

    def reach(self) -> list[float]:
        return [self.acted * m for m in self._multipliers]

    def folded(self) -> dict[str, Tensor]:
        return {}

    def weights(self) -> list[list[str]]:
        return self._members

    @torch.no_grad()
    def before_update(self, lr: float) -> None:
        if [b.shape for b in self._before] != [p.shape for p in self._params]:
            self._before = [torch.empty_like(param) for param in self._params]
        torch._foreach_copy_(self._before, self._params)

    @torch.no_grad()
    def after_update(self) -> None:
        back = [1 - m for m, group in zip(self._multipliers, self._groups, strict=True) for _ in group]
        torch._foreach_lerp_(self._params, self._before, back)  # bit for bit the step itself where m = 1
        self.acted += 1


# The modules that write a layer's branches into the residual stream, attention first; the first pair that a
# layer has is its own. A norm after the branch has the last word, so it comes before the matrix it would undo.
WRITERS = (
    ("post_attention_layernorm", "post_feedforward_layernorm"),  # Gemma 2 and 3, OLMo 2, our sandwich
    ("self_attn.o_proj", "mlp.down_proj"),  # Llama, Mistral, Qwen, Phi-3
    ("attn.c_proj", "mlp.c_proj"),  # GPT-2
    ("attention.dense", "mlp.dense_4h_to_h"),  # GPT-NeoX
)


class ResidualGainChannel:
    """A gain on what every branch of a layer writes: `x ← x + m·branch(x)`, in the forward pass.

    Gains are one tensor on the model's device, read by forward hooks on the modules that write.
    """

    name = "residual_gain"
    bounds = (0.5, 2.0)

    def __init__(self, model: nn.Module, arithmetic: Arithmetic) -> None:
        modules = dict(model.named_modules())
        prefixes = {place[:2]: place[0] for name in modules if (place := place_of(f"{name}."))}
        rows = []
        for (_, layer), prefix in prefixes.items():
            pair = next((p for p in WRITERS if all(f"{prefix}.{end}" in modules for end in p)), ())
            for branch, end in zip(("attention", "ffn"), pair, strict=False):
                module = modules[f"{prefix}.{end}"]
                rows.append((f"{prefix}.{end}", branch, layer, sum(p.numel() for p in module.parameters())))
        self.units = make_units(rows)
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        self.gains = torch.ones(len(rows), device=device)
        self._multipliers = [1.0] * len(rows)
        self.acted = 1.0
        self._members = [[f"{name}.{p}" for p, _ in modules[name].named_parameters()] for name, *_ in rows]
        self._writers = [(name, modules[name]) for name, *_ in rows]
        for index, (_, module) in enumerate(self._writers):
            module.register_forward_hook(self._hook(index))

    def _hook(self, index: int):  # type: ignore[no-untyped-def]
        def scale(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
            return output * self.gains[index]  # a tensor without dimensions keeps the output's precision

        return scale

    def check(self, largest: float, arithmetic: Arithmetic) -> None:
        if not largest <= GROWTH_LIMIT:
            raise ValueError(
                f"sidecar channel 'residual_gain' may multiply what a branch writes by {largest:.4g}, and the residual "
                f"stream may grow by {GROWTH_LIMIT:g} in a layer: lower the upper end of bounds.residual_gain."
            )

    def set(self, multipliers: Sequence[float]) -> None:
        self._multipliers = list(multipliers)
        with torch.no_grad():
            self.gains.copy_(torch.tensor(self._multipliers))

    def tensors(self) -> list[Tensor]:
        return [self.gains]

    def slope(self, gradients: Sequence[Tensor | None]) -> Tensor:
        (gradient,) = gradients
        return torch.zeros(len(self.units)) if gradient is None else -gradient

    def reach(self) -> list[float]:
        return self._multipliers

    @torch.no_grad()
    def folded(self) -> dict[str, Tensor]:
        return {
            f"{name}.{p}": parameter.detach() * gain
            for (name, module), gain in zip(self._writers, self.gains, strict=True)
            if gain != 1
            for p, parameter in module.named_parameters()
        }

    def weights(self) -> list[list[str]]:
        return self._members

    def before_update(self, lr: float) -> None:
        pass

    def after_update(self) -> None:
        pass


def _inner(a: Sequence[Tensor | None], b: Sequence[Tensor]) -> Tensor:
    """[n], the inner product of every pair; 0 where there is no gradient or no tensor left."""
    zero = torch.zeros(())
    return torch.stack(
        [
            zero.to(y.device) if x is None or not y.numel() else torch.sum(x.detach() * y.detach(), dtype=torch.float32)
            for x, y in zip(a, b, strict=True)
        ]
    )


CHANNELS: dict[str, type[DecayChannel] | type[LrScaleChannel] | type[ResidualGainChannel]] = {
    DecayChannel.name: DecayChannel,
    LrScaleChannel.name: LrScaleChannel,
    ResidualGainChannel.name: ResidualGainChannel,
}
