"""Width profiles, and matching them to the uniform model by parameters or FLOPs (SCIENCE §7)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from .spec import DecoderSpec, LayerShape, forward_flops_per_token, num_params

TOLERANCE = 0.005  # largest relative difference in cost between matched models

# Width over base width at depth t in 0…1, for the profile's start and end.
PROFILES: dict[str, Callable[[float, float, float], float]] = {
    "ramp": lambda t, start, end: start + (end - start) * t,
    "x_shape": lambda t, start, end: float(np.interp(t, (0.0, 0.75, 1.0), (start, end, start))),
}
GIVEN = ("uniform", "explicit")  # profiles whose widths are given, and never rounded

HEADS = ("exact", "nearest", "equal")

COSTS: dict[str, Callable[[DecoderSpec, int], int]] = {
    "params": lambda spec, seq_len: num_params(spec),
    "flops": forward_flops_per_token,
}


def profile_widths(
    kind: str,
    layers: int,
    base: float,
    start: float = 1.0,
    end: float = 1.0,
    widths: Sequence[int] | None = None,
    multiple_of: int = 1,
) -> list[int]:
    """One width per layer.

    uniform: `base` everywhere · explicit: `widths` · ramp: linear from `base·start` to `base·end` · x_shape:
    `base·start` at both ends, `base·end` three quarters down, linear between ("Variable-Width Transformers",
    2606.18246). Ramp and x_shape are rounded to positive multiples of `multiple_of`. Raises `ValueError` for an unknown
    profile, a size that is not positive or a wrong number of widths.
    """
    if kind not in (*PROFILES, *GIVEN):
        raise ValueError(f"profile={kind} is unknown: choose one of {', '.join((*GIVEN, *PROFILES))}.")
    if (widths is not None) != (kind == "explicit"):
        if widths is None:
            raise ValueError("profile=explicit needs widths=[…], one for each layer: give them, or another profile.")
        given = f"{list(widths)}"
        raise ValueError(
            f"widths={given} does not go with profile={kind}: only profile=explicit takes widths, one for each layer."
        )
    sizes = {"layers": layers, "width": base, "start": start, "end": end, "multiple_of": multiple_of}
    for name, value in sizes.items():
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{name}={value} must be a positive number.")
    if widths is not None:
        if len(widths) != layers or min(widths) < 1:
            raise ValueError(
                f"widths={list(widths)} does not fit layers={layers}: give one positive width for each layer."
            )
        return list(widths)
    if kind == "uniform":
        return [round(base)] * layers
    depths = [layer / max(1, layers - 1) for layer in range(layers)]
    ratios = [PROFILES[kind](depth, start, end) for depth in depths]
    return [multiple_of * max(1, math.floor(base * ratio / multiple_of + 0.5)) for ratio in ratios]


def layer_shapes(
    widths: Sequence[int],
    head_dim: int,
    heads: str = "exact",
    queries_per_kv: int = 1,
    ffn_ratio: float = 3.0,
    base: int | None = None,
) -> tuple[LayerShape, ...]:
    """The shape of each layer: heads in groups of `queries_per_kv`, and `ffn_ratio·width` FFN positions.

    heads="exact": `width/head_dim` heads, which must be whole · "nearest": rounded, to at least one group · "equal": as
    many in every layer as `base/head_dim`, whose width follows the layer's. Raises `ValueError` where heads do not fit,
    naming the layer and sizes that do.
    """
    if heads not in HEADS:
        raise ValueError(f"heads={heads} is unknown: choose one of {', '.join(HEADS)}.")
    sizes = {"head_dim": head_dim, "queries_per_kv": queries_per_kv, "ffn_ratio": ffn_ratio}
    for name, size in sizes.items():
        if not size > 0:
            raise ValueError(f"{name}={size} must be positive.")
    group = head_dim * queries_per_kv
    groups = None
    if heads == "equal":
        if base is None or base % group:
            raise ValueError(_misfit("the uniform model", base or 0, head_dim, queries_per_kv))
        groups = base // group
    shapes = []
    for layer, width in enumerate(widths):
        if heads == "exact" and width % group:
            raise ValueError(_misfit(f"layer {layer}", width, head_dim, queries_per_kv))
        kv_heads = groups or max(1, math.floor(width / group + 0.5))
        dim, rest = divmod(width, kv_heads * queries_per_kv) if groups else (head_dim, 0)
        if rest or dim % 2:
            step = 2 * kv_heads * queries_per_kv
            near = [f"{size}" for size in (width // step * step, -(-width // step) * step) if size]
            raise ValueError(
                f"width {width} of layer {layer} has no {kv_heads * queries_per_kv} heads of equal, even width, which "
                f"heads=equal asks for: use width {' or '.join(near)}, or heads=nearest."
            )
        ffn = max(1, round(ffn_ratio * width))
        shapes.append(LayerShape(width, kv_heads * queries_per_kv, kv_heads, dim, ffn))
    return tuple(shapes)


def _misfit(place: str, width: int, head_dim: int, queries_per_kv: int) -> str:
    """The message for a width that heads do not divide, with the nearest sizes that fit."""
    group = head_dim * queries_per_kv
    near = [f"{size}" for size in (width // group * group, -(-width // group) * group) if size]
    fitting = [d for d in range(2, width // queries_per_kv + 1, 2) if width % (d * queries_per_kv) == 0]
    cure = f"use width {' or '.join(near)}"
    if fitting:
        cure += f", head_dim={min(fitting, key=lambda d: abs(d - head_dim))}"
    groups = f"head_dim={head_dim}" if queries_per_kv == 1 else f"head_dim × queries_per_kv = {group}"
    return f"{groups} does not divide width {width} of {place}: {cure}, or heads=nearest."


def crossing(cost: Callable[[float], int], target: int, low: float, high: float) -> float:
    """The x in [low, high] whose `cost`, which rises in steps, is nearest to `target`."""
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if cost(middle) <= target else (low, middle)
    return min(low, high, key=lambda x: abs(cost(x) - target))


def matched_spec(
    build: Callable[[float, float], DecoderSpec], cost: Callable[[DecoderSpec], int], target: int, ffn_ratio: float
) -> DecoderSpec:
    """The spec `build(scale, ffn_ratio)` whose cost is within 0.5 % of `target`.

    Widths are scaled first; where their grid is too coarse, the FFN ratio makes up the difference. Raises `ValueError`
    where that would take less than two thirds or more than one and a half of `ffn_ratio`.
    """
    scale = crossing(lambda s: cost(build(s, ffn_ratio)), target, 2**-8, 2**8)
    spec = build(scale, ffn_ratio)
    if abs(cost(spec) / target - 1) > TOLERANCE:
        ratio = crossing(lambda r: cost(build(scale, r)), target, ffn_ratio / 1.5, ffn_ratio * 1.5)
        spec = build(scale, ratio)
    if abs(cost(spec) / target - 1) > TOLERANCE:
        raise ValueError(
            f"no scale of these widths costs within {TOLERANCE:.1%} of the uniform model ({cost(spec):,} "
            f"against {target:,}): use a finer multiple_of, other widths, or match=none."
        )
    return spec


def build_spec(
    *,
    layers: int,
    width: int,
    head_dim: int,
    vocab_size: int,
    seq_len: int,
    heads: str = "exact",
    queries_per_kv: int = 1,
    ffn_ratio: float = 3.0,
    norm: str = "sandwich",
    tie_embeddings: bool = True,
    rope_theta: float = 10_000.0,
    norm_eps: float = 1e-6,
    profile: str = "uniform",
    start: float = 1.0,
    end: float = 1.0,
    widths: Sequence[int] | None = None,
    multiple_of: int | None = None,
    match: str = "none",
) -> DecoderSpec:
    """The decoder that a model and a width profile describe.

    multiple_of=None rounds widths to head_dim × queries_per_kv with heads="exact", to 4 with "nearest", to two
    coordinates of every head with "equal".
    match="params" or "flops" (at `seq_len`) scales the profile until it costs, within 0.5 %, what the uniform model at
    `width` costs; explicit widths are kept, and only their FFN ratio is scaled. Raises `ValueError` where sizes do not
    fit together.
    """
    natural = {"exact": head_dim * queries_per_kv, "equal": 2 * max(1, width // head_dim)}.get(heads, 4)
    grid = natural if multiple_of is None else multiple_of

    def build(scale: float, ratio: float, kind: str = profile, given: Sequence[int] | None = widths) -> DecoderSpec:
        sizes = profile_widths(kind, layers, width * scale, start, end, given, grid)
        shapes = layer_shapes(sizes, head_dim, heads, queries_per_kv, ratio, width)
        return DecoderSpec(shapes, vocab_size, str(norm), tie_embeddings, rope_theta, norm_eps)

    if match == "none" or profile == "uniform":
        return build(1.0, ffn_ratio)
    if match not in COSTS:
        raise ValueError(f"match={match} is unknown: choose one of {', '.join(('none', *COSTS))}.")

    def cost(spec: DecoderSpec) -> int:
        return COSTS[match](spec, seq_len)

    uniform = build(1.0, ffn_ratio, "uniform", None)
    return matched_spec(build, cost, cost(uniform), ffn_ratio)
