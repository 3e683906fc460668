"""Gains on what the branches of layers write into the residual stream."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sidecar.channels.channel import Arithmetic, Channel
from sidecar.sharded import gather
from sidecar.units import layer_in, make_units

GROWTH_LIMIT = 2.0  # largest gain

# The modules whose output a layer adds to the residual stream, attention's and the FFN's; a layer's first match counts.
# Norms come first: a norm after a matrix would undo a gain on the matrix.
WRITERS = (
    ("post_attention_layernorm", "post_feedforward_layernorm"),  # Gemma 2 and 3, OLMo 2, our sandwich
    ("self_attn.o_proj", "mlp.down_proj"),  # Llama, Mistral, Qwen, Phi-3
    ("attn.c_proj", "mlp.c_proj"),  # GPT-2
    ("attention.dense", "mlp.dense_4h_to_h"),  # GPT-NeoX
)


class ResidualGainChannel(Channel):
    """A gain on what each branch of a layer adds to the residual stream: `x ← x + m·branch(x)`, in the forward pass.

    Forward hooks on the modules that write read the gains from one tensor on the model's device.
    """

    name = "residual_gain"
    bounds = (0.5, 2.0)

    def __init__(self, model: nn.Module, arithmetic: Arithmetic) -> None:
        modules = dict(model.named_modules())
        prefixes = {place[:2]: place[0] for name in modules if (place := layer_in(f"{name}."))}
        rows = []
        for (_, layer), prefix in prefixes.items():
            pair = next((p for p in WRITERS if all(f"{prefix}.{end}" in modules for end in p)), ())
            for branch, end in zip(("attention", "ffn"), pair, strict=False):
                module = modules[f"{prefix}.{end}"]
                rows.append((f"{prefix}.{end}", branch, layer, sum(p.numel() for p in module.parameters()), 1))
        self.units = make_units(rows)
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        self.gains = torch.ones(len(rows), device=device)
        self._multipliers = [1.0] * len(rows)
        self._members = [[f"{name}.{p}" for p, _ in modules[name].named_parameters()] for name, *_ in rows]
        self._writers = [(name, modules[name]) for name, *_ in rows]
        layers = {layer for _, layer in prefixes} if rows else set()
        if skipped := sorted(layers - {layer for _, _, layer, *_ in rows}):
            raise ValueError(
                f"sidecar channel 'residual_gain' knows no module that writes what layer {skipped[0]} of "
                f"{type(model).__name__} adds to the residual stream: add its name to WRITERS in "
                "sidecar/channels/residual_gain.py."
            )
        self._hooks = [m.register_forward_hook(self._hook(index)) for index, (_, m) in enumerate(self._writers)]

    def _hook(self, index: int):  # type: ignore[no-untyped-def]
        def scale(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
            return output * self.gains[index]  # a tensor without dimensions keeps the output's precision

        return scale

    def check(self, largest: float, arithmetic: Arithmetic) -> None:
        if not largest <= GROWTH_LIMIT:
            raise ValueError(
                f"sidecar channel 'residual_gain' may reach a gain of {largest:.4g} and its bound is {GROWTH_LIMIT:g}: "
                "lower the upper end of bounds.residual_gain."
            )

    def set(self, multipliers: Sequence[float]) -> None:
        self._multipliers = list(multipliers)
        self.gains.detach().copy_(torch.tensor(self._multipliers))

    def tensors(self) -> list[Tensor]:
        return [self.gains]

    def slope(self, gradients: Sequence[Tensor | None]) -> Tensor:
        """The derivative by the gains in force, without their effect on training."""
        (gradient,) = gradients
        return torch.zeros(len(self.units)) if gradient is None else -gradient * self.gains

    @torch.no_grad()
    def folded(self) -> dict[str, Tensor]:
        """Parameter → its value times its gain, where the gain is not 1.

        Raises `ValueError` for a module that is not linear in its parameters, such as Gemma's norm with 1 + γ.
        """
        found: dict[str, Tensor] = {}
        for (name, module), gain in zip(self._writers, self._multipliers, strict=True):
            if gain == 1:
                continue
            if not _is_linear_in_its_parameters(module):
                raise ValueError(
                    f"the gain on {name} ({type(module).__name__}) cannot be worked into its parameters, because its "
                    "output is not proportional to them: keep the sidecar with the model."
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
    parameters = {name: gather(parameter) for name, parameter in module.named_parameters()}
    largest = max(parameters.values(), key=torch.numel)
    inputs = largest.shape[1] if isinstance(module, nn.Linear) else largest.shape[0]  # else Conv1D or a norm
    x = torch.linspace(-1, 1, inputs, device=largest.device).to(largest.dtype)[None, None]
    once = torch.func.functional_call(module, parameters, (x,))
    twice = torch.func.functional_call(module, {name: 2 * p for name, p in parameters.items()}, (x,))
    return torch.allclose(2 * once, twice, rtol=1e-2)
