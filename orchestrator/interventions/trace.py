"""The trace of a text through a model: what each layer writes, and what the model would say after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from orchestrator.common.errors import UserError
from orchestrator.common.formatting import counted
from orchestrator.forensics.architecture.description import is_ours
from orchestrator.forensics.measures.encoding import Encoding
from orchestrator.forensics.measures.probe import relative_write
from orchestrator.forensics.measures.runner import configuration, place
from orchestrator.forensics.reading import Reading
from orchestrator.forensics.recorded import origin, reading_of
from orchestrator.forensics.weights.sources import whole
from orchestrator.interventions.attention import attended
from orchestrator.interventions.attribution import Attribution, LayerShare, attribute
from orchestrator.interventions.bands import DOCUMENT, bands
from orchestrator.interventions.calibration import ffn_positions
from orchestrator.interventions.device import default_device, within_memory
from orchestrator.interventions.lens import Lens, lenses, stays_from
from orchestrator.interventions.neurons import Neuron, neurons
from orchestrator.interventions.readout import Readout, find_readout
from orchestrator.interventions.subject import Subject, is_causal, load
from orchestrator.interventions.writes import Traced, trace_text

SCHEMA = 2
NO_READOUT = "what stands between the last layer and the head is no norm"
NO_BRANCHES = "some layers do more than add attention and FFN to the stream"
NO_WRITES = "what attention and FFN write is not told apart in some layers"


@dataclass(frozen=True)
class Options:
    """The way from the text to tokens, and the size of the result.

    `chat`: as a user's message in the tokenizer's template. `more`: tokens of the model's own answer that are added
    first, each the most probable. `few`: most FFN positions of a layer for each reason. `layer`: one that is asked for.
    """

    chat: bool = False
    more: int = 0
    few: int = 5
    layer: int | None = None


@within_memory
def trace(source: Path, text: str, options: Options | None = None) -> dict[str, Any]:
    """`traced` of a text in the tokens of `source`, with its roles, as plain JSON values.

    Raises `UserError` for a source that is no causal model or has no tokenizer, and for a text that is empty or longer
    than its context; and where the memory of the GPU does not suffice.
    """
    options = options or Options()
    path = place(whole(source))
    if not is_ours(path) and not is_causal(configuration(path)):
        raise UserError(
            f"{path} is an encoder, and only a model that predicts the next token has "
            "answers to trace: read its layers with orchestrator.intervene or orchestrator.forensics."
        )
    encoding = Encoding(path)
    encoded = _encoded(encoding, path, text, options)
    subject = load(path, default_device())
    if options.layer is not None and options.layer >= len(subject.layers):
        raise UserError(f"{path} has no layer {options.layer}: its layers are 0 to {len(subject.layers) - 1}.")
    tokens = continued(subject, torch.tensor(encoded, device=subject.device), options.more)
    found = traced(subject, tokens, encoding, ffn_positions(path), options.few)
    reading = reading_of(path)
    _add_roles(found["layers"], reading)
    return {
        "schema": SCHEMA,
        **origin(path, reading),
        "text": text,
        "chat": options.chat,
        "continued": options.more,
        **found,
    }


def _encoded(encoding: Encoding, path: Path, text: str, options: Options) -> list[int]:
    """The tokens of the text; what its tokenizer puts after it, such as an end of text, is left out."""
    before, ids, _ = encoding.framed(text)
    if not ids:
        raise UserError("The text is empty, it gives no token to trace: give at least one character.")
    tokens = encoding.chat(text) if options.chat else [*before, *ids]
    if options.more and len(tokens) < encoding.context < len(tokens) + options.more:
        raise UserError(
            f"--continue {options.more} is more than {path}, which reads {encoding.context} tokens, can add to the "
            f"{counted(len(tokens), 'token')} of the text: lower it to {encoding.context - len(tokens)} at most."
        )
    if len(tokens) > encoding.context:
        raise UserError(f"The text has {len(tokens)} tokens, and {path} reads {encoding.context}: shorten it.")
    return tokens


@torch.inference_mode()
def continued(subject: Subject, tokens: Tensor, more: int) -> Tensor:
    """`tokens` [T] and `more` that the model itself puts after them, each the most probable."""
    for _ in range(more):
        answer = subject.run(tokens[None], torch.ones_like(tokens[None], dtype=torch.bool))[0, -1].argmax()
        tokens = torch.cat((tokens, answer[None]))
    return tokens


@torch.inference_mode()
def traced(
    subject: Subject,
    tokens: Tensor,
    encoding: Encoding,
    positions: Sequence[Mapping[str, np.ndarray]],
    few: int,
) -> dict[str, Any]:
    """The trace of `tokens` [T], as plain JSON values (SCIENCE §9.1).

    Lists over the text's places are in its order. `positions`: per layer, as `ffn_positions` has them.
    """
    one = trace_text(subject, tokens)
    shown = list(lenses(subject, one))
    answer = int(one.logits[-1].argmax())
    readout = find_readout(subject, tokens, one.streams[-1])
    shares = None if readout is None else attribute(subject, one, readout, answer)
    settled = [stays_from(ranks) for ranks in torch.stack([of.rank for of in shown]).T.tolist()]
    divergences = [float(of.divergence.mean()) for of in shown]
    found = bands(divergences, settled)
    seen = attended(subject, tokens)
    layers = []
    for layer in range(len(subject.layers)):
        share = None if shares is None else shares.layers[layer]
        ffn = one.branches[layer]
        of_ffn = (
            [] if ffn is None else neurons(ffn[1], None if share is None else share.ffn, readout, positions[layer], few)
        )
        layers.append(
            {
                "layer": layer,
                "band": found.of(layer),
                "width": subject.width(layer) or one.streams[0].shape[-1],
                **_writes(one, layer),
                **_lens(shown[layer + 1], encoding),
                "attribution": None if share is None else _share(share, seen[layer]),
                "neurons": [_neuron(neuron, encoding) for neuron in of_ffn],
            }
        )
    return {
        "tokens": [{"token": token, "text": encoding.text(token)} for token in tokens.tolist()],
        "answer": {
            "token": answer,
            "text": encoding.text(answer),
            "probability": float(one.logits[-1].double().softmax(-1)[answer]),
            "first": next(depth for depth, of in enumerate(shown) if of.rank[-1] == 0) - 1,
            "stays": settled[-1] - 1,
            "logit": None if shares is None else shares.logit,
        },
        "settled": [depth - 1 for depth in settled],
        "bands": {
            "middle": found.middle, "late": found.late, "shares": list(found.shares), "document": list(DOCUMENT),
        },
        "embedding": {
            **_lens(shown[0], encoding),
            "attribution": None if shares is None else {"logit": shares.embedding, "constant": shares.constant},
        },
        "layers": layers,
        "missing": _missing(one, readout, shares),
    }  # fmt: skip


def _writes(one: Traced, layer: int) -> dict[str, Any]:
    """Per place: the norm of what is written, relative to the stream that the layer reads, and cos(x_l, x_{l+1})."""
    before, after = one.streams[layer], one.streams[layer + 1]
    branches = one.branches[layer]
    writes = {
        "write": after - before,
        "attention_write": None if branches is None else branches[0].write,
        "ffn_write": None if branches is None else branches[1].write,
    }
    return {
        **{name: None if of is None else _known(relative_write(of, before)) for name, of in writes.items()},
        "cosine": _known(F.cosine_similarity(before.double(), after.double(), dim=-1)),
    }


def _lens(lens: Lens, encoding: Encoding) -> dict[str, Any]:
    return {
        "loss": float(lens.loss.mean()) if len(lens.loss) else None,
        "divergence": lens.divergence.tolist(),
        "answer": {"rank": lens.rank.tolist(), "probability": lens.answer.tolist()},
        "lens": [
            [
                {"token": token, "text": encoding.text(token), "probability": probability}
                for token, probability in zip(tokens, probabilities, strict=True)
            ]
            for tokens, probabilities in zip(lens.tokens.tolist(), lens.probabilities.tolist(), strict=True)
        ],
    }


def _share(share: LayerShare, seen: Tensor | None) -> dict[str, Any]:
    heads = share.attention.inner
    return {
        "attention": share.attention.logit,
        "ffn": share.ffn.logit,
        "heads": None
        if heads is None
        else [
            {"head": head, "logit": logit, **_attends(seen, head, len(heads))}
            for head, logit in enumerate(heads.tolist())
        ],
    }


def _attends(seen: Tensor | None, head: int, heads: int) -> dict[str, Any]:
    """The place that the head attends to most from the last one, and the share of its attention there."""
    if seen is None or len(seen) != heads:
        return {"attends": None, "attention": None}
    return {"attends": int(seen[head].argmax()), "attention": float(seen[head].max())}


def _neuron(neuron: Neuron, encoding: Encoding) -> dict[str, Any]:
    return {
        "position": neuron.position,
        "why": neuron.why,
        "opened_by": neuron.opened_by,
        "activation": float(neuron.activations[neuron.opened_by]),
        "activations": neuron.activations.tolist(),
        "logit": neuron.logit,
        "promotes": None
        if neuron.promoted is None
        else [{"token": token, "text": encoding.text(token)} for token in neuron.promoted.tolist()],
    }


def _missing(one: Traced, readout: Readout | None, shares: Attribution | None) -> dict[str, str]:
    """Part that the trace lacks → the reason."""
    lacking = {}
    if any(of is None for of in one.branches):
        lacking["attention_write, ffn_write"] = NO_WRITES
    if readout is None:
        lacking["attribution"] = NO_READOUT
    elif shares is None:
        lacking["attribution"] = NO_BRANCHES
    else:
        of_branch = {"heads": [of.attention for of in shares.layers], "FFN positions": [of.ffn for of in shares.layers]}
        for name, found in of_branch.items():
            if any(of.inner is None for of in found):
                lacking[name] = "one matrix and a norm do not make what the branch writes, in some layers"
    return lacking


def _add_roles(layers: list[dict[str, Any]], reading: Reading) -> None:
    for of, report in zip(layers, reading.layers, strict=True):
        of |= {"role": report.role, "margin": report.margin}


def _known(values: Tensor) -> list[float | None]:
    return [value if np.isfinite(value) else None for value in values.tolist()]
