"""Deletion of a layer, its attention or its FFN (zero ablation), and the rise of held-out loss."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console, Group
from rich.progress import track
from rich.text import Text
from torch import Tensor, nn

from models.transformer import Decoder
from orchestrator.common.formatting import page, plain_table
from orchestrator.data import prepare
from orchestrator.forensics.analyzer import analyze
from orchestrator.storage import checkpoint

BRANCHES = {"layer": ("self_attn", "mlp"), "attention": ("self_attn",), "ffn": ("mlp",)}  # deletion → modules
SPLIT = "validation"
ROWS = 64  # held-out rows per domain, at most: the standard error says whether they were enough


@contextmanager
def ablated(layer: nn.Module, branches: Sequence[str]) -> Iterator[None]:
    """Inside the block these branches of the layer output zero; a norm after a branch maps zero to zero."""
    with ExitStack() as hooks:
        for branch in branches:
            module = layer.get_submodule(branch)
            hook = module.register_forward_hook(lambda _block, _inputs, output: torch.zeros_like(output))
            hooks.callback(hook.remove)
        yield


@torch.inference_mode()
def row_losses(decoder: Decoder, rows: Tensor, batch_size: int) -> Tensor:
    """Mean loss of each of `rows` [n, T+1] in nats per token, float64 [n], on CPU; `batch_size` rows at once."""
    device = decoder.model.embed_tokens.weight.device
    parts = [decoder.loss(part.to(device), reduction="none").double().mean(1) for part in rows.split(batch_size)]
    return torch.cat(parts).cpu()


def loss_increases(
    decoder: Decoder, index: int, heldout: dict[str, Tensor], intact: dict[str, Tensor], batch_size: int
) -> dict[str, Any]:
    """Deletion → domain → the rise of loss when it is applied to layer `index`.

    `heldout`: domain → rows [n, T+1]; `intact`: domain → `row_losses` of the whole model. Rows are paired:
    `mean` is in nats per token, and `se` its standard error over rows (null for a single row).
    """
    changes: dict[str, Any] = {}
    for name, branches in BRANCHES.items():
        with ablated(decoder.model.layers[index], branches):
            differences = {d: row_losses(decoder, rows, batch_size) - intact[d] for d, rows in heldout.items()}
        changes[name] = {
            domain: {
                "mean": rise.mean().item(),
                "se": rise.std().item() / math.sqrt(len(rise)) if len(rise) > 1 else None,
            }
            for domain, rise in differences.items()
        }
    return changes


def intervene(source: Path) -> dict[str, Any]:
    """Every layer's role and the rise of loss without it, its attention or its FFN, as plain JSON values.

    Raises `UserError` where the source is not ours, or its training data cannot be prepared again.
    """
    path = checkpoint.find(source)
    config = checkpoint.config_of(path)
    torch.set_num_threads(config.train.threads)  # more threads slow small models down
    corpus = prepare(config.data, config.model.vocab_size, config.train.seq_len)
    corpus.check_digest(checkpoint.read_state(path)["data"], path)
    batch_size = config.train.micro_batch_size or config.train.batch_size  # fits into memory, as in training
    heldout = {domain: corpus.heldout(domain, SPLIT)[:ROWS] for domain in corpus.domains}
    decoder = checkpoint.load_decoder(path).to("cuda" if torch.cuda.is_available() else "cpu")
    reading = analyze(path)
    intact = {domain: row_losses(decoder, rows, batch_size) for domain, rows in heldout.items()}
    layers = track(reading.layers, "deleting", console=Console(stderr=True), disable=not sys.stderr.isatty())
    return {
        "schema": 1,
        "definitions": reading.definitions,
        "source": str(path),
        "step": reading.step,
        "split": SPLIT,
        "rows": {domain: len(rows) for domain, rows in heldout.items()},
        "heldout": {domain: losses.mean().item() for domain, losses in intact.items()},
        "layers": [
            {
                "layer": layer.layer,
                "role": layer.role,
                "margin": layer.margin,
                "change": loss_increases(decoder, layer.layer, heldout, intact, batch_size),
            }
            for layer in layers
        ],
    }


def report(result: dict[str, Any]) -> Group:
    """A table with a line per layer and domain; changes within two standard errors are dim."""
    table = plain_table(("layer", "role", "domain", "−layer", "−attention", "−FFN"), left=("role", "domain"), gap=1)
    for layer in result["layers"]:
        label, role = str(layer["layer"]), layer["role"]
        for domain in result["heldout"]:
            table.add_row(label, role, Text(domain), *(_change(layer["change"][name][domain]) for name in BRANCHES))
            label = role = ""
    losses = " · ".join(f"{domain} {loss:.3f}" for domain, loss in result["heldout"].items())
    rows = " · ".join(f"{domain} {count}" for domain, count in result["rows"].items())
    heading = Text(f"{result['source']} · step {result['step']}", "bold")
    heading.append(f"\nHeld-out loss ({result['split']}), nats/token: {losses}", "not bold")
    legend = f"−: rise of that loss without the layer, its attention or its FFN, ± standard\nerror over rows ({rows})."
    return page(heading, table, Text(legend, "dim"))


def _change(change: dict[str, Any]) -> Text:
    mean, error = change["mean"], change["se"]
    if error is None:
        return Text(f"{mean:+.3f}")
    return Text(f"{mean:+.3f}±{error:.3f}", "" if abs(mean) > 2 * error else "dim")
