"""The effect of each layer on a text: its writes, and the logit lens after it."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from rich.console import Group
from rich.text import Text
from torch import Tensor, nn
from torch.nn import functional as F

from models.transformer import Decoder, PreNormBlock, read_prefix
from orchestrator.common.errors import UserError
from orchestrator.common.formatting import page, plain_table
from orchestrator.data.tokenizer import Tokenizer
from orchestrator.forensics.measures.encoding import own_tokenizer
from orchestrator.forensics.measures.probe import relative_write
from orchestrator.storage import checkpoint


def lens(decoder: Decoder, x: Tensor) -> Tensor:
    """Logits [..., V] that the final norm and head would read from the residual stream x [..., D].

    nostalgebraist (2020), "interpreting GPT: the logit lens". After the last layer they are the model's.
    """
    head = decoder.model.embed_tokens if decoder.spec.tie_embeddings else decoder.lm_head
    width = decoder.spec.head_width
    return F.linear(decoder.model.norm(read_prefix(x, width)), read_prefix(head.weight, width))


@torch.inference_mode()
def trace_tokens(decoder: Decoder, tokens: Tensor) -> list[dict[str, Any]]:
    """The effect of each layer on `tokens` [T], as plain JSON values.

    Per layer, means over positions: `write` ‖x_{l+1}−x_l‖/‖x_l‖, of which `attention_write` and `ffn_write`
    are the branches' shares (relative to the same ‖x_l‖; they need not add up); `cosine` of x_l and
    x_{l+1} (SCIENCE §1); `loss` of the logit lens in nats per token (null for a single token). Under `last`
    the same of the last position, and the `token` that the lens ranks first there with its `probability`.
    """
    rows: list[dict[str, Any]] = []

    def record(block: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        assert isinstance(block, PreNormBlock)
        x, rope = inputs  # x: [1, T, D]
        h = read_prefix(x, block.width)
        attention = block.attention_branch(h, rope)
        ffn = block.ffn_branch(h + attention)
        before, after = x[0].double(), output[0].double()  # [T, D]
        measures = {  # each [T]
            "write": relative_write(after - before, before),
            "attention_write": relative_write(attention[0], before),
            "ffn_write": relative_write(ffn[0], before),
            "cosine": F.cosine_similarity(before, after, dim=-1),
        }
        logits = lens(decoder, output[0]).float()  # [T, V]
        probability, token = logits[-1].softmax(-1).max(-1)
        rows.append(
            {
                "layer": len(rows),
                "width": block.width,
                **{name: value.mean().item() for name, value in measures.items()},
                "loss": F.cross_entropy(logits[:-1], tokens[1:]).item() if len(tokens) > 1 else None,
                "last": {
                    **{name: value[-1].item() for name, value in measures.items()},
                    "token": int(token),
                    "probability": probability.item(),
                },
            }
        )

    with ExitStack() as hooks:
        for block in decoder.model.layers:
            hooks.callback(block.register_forward_hook(record).remove)
        decoder(tokens[None])
    return rows


def trace(source: Path, text: str) -> dict[str, Any]:
    """`trace_tokens` of a text, in the tokens and by the newest weights of `source`, as plain JSON values.

    Raises `UserError` where the source is not ours, its tokenizer was learnt from data that has changed since, or the
    text is empty or longer than a training row.
    """
    path = checkpoint.find(source)
    config = checkpoint.config_of(path)
    tokenizer = own_tokenizer(path)
    tokens = tokenizer.encode([text])[0][:-1]  # without the end of text
    if not tokens:
        raise UserError("The text is empty, it gives no token to trace: give at least one character.")
    if len(tokens) > config.train.seq_len:
        raise UserError(
            f"The text has {len(tokens)} tokens and the model was trained on rows of train.seq_len="
            f"{config.train.seq_len}: shorten the text."
        )
    layers = trace_tokens(checkpoint.load_decoder(path), torch.tensor(tokens))
    for layer in layers:
        layer["last"]["text"] = token_text(tokenizer, layer["last"]["token"])
    return {
        "schema": 1,
        "source": str(path),
        "step": checkpoint.step_of(path),
        "text": text,
        "tokens": tokens,
        "layers": layers,
    }


def token_text(tokenizer: Tokenizer, token: int) -> str:
    """The token as text; `#<id>` where it has none, like end-of-text."""
    text = tokenizer.decode([token])
    return f"#{token}" if text in ("", "\N{REPLACEMENT CHARACTER}") else text


def report(result: dict[str, Any]) -> Group:
    """A table with one line per layer."""
    names = ("layer", "write", "attention", "FFN", "cos", "loss", "│", "write", "cos", "p", "next")
    table = plain_table(names, left=("│", "next"))
    for layer in result["layers"]:
        last = layer["last"]
        table.add_row(
            str(layer["layer"]),
            *(f"{layer[name]:.3f}" for name in ("write", "attention_write", "ffn_write", "cosine")),
            "–" if layer["loss"] is None else f"{layer['loss']:.3f}",
            Text("│", "dim"),
            f"{last['write']:.3f}",
            f"{last['cosine']:.3f}",
            f"{last['probability']:.2f}",
            Text(repr(last["text"])),
        )
    heading = Text(f"{result['source']} · step {result['step']} · {len(result['tokens'])} tokens", "bold")
    legend = (
        "Left of the bar, means over positions; right of it, the last position.\n"
        "Writes are relative to the stream that is read. Loss (nats/token) and next\n"
        "token are what the final norm and head make of the stream after the layer."
    )
    return page(heading, table, Text(legend, "dim"))
