"""Compares what `CheckpointModel` reads with the numbers that flow through the model itself."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from orchestrator.forensics.architecture.kinds import PLACES
from orchestrator.forensics.architecture.layer import Layer
from orchestrator.forensics.architecture.model import CheckpointModel
from tests.orchestrator.forensics.architecture.zoo.flow import Attention, Flow, Product, run


class Wrong(AssertionError):
    """The reading says what the model does not do."""


def same(a: Tensor, b: Tensor) -> bool:
    """True where two tensors agree to rounding."""
    return a.shape == b.shape and bool(torch.allclose(a, b, rtol=2e-3, atol=2e-4 * float(b.abs().max() + 1e-9)))


def _parallel(a: Tensor, b: Tensor) -> bool:
    """True where every row of `a` is a positive multiple of that of `b`, as they are or centred (a norm follows)."""
    if a.shape != b.shape:
        return False
    centred = [(a, b - b.mean(-1, keepdim=True)), (a, b - b.mean())]
    for x, y in [(a, b), *centred]:
        cosines = torch.nn.functional.cosine_similarity(x, y, dim=-1)
        if bool((cosines > 1 - 1e-4).all()):
            return True
    return False


class Checked:
    """The events of one layer that its reading was found to fit."""

    def __init__(self, model: nn.Module, flow: Flow, layer: Layer) -> None:
        self.model, self.flow, self.layer = model, flow, layer
        self.branches: dict[str, tuple[Tensor, Tensor]] = {}  # branch → what it reads and writes

    def attention(self) -> None:
        """q, k, v in the order of heads, and o."""
        layer = self.layer
        heads = layer.heads
        if heads is None:
            raise Wrong("heads unknown")
        share = heads.heads // heads.kv_heads
        q, k, v, o = (layer.weight(kind) for kind in "qkvo")

        def rows(x: Tensor, w: Tensor, repeat: int) -> Tensor:  # [heads, tokens, head_dim]
            return (x @ w.T).reshape(len(x), -1, heads.head_dim).transpose(0, 1).repeat_interleave(repeat, 0)

        reads = _distinct(p.read for p in self.flow.products if p.read.shape[1] == v.shape[1])
        found: list[tuple[Tensor, Attention]] = []
        for x in reads:
            value = rows(x, v, share)
            for attention in self.flow.attentions:
                if same(value, attention.value) or (
                    value.shape == attention.value.shape and _parallel(attention.value, value)
                ):
                    found.append((x, attention))
        if not found:
            raise Wrong("v is nobody's value")
        problem = ""
        for x, attention in found:
            if attention.query is None or attention.key is None:
                raise Wrong("no scores seen")
            if not _parallel(attention.query, rows(x, q, 1)[:, 0]):
                problem = "q is nobody's query"
            elif not _parallel(attention.key, rows(x, k, share)[:, 0]):
                problem = "k is nobody's key"
            else:
                break
        else:
            raise Wrong(problem)
        context = attention.result.transpose(0, 1).reshape(len(x), -1)
        written = [p for p in self.flow.products if p.read.shape[1] == o.shape[1] and same(p.read @ o.T, p.written)]
        exact = [p for p in written if same(p.read, context)]
        if not written:
            raise Wrong("o is nobody's")
        if not exact and not self._reads_heads(written[0], attention):
            raise Wrong("o does not read the heads in their order")
        self.branches["attention"] = (x, (exact or written)[0].written)

    def _reads_heads(self, product: Product, attention: Attention) -> bool:
        """True where what o reads is the heads' result after a gate or norm: each head's own share, in order."""
        heads, tokens, size = attention.result.shape
        inner = product.read.reshape(tokens, heads, size).transpose(0, 1)
        if _parallel(inner, attention.result):
            return True
        ratios = inner / attention.result
        # a norm's scale by head_dim and token, or a gate between 0 and 1, or twice that
        return bool(((ratios >= 0) & (ratios <= 2)).all()) or _separable(ratios)

    def ffn(self) -> None:
        """gate, up and down, of which the gate is the one that is not linear."""
        layer = self.layer
        up, down = layer.weight("up"), layer.weight("down")
        gate = layer.weight("gate") if "gate" in layer.kinds else None
        reads = _distinct(p.read for p in self.flow.products if p.read.shape[1] == up.shape[1])
        x = next((x for x in reads if self._is_written(x, x @ up.T)), None)
        if x is None:
            raise Wrong("up is nobody's")
        if gate is not None and not self._is_written(x, x @ gate.T):
            raise Wrong("gate is nobody's, or reads another input than up")
        ends = [p for p in self.flow.products if p.read.shape[1] == down.shape[1] and same(p.read @ down.T, p.written)]
        if not ends:
            raise Wrong("down is nobody's")
        inner = ends[0].read
        if same(self._flipped(x, up, down), -inner) != (gate is not None):
            raise Wrong(
                "up is not what the gate multiplies" if gate is not None else "an FFN with a gate is read without"
            )
        if gate is not None and same(self._flipped(x, gate, down), -inner):
            raise Wrong("gate and up are exchanged")
        self.branches["ffn"] = (x, ends[0].written)

    def _is_written(self, x: Tensor, wanted: Tensor) -> bool:
        return any(
            same(p.read, x) and _columns(p.written, wanted) is not None
            for p in self.flow.products
            if p.read.shape == x.shape
        )

    def _flipped(self, x: Tensor, w: Tensor, down: Tensor) -> Tensor:
        """The input of `down` in a run where the products x·w have the other sign."""
        wanted, w_down = x @ w.T, down

        def change(read: Tensor, written: Tensor) -> Tensor:
            if read.shape != x.shape or not same(read, x):
                return written
            columns = _columns(written.reshape(len(x), -1), wanted)
            if columns is None:
                return written
            written = written.clone()
            written[..., columns] *= -1
            return written

        flow = run(self.model, change)
        return next(
            (
                p.read
                for p in flow.products
                if p.read.shape[1] == w_down.shape[1] and same(p.read @ w_down.T, p.written)
            ),
            torch.empty(0),
        )

    def norms(self) -> list[str]:
        """Check the scale at every place; returns the places whose norm the reading leaves out."""
        truth: dict[str, list[nn.Module]] = {place: [] for place in PLACES}
        width = self.layer.width
        norms = [n for n in self.flow.norms if n.read.shape[1] == width]
        after = {branch: [n for n in norms if same(n.read, wrote)] for branch, (_, wrote) in self.branches.items()}
        closing = {  # norms of the stream itself, where a branch reads the stream as it is
            branch: [
                n for n in norms if any(same(n.read, x + out) for out in (wrote, *(n.written for n in after[branch])))
            ]
            for branch, (x, wrote) in self.branches.items()
        }
        for branch, (x, _) in self.branches.items():
            truth[f"post_{branch}"] += [n.module for n in after[branch]]
            # after attention it closes the branch only where the stream goes on from it, which the FFN then reads
            if not after[branch] and closing.get("ffn"):
                truth[f"post_{branch}"] += [n.module for n in closing[branch]]
            if not closing[branch]:
                truth[f"pre_{branch}"] += [n.module for n in norms if same(n.written, x)]
        absent = []
        for place, modules in truth.items():
            if f"{place.split('_')[1]}" not in self.branches:
                continue
            gamma = self.layer.norm(place)
            scaled = [scale for m in modules if (scale := scale_of(m, width)) is not None]
            if gamma is None:
                absent += [place] if scaled else []
            elif not any(torch.allclose(gamma, s, rtol=3e-3, atol=3e-3) for s in scaled):
                raise Wrong(f"{place}: " + ("another scale than the norm's there" if scaled else "there is no norm"))
        return absent


def scale_of(norm: nn.Module, width: int) -> Tensor | None:
    """γ as it multiplies, from how the module answers; None where it multiplies by 1 alone."""
    x = torch.randn(1, 1, width, generator=torch.Generator().manual_seed(3)) * 3
    again = torch.roll(x, 1)
    with torch.no_grad():
        out, other = (y[0] if isinstance(y := norm(values), tuple) else y for values in (x, again))
    ways = [lambda x: x / x.square().mean().sqrt(), lambda x: (x - x.mean()) / x.std(correction=0)]
    ratios = [((out / way(x))[0, 0], (other / way(again))[0, 0]) for way in ways]
    gamma = next((a for a, b in ratios if torch.allclose(a, b, rtol=2e-3, atol=2e-3)), None)
    if gamma is None:
        raise Wrong(f"{type(norm).__name__} is no norm")
    return None if torch.allclose(gamma, torch.ones(width), atol=1e-3) else gamma


def _columns(written: Tensor, wanted: Tensor) -> list[int] | None:
    """Indices of the columns of `written` that are those of `wanted`, in order; None where some are not there."""
    distances = torch.cdist(wanted.T, written.T)
    near, index = distances.min(dim=1)
    return index.tolist() if bool((near <= 1e-3 * wanted.norm(dim=0).clamp_min(1e-3)).all()) else None


def _separable(ratios: Tensor) -> bool:
    """True where the ratios [heads, tokens, size] are a scale per token times one per coordinate."""
    flat = ratios.transpose(0, 1).flatten(1)
    singular = torch.linalg.svdvals(flat)
    return bool(singular[1] < 1e-3 * singular[0])


def _distinct(tensors: Iterator[Tensor]) -> list[Tensor]:
    found: list[Tensor] = []
    for tensor in tensors:
        if not any(same(tensor, other) for other in found):
            found.append(tensor)
    return found


def check(opened: CheckpointModel, model: nn.Module, embedding: Tensor | None, attends: bool = True) -> str:
    """Places whose norm the reading leaves out. Raises `Wrong`. `attends`: compare attention too."""
    flow = run(model)
    absent: set[str] = set()
    for layer in opened:
        checked = Checked(model, flow, layer)
        if attends and "o" in layer.kinds:
            checked.attention()
        if "down" in layer.kinds:
            checked.ffn()
        absent |= set(checked.norms())
    if opened.embedding_shape is not None:
        table = torch.cat(list(opened.embedding(block=7)))
        if embedding is None or not torch.equal(table, embedding):
            raise Wrong("the embedding is another table")
    return ", ".join(sorted(absent))
