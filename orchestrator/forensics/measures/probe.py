"""The activation probe: each layer's effect on the residual stream of a few rows of tokens (SCIENCE §1)."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.attention import Attention, Rope, rotate
from models.transformer import Decoder, PreNormBlock, write_prefix
from orchestrator.common.errors import UserError

MEASURES = (
    "stream_norm", "total_write", "attention_write", "ffn_write", "adjacent_alignment", "copy_density", "sink_mass",
)  # fmt: skip
GROUP = 512  # tokens that are run at once

Sums = dict[str, tuple[float, float]]  # measure → numerator and denominator, which add up over groups of rows
Call = tuple[Tensor, Tensor]  # what a module read and what it wrote


def probe(model: nn.Module, tokens: Tensor, special: Collection[int] = ()) -> list[dict[str, float | None]]:
    """`MEASURES` of every layer of `model` on `tokens` [B, T], None where a measure has no meaning.

    `model`: a `Decoder`, or a transformers model with eager attention, in evaluation mode. `special`: ids of register
    tokens (see `pattern_sums`). A block takes the residual stream x_l and returns x_{l+1}. Means are in float64 over
    the positions at which the stream is not zero (an unused token's embedding may be). Activations are dropped layer
    by layer. Raises `UserError` for tokens outside the vocabulary, for rows that are too long, and for a model without
    a stack of layers.
    """
    vocabulary, depth = sizes(model)
    layers = blocks(model, depth)
    check(tokens, vocabulary)
    totals = [dict.fromkeys(MEASURES, (0.0, 0.0)) for _ in layers]
    for group in tokens.long().split(max(1, GROUP // tokens.shape[1])):
        for total, sums in zip(totals, run(model, layers, group, special), strict=True):
            for name, (numerator, denominator) in sums.items():
                total[name] = (total[name][0] + numerator, total[name][1] + denominator)
    return [{name: _ratio(*sums) for name, sums in total.items()} for total in totals]


def _ratio(numerator: float, denominator: float) -> float | None:
    return numerator / denominator if denominator and math.isfinite(numerator / denominator) else None


def check(tokens: Tensor, size: int) -> None:
    """Raise `UserError` unless `tokens` are integers [rows, length] below `size`."""
    if tokens.ndim != 2 or not tokens.numel() or tokens.is_floating_point():
        raise UserError(
            f"tokens of shape {tuple(tokens.shape)} and type {tokens.dtype} cannot be run: "
            "give integers, [rows, length]."
        )
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= size:
        raise UserError(f"tokens lie in {low}…{high}, outside the vocabulary of {size}: use the run's own tokenizer.")


def sizes(model: nn.Module) -> tuple[int, int]:
    """Size of the vocabulary, and number of layers."""
    if isinstance(model, Decoder):
        return model.spec.vocab_size, len(model.spec.layers)
    config: Any = model.config.get_text_config()  # type: ignore[operator, union-attr]  # transformers' models carry one
    return config.vocab_size, config.num_hidden_layers


def blocks(model: nn.Module, depth: int) -> nn.ModuleList:
    """The model's layers: of the module lists of `depth` entries, the one with the most parameters."""
    stacks = [part for part in model.modules() if isinstance(part, nn.ModuleList) and len(part) == depth]
    if not stacks:
        raise UserError(
            f"{type(model).__name__} holds no list of its {depth} layers, so that none can be watched: "
            "read its weights without a probe."
        )
    return max(stacks, key=lambda stack: sum(parameter.numel() for parameter in stack.parameters()))


@torch.no_grad()
def run(model: nn.Module, layers: nn.ModuleList, tokens: Tensor, special: Collection[int]) -> list[Sums]:
    """Per layer, the sums of every measure over one pass of `tokens` [B, T]."""
    result: list[Sums] = [{} for _ in layers]
    with ExitStack() as hooks:
        for block, sums in zip(layers, result, strict=True):
            _watch(block, sums, hooks)
        try:
            patterns = attention_patterns(model, layers, tokens)
        except (IndexError, RuntimeError) as error:  # usually a position without an embedding
            raise UserError(
                f"{type(model).__name__} cannot run rows of {tokens.shape[1]} tokens "
                f"({str(error).splitlines()[0]}): give shorter rows, or read its weights without a probe."
            ) from error
    for pattern, sums in zip(patterns, result, strict=False):
        if pattern is not None and pattern.shape[2:] == (tokens.shape[1],) * 2:
            sums |= pattern_sums(pattern, tokens, special)
    return result


def _watch(block: nn.Module, sums: Sums, hooks: ExitStack) -> None:
    """Record the block's writes in `sums` whenever it runs while `hooks` is open."""
    calls = watch_parts(block, hooks)

    def whole(_: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        before, after = _positions(named.get("hidden_states"), *inputs), _positions(output)
        if len(before) and before.shape == after.shape:
            sums.update(stream_sums(before, after, calls))
        calls.clear()

    hooks.callback(block.register_forward_hook(whole, with_kwargs=True).remove)


def watch_parts(block: nn.Module, hooks: ExitStack) -> list[Call]:
    """A list that gets what each part of the block reads and writes, in order, when it runs while `hooks` is open."""
    calls: list[Call] = []

    def part(_: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        written = _positions(output).clone()  # a block may add to it in place
        calls.append((_positions(named.get("hidden_states"), *inputs), written))

    for child in block.children():
        hooks.callback(child.register_forward_hook(part, with_kwargs=True).remove)
    return calls


def _positions(*values: Any) -> Tensor:
    """The first tensor [..., D] among `values` and the lists in them, as [positions, D]; empty where none is."""
    for value in values:
        if isinstance(value, Tensor) and value.ndim >= 2:
            return value.flatten(0, -2)
        if isinstance(value, tuple | list) and len(found := _positions(*value)):
            return found
    return torch.empty(0, 0)


def relative_write(write: Tensor, stream: Tensor) -> Tensor:
    """‖write‖/‖stream‖ at each position, float64 [...]: of what is written to a residual stream [..., D]."""
    return write.double().norm(dim=-1) / stream.double().norm(dim=-1)


def stream_sums(before: Tensor, after: Tensor, calls: Sequence[Call]) -> Sums:
    """Writes and alignment, summed over positions: of x_l `before` and x_{l+1} `after`, both [N, D].

    A branch's write is relative to the stream that the branch reads, and absent where `branches` finds none. Positions
    with a zero stream are left out.
    """
    measures = {  # each [N], and the stream that it is relative to
        "stream_norm": (before.double().norm(dim=-1), before),
        "total_write": (relative_write(after.double() - before.double(), before), before),
        "adjacent_alignment": (F.cosine_similarity(before.double(), after.double(), dim=-1), before),
    }
    found = branches(before, after, calls)
    if found is not None:
        attention, ffn, stream = found
        measures["attention_write"] = relative_write(attention, before), before
        measures["ffn_write"] = relative_write(ffn, stream), stream
    defined = {name: values[stream.any(dim=-1)] for name, (values, stream) in measures.items()}
    return {name: (values.sum().item(), values.numel()) for name, values in defined.items()}


def branches(before: Tensor, after: Tensor, calls: Sequence[Call]) -> tuple[Tensor, Tensor, Tensor] | None:
    """The writes of attention and FFN to the stream [N, D], and the stream that the FFN reads; None if unknown.

    They are the two parts of a block whose outputs, added to what it read, are what it returns, attention
    first: after a branch's post-norm where it has one, whatever the block calls its parts. The FFN reads the
    stream after attention where some part does (sequential), else the block's input (parallel). A block that
    normalises the sum (BERT) or scales its branches has no such pair.
    """
    fitting = [output for _, output in calls if len(output) == len(before) and output.shape[1] <= before.shape[1]]
    for attention, ffn in combinations(fitting, 2):
        x = before[:, : attention.shape[1]]  # a layer may be narrower than the stream
        if attention.shape == ffn.shape and _is_sum(after, x, attention, ffn):
            sequential = any(_is_sum(read, x, attention) for read, _ in calls)
            return attention, ffn, write_prefix(before, x + attention) if sequential else before
    return None


def _is_sum(total: Tensor, *terms: Tensor) -> bool:
    """True where `total` [N, ≥ width] begins with the sum of `terms` [N, width], up to rounding."""
    summands = torch.stack(terms).double()  # [terms, N, width]
    start = total[:, : summands.shape[2]]
    slack = 4 * torch.finfo(total.dtype).eps * summands.abs().sum(0)
    return start.shape == slack.shape and bool(((summands.sum(0) - start).abs() <= slack).all())


def attention_patterns(model: nn.Module, layers: nn.ModuleList, tokens: Tensor) -> Sequence[Tensor | None]:
    """Run `tokens` [B, T]; each layer's attention [B, heads, T, T], one row per query; empty if not returned.

    None for layers of hybrids that have none.
    """
    patterns: list[Tensor | None] = []

    def keep(attention: nn.Module, inputs: tuple[Any, ...], _: Tensor) -> None:
        assert isinstance(attention, Attention)
        patterns.append(attention_pattern(attention, *inputs))

    ours = [block for block in layers if isinstance(block, PreNormBlock)]
    if not ours:
        with ExitStack() as hooks:
            seen = [_watch_pattern(block, tokens.shape[1], hooks) for block in layers]
            returned = getattr(model(input_ids=tokens, output_attentions=True), "attentions", None) or ()
        is_each = len(returned) in (0, len(layers))  # those of a hybrid are returned without saying whose they are
        return returned if is_each else [of[0] if len(of) == 1 else None for of in seen]
    with ExitStack() as hooks:
        for block in ours:
            hooks.callback(block.self_attn.register_forward_hook(keep).remove)
        model(tokens)
    return patterns


def _watch_pattern(block: nn.Module, length: int, hooks: ExitStack) -> list[Tensor]:
    """A list that gets the attention patterns of the block's parts when it runs while `hooks` is open."""
    found: list[Tensor] = []

    def part(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        for value in output if isinstance(output, tuple) else ():
            is_pattern = isinstance(value, Tensor) and value.dim() == 4 and value.shape[2:] == (length, length)
            if is_pattern and not any(value is other for other in found):
                found.append(value)

    for inner in block.modules():
        hooks.callback(inner.register_forward_hook(part).remove)
    return found


def attention_pattern(attention: Attention, x: Tensor, rope: Rope) -> Tensor:
    """The weights [B, heads, T, T] by which `attention` mixes values when it reads x [B, T, width]."""
    places = (*x.shape[:2], -1, attention.head_dim)
    q = rotate(attention.q_proj(x).view(places), rope).transpose(1, 2)  # [B, heads, T, head_dim]
    k = rotate(attention.k_proj(x).view(places), rope).transpose(1, 2)  # [B, kv_heads, T, head_dim]
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    scores = q @ k.mT * attention.head_dim**-0.5
    future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=x.device).triu(1)
    return scores.masked_fill(future, -math.inf).softmax(-1)


def pattern_sums(pattern: Tensor, tokens: Tensor, special: Collection[int] = ()) -> Sums:
    """`copy_density` and `sink_mass` of an attention pattern [B, heads, T, T] over `tokens` [B, T], as sums.

    `copy_density`: the mass a query i puts on its targets, over the mass that uniform attention to its visible
    positions would put there; 1 is chance. Targets are the visible j < i whose token equals i's, or whose
    predecessor's does (what followed an earlier copy). Both masses are means over heads and over the queries
    that have a target. An encoder's targets are earlier positions too, among visible ones that are the whole row.
    `sink_mass`: the mass on the first position and on `special` tokens, mean over heads and queries i > 0.
    """
    mass = pattern.double().mean(1)  # [B, T, T]
    place = torch.arange(mass.shape[1], device=mass.device)
    back = place.unsqueeze(1) - place  # i − j
    visible = reach(pattern, back)  # [T, T]
    same = tokens.unsqueeze(2) == tokens.unsqueeze(1)  # [B, i, j]
    follows = F.pad(same[..., :-1], (1, 0))  # the same for j − 1
    target = (same | follows) & (back > 0) & visible  # [B, T, T]
    chance = target.sum(-1) / visible.sum(-1).double()  # [B, T]
    sink = torch.isin(tokens, torch.tensor(sorted(special), dtype=tokens.dtype, device=tokens.device))
    sink[:, 0] = True
    sunk = (mass * sink.unsqueeze(1)).sum(-1)[:, 1:]  # [B, T-1]
    return {
        "copy_density": ((mass * target).sum().item(), chance.sum().item()),  # no target: nothing added to either
        "sink_mass": (sunk.sum().item(), sunk.numel()),
    }


def reach(pattern: Tensor, back: Tensor) -> Tensor:
    """The positions that a query can see [T, T]: as far back and ahead as any head of the layer attends.

    `back` [T, T] is i − j. A causal mask, a sliding window and an encoder's full row are inferred from where any mass
    lies; a far mass that underflows in one head hides no position.
    """
    seen = back[(pattern > 0).any(dim=1).any(dim=0)]
    return (back <= seen.max()) & (back >= seen.min())
