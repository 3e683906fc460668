"""What the sidecar may press on. A channel is one class and one line in `CHANNELS` (SCIENCE §6)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sidecar.units import Unit, make_units, place_of

DECAY_LIMIT = 0.1  # largest share of a weight that one step may take away
GROWTH_LIMIT = 2.0  # largest factor on what a branch writes into the residual stream
TINIEST = 1.4e-45  # float32's smallest number: a second moment below it is 0


@dataclass(frozen=True)
class Arithmetic:
    """What the bounds of multipliers are checked against: the highest values of the run."""

    lr: float
    weight_decay: float
    eps: float = 1e-8  # Adam's
    beta2: float = 0.999  # Adam's
    lr_max: float = 0.02  # the largest learning rate that any layer may reach


class Channel:
    """A named list of units, and how their multipliers act on the model; a subclass is made of both."""

    name: str
    bounds: tuple[float, float]  # default range of the multipliers
    units: list[Unit]

    def __init__(self, model: nn.Module, arithmetic: Arithmetic) -> None:
        raise NotImplementedError

    def check(self, largest: float, arithmetic: Arithmetic) -> None:
        """Raise `ValueError` where a multiplier of `largest` would not be safe."""
        raise NotImplementedError

    def set(self, multipliers: Sequence[float]) -> None:
        """Put these multipliers, one per unit, in force."""
        raise NotImplementedError

    def weights(self) -> list[list[str]]:
        """Names of the parameters that each unit governs."""
        raise NotImplementedError

    def tensors(self) -> list[Tensor]:
        """What the held-out loss must be differentiated by for `slope`."""
        raise NotImplementedError

    def slope(self, gradients: Sequence[Tensor | None]) -> Tensor:
        """[units], from the gradients of `tensors` (None counts as zero): the credit of every unit.

        The derivative of `−held-out loss` by its log-multiplier, through what it did since the last `set`.
        """
        raise NotImplementedError

    def follow(self) -> None:
        """Keep, from here on, what `slope` needs of the steps since the last `set`."""

    def memory(self) -> dict[str, Tensor]:
        """What was kept, for a restart."""
        return {}

    def remember(self, memory: Mapping[str, Tensor]) -> None:
        """Take back what `memory` returned."""

    def folded(self) -> dict[str, Tensor]:
        """Parameter → its value with the multiplier worked in, where the forward pass depends on it."""
        return {}

    def before_update(self, lr: float) -> None:
        """Called before every optimizer step."""

    def after_update(self) -> None:
        """Called after every optimizer step."""

    def close(self) -> None:
        """Take off the model what was put on it."""


class DecayChannel(Channel):
    """Decoupled weight decay of each weight matrix: `w ← (1 − lr·λ·m)·w`, before the optimizer's step.

    Every trained parameter of two or more dimensions decays. Units are the matrices of numbered layers; embeddings and
    heads keep m = 1. One foreach call per step, two where the slope is followed.

    The slope's trace is `E ← (1 − lr·λ·m)·E + lr·λ·m·w`: what the weight would have gained since the last `set` had
    ln m been less by one unit, as far as the loss's curvature leaves it there. The weight at the end alone would not
    do: behind a norm its own scale changes nothing, but that of its older part against its newer part does.
    """

    name = "decay"
    bounds = (0.1, 10.0)

    def __init__(self, model: nn.Module, arithmetic: Arithmetic) -> None:
        self.weight_decay = arithmetic.weight_decay
        decayed = [(name, param) for name, param in model.named_parameters() if param.ndim >= 2 and param.requires_grad]
        units = [(n, p, place) for n, p in decayed if p.ndim == 2 and (place := place_of(n))]
        self.units = make_units((name, place[2], place[1], param.numel()) for name, param, place in units)
        self._params: list[Tensor] = [param for _, param, _ in units]
        governed = {name for name, _, _ in units}
        self._others: list[Tensor] = [param for name, param in decayed if name not in governed]
        self._multipliers = [1.0] * len(self.units)
        self._traces: list[Tensor] = []  # per unit, shaped like its parameter

    def check(self, largest: float, arithmetic: Arithmetic) -> None:
        share = arithmetic.lr * arithmetic.weight_decay * largest
        if not share < DECAY_LIMIT:
            raise ValueError(
                f"sidecar channel 'decay' may take {share:.3g} of a weight per step (lr·λ·m = {arithmetic.lr:g} · "
                f"{arithmetic.weight_decay:g} · {largest:.4g}) and its bound is {DECAY_LIMIT}: lower the upper end of "
                "bounds.decay, weight_decay or lr."
            )

    def set(self, multipliers: Sequence[float]) -> None:
        self._multipliers = list(multipliers)
        for trace in self._traces:
            trace.zero_()

    def tensors(self) -> list[Tensor]:
        return self._params

    def follow(self) -> None:
        self._traces = [torch.zeros_like(param) for param in self._params]

    def slope(self, gradients: Sequence[Tensor | None]) -> Tensor:
        return _inner(gradients, self._traces)

    def memory(self) -> dict[str, Tensor]:
        return {unit.name: trace for unit, trace in zip(self.units, self._traces, strict=False)}

    def remember(self, memory: Mapping[str, Tensor]) -> None:
        for unit, trace in zip(self.units, self._traces, strict=False):
            trace.copy_(memory[unit.name])

    def weights(self) -> list[list[str]]:
        return [[unit.name] for unit in self.units]

    @torch.no_grad()
    def before_update(self, lr: float) -> None:
        shrink = lr * self.weight_decay
        if self._traces and shrink:
            rows = zip(self._traces, self._params, self._multipliers, strict=True)
            if whole := [(trace, w, shrink * m) for trace, w, m in rows if _alike(trace, w)]:
                torch._foreach_lerp_(*map(list, zip(*whole, strict=True)))
        factors = [1 - shrink * m for m in self._multipliers] + [1 - shrink] * len(self._others)
        alive = [(t, f) for t, f in zip([*self._params, *self._others], factors, strict=True) if t.numel()]
        if alive and shrink:
            torch._foreach_mul_([t for t, _ in alive], [f for _, f in alive])


class LrScaleChannel(Channel):
    """The optimizer's step of every layer, scaled: `w ← w + m·Δw`. Weight decay is not part of it.

    Keeps one copy of the layers' parameters; two foreach calls per step. Where the slope is followed, a second copy
    and two more: the sum of the scaled steps since the last `set`, as far as the loss's curvature leaves it there.
    """

    name = "lr_scale"
    bounds = (0.5, 2.0)

    def __init__(self, model: nn.Module, arithmetic: Arithmetic) -> None:
        layers: dict[tuple[str, int], list[tuple[str, Tensor]]] = {}
        for name, param in model.named_parameters():
            if param.requires_grad and (place := place_of(name)):
                layers.setdefault(place[:2], []).append((name, param))
        self.units = make_units(
            (prefix, prefix.rpartition(".")[0] or "layer", layer, sum(p.numel() for _, p in members))
            for (prefix, layer), members in layers.items()
        )
        self._members = [[name for name, _ in members] for members in layers.values()]
        self._groups = [[param for _, param in members] for members in layers.values()]
        self._params = [param for group in self._groups for param in group]
        self._before: list[Tensor] = []  # the parameters before the optimizer's step
        self._moved: list[Tensor] = []  # by the steps since the last `set`; empty where nobody follows them
        self._multipliers = [1.0] * len(self.units)

    def check(self, largest: float, arithmetic: Arithmetic) -> None:
        lr, eps, lr_max = arithmetic.lr, arithmetic.eps, arithmetic.lr_max
        if not lr * largest <= lr_max:
            raise ValueError(
                f"sidecar channel 'lr_scale' may reach a learning rate of {lr * largest:.3g} (lr·m = {lr:g} · "
                f"{largest:.4g}) and its bound is lr_max={lr_max:g}: lower the upper end of bounds.lr_scale or lr, "
                "or raise lr_max."
            )
        unseen = math.sqrt(TINIEST / (1 - arithmetic.beta2))  # the largest gradient that leaves no second moment
        stuck = lr * largest * unseen / eps if eps > 0 else math.inf
        if not stuck <= lr_max:
            raise ValueError(
                f"sidecar channel 'lr_scale' may move a stuck parameter by {stuck:.3g} in a step: where the second "
                f"moment underflows, Adam divides by ε={eps:g} alone (lr·m·{unseen:.2g}/ε), and the bound is "
                f"lr_max={lr_max:g}: raise eps or lower the upper end of bounds.lr_scale."
            )

    def set(self, multipliers: Sequence[float]) -> None:
        self._multipliers = list(multipliers)
        for moved in self._moved:
            moved.zero_()

    def tensors(self) -> list[Tensor]:
        return self._params

    def follow(self) -> None:
        self._moved = [torch.zeros_like(param) for param in self._params]

    def slope(self, gradients: Sequence[Tensor | None]) -> Tensor:
        inner = -_inner(gradients, self._moved)
        return torch.stack([part.sum() for part in inner.split([len(group) for group in self._groups])])

    def memory(self) -> dict[str, Tensor]:
        names = (name for members in self._members for name in members)
        return dict(zip(names, self._moved, strict=False))

    def remember(self, memory: Mapping[str, Tensor]) -> None:
        names = (name for members in self._members for name in members)
        for name, moved in zip(names, self._moved, strict=False):
            moved.copy_(memory[name])

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
        if whole := [rows for rows in zip(self._moved, self._params, self._before, strict=False) if _alike(*rows)]:
            moved, now, before = map(list, zip(*whole, strict=True))
            torch._foreach_add_(moved, now)
            torch._foreach_sub_(moved, before)


# The modules that write a layer's branches into the residual stream, attention first; the first pair that a
# layer has is its own. A norm after the branch has the last word, so it comes before the matrix it would undo.
WRITERS = (
    ("post_attention_layernorm", "post_feedforward_layernorm"),  # Gemma 2 and 3, OLMo 2, our sandwich
    ("self_attn.o_proj", "mlp.down_proj"),  # Llama, Mistral, Qwen, Phi-3
    ("attn.c_proj", "mlp.c_proj"),  # GPT-2
    ("attention.dense", "mlp.dense_4h_to_h"),  # GPT-NeoX
)


class ResidualGainChannel(Channel):
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
        self._members = [[f"{name}.{p}" for p, _ in modules[name].named_parameters()] for name, *_ in rows]
        self._writers = [(name, modules[name]) for name, *_ in rows]
        layers = {layer for _, layer in prefixes} if rows else set()
        if skipped := sorted(layers - {layer for _, _, layer, _ in rows}):
            raise ValueError(
                f"sidecar channel 'residual_gain' knows no module that writes what layer {skipped[0]} of "
                f"{type(model).__name__} adds to the residual stream: name it in WRITERS of sidecar/channels.py."
            )
        self._hooks = [m.register_forward_hook(self._hook(index)) for index, (_, m) in enumerate(self._writers)]

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
        """Of gains as they are, not of what training made of them."""
        (gradient,) = gradients
        return torch.zeros(len(self.units)) if gradient is None else -gradient * self.gains

    @torch.no_grad()
    def folded(self) -> dict[str, Tensor]:
        """Raises `ValueError` for a module whose output is not its parameters' multiple, such as Gemma's 1 + γ."""
        found: dict[str, Tensor] = {}
        for (name, module), gain in zip(self._writers, self._multipliers, strict=True):
            if gain == 1:
                continue
            if not _is_linear_in_its_parameters(module):
                raise ValueError(
                    f"the gain on {name} ({type(module).__name__}) cannot be worked into its parameters, of which its "
                    "output is no multiple: keep the sidecar with the model."
                )
            found |= {f"{name}.{p}": parameter.detach() * gain for p, parameter in module.named_parameters()}
        return found

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def weights(self) -> list[list[str]]:
        return self._members


@torch.no_grad()
def _is_linear_in_its_parameters(module: nn.Module) -> bool:
    parameters: dict[str, Tensor] = dict(module.named_parameters())
    largest = max(parameters.values(), key=torch.numel)
    inputs = largest.shape[1] if isinstance(module, nn.Linear) else largest.shape[0]  # else Conv1D or a norm
    x = torch.linspace(-1, 1, inputs, device=largest.device).to(largest.dtype)[None, None]
    once = torch.func.functional_call(module, parameters, (x,))
    twice = torch.func.functional_call(module, {name: 2 * p for name, p in parameters.items()}, (x,))
    return torch.allclose(2 * once, twice, rtol=1e-2)


def _alike(*tensors: Tensor) -> bool:
    return len({tensor.shape for tensor in tensors}) == 1


def _inner(a: Sequence[Tensor | None], b: Sequence[Tensor]) -> Tensor:
    """[n], the inner product of every pair; 0 where there is no gradient or no tensor left."""
    zero = torch.zeros(())
    return torch.stack(
        [
            zero.to(y.device)
            if x is None or x.shape != y.shape
            else torch.sum(x.detach() * y.detach(), dtype=torch.float32)
            for x, y in zip(a, b, strict=True)
        ]
    )


CHANNELS: dict[str, type[Channel]] = {
    DecayChannel.name: DecayChannel,
    LrScaleChannel.name: LrScaleChannel,
    ResidualGainChannel.name: ResidualGainChannel,
}
