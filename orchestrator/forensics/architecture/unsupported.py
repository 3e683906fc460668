"""Refuses models whose layers have no defined roles, and checkpoints whose weights are packed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from orchestrator.common.errors import UserError
from orchestrator.forensics.architecture.experts import COUNTS
from orchestrator.forensics.architecture.holdings import EXPERTS, MIXERS

OTHER_SENSES = re.compile(r"vision|visual|image|video|audio|speech")  # encoders of other modalities, which are not read

SIMILARITY = re.compile(r"(^|\.)logit_scale(_\w+)?$")
TOWER = re.compile(rf"(?:.*\.)?((?:text|{OTHER_SENSES.pattern})_model)\..*\.\d+\.")  # a name in one of its layers

QUANTISED = re.compile(
    r"\.(qweight|qzeros|g_idx|weight_packed|weight_scale(_inv|_2)?|weight\.(absmax|quant_\w+(\..*)?)|SCB)$"
)

# model_type → why its layers are no attention over heads with an FFN after it.
OTHERWISE = {
    "convbert": "mixes attention with a convolution in every layer",
    "diffllama": "subtracts one attention from another, with values shared between pairs of heads",
    "flaubert": "keeps attention and FFN of a layer in separate lists",
    "fnet": "mixes tokens by a Fourier transform and has no attention",
    "funnel": "shortens the sequence between its blocks",
    "gemma3n": "keeps four streams, of which every layer predicts three",
    "gemma3n_text": "keeps four streams, of which every layer predicts three",
    "hrm_text": "runs two stacks of layers in turn, many times",
    "mobilebert": "narrows the stream before every layer and has several FFNs in each",
    "neomme": "takes from every value what its own token writes, and mixes values of the embedding in",
    "reformer": "uses one matrix for queries and keys",
    "squeezebert": "projects by grouped convolutions, not by matrices of the stream's width",
    "xlm": "keeps attention and FFN of a layer in separate lists",
    "xlnet": "keeps projections as three-dimensional tensors, for two streams",
}


CURES = {"cross-attention": ", or read the encoder beside it with --weights encoder"}


def refuse_unsupported(
    source: Path, names: Iterable[str], config: Mapping[str, Any], experts: bool, mixers: bool
) -> None:
    """Raise `UserError` for layers that cannot be read, and for checkpoints whose weights are packed.

    `experts`, `mixers`: those of the family are known, which stand for the FFN and the attention of its layers.
    """
    names = [name for name in sorted(names) if not OTHER_SENSES.search(name)]
    if reason := OTHERWISE.get(str(config.get("model_type"))):
        raise UserError(
            f"{source} declares the family {config['model_type']}, which {reason}: roles are defined for layers of one "
            "full self-attention and one FFN, so give a model whose layers are all of this kind."
        )
    if not experts:
        _refuse_experts(source, names, config)
    for what, pattern in MIXERS.items():
        if mixers and what not in CURES:
            continue
        if found := next(filter(pattern.search, names), None):
            raise UserError(
                f"{source} has {what} layers ({found}), and its family is not one whose layers without full "
                f"self-attention are known: give a model of a family that docs/families.md lists{CURES.get(what, '')}."
            )
    if found := next(filter(QUANTISED.search, names), None):
        raise UserError(
            f"{source} is quantised ({found}), and packed numbers are not weights: "
            "give the original checkpoint, or save this one dequantised in fp32, fp16 or bf16."
        )


def refuse_two_towers(source: Path, names: Iterable[str]) -> None:
    """Raise `UserError` for a text and another encoder side by side, of which neither is the model (CLIP, SigLIP).

    They are told by the scale of the similarity of what they give; a text decoder with a tower before it has none.
    """
    names = sorted(names)
    if not any(map(SIMILARITY.search, names)):
        return
    found = [match[1] for name in names if (match := TOWER.match(name))]
    text = next((part for part in found if not OTHER_SENSES.search(part)), None)
    other = next((part for part in found if OTHER_SENSES.search(part)), None)
    if text and other:
        raise UserError(
            f"{source} holds two encoders side by side, {text} and {other}: choose one with --weights {text} or "
            f"--weights {other} (weights= in Python)."
        )


def _refuse_experts(source: Path, names: list[str], config: Mapping[str, Any]) -> None:
    held = [name for name in names if EXPERTS.search(name)]
    if not held:  # Nemotron-H, Doge and others declare a number of experts that dense models leave unused
        return
    declared = max((config[key] for key in COUNTS if isinstance(config.get(key), int)), default=0)
    numbers = [int(match[1]) for name in held if (match := re.search(r"experts\.(\d+)\.", name))]
    count = declared or max(numbers, default=-1) + 1 or "an unknown number of"
    raise UserError(
        f"{source} is a mixture of experts, {count} experts a layer ({held[0]}), of a family that is not known: put "
        "the config.json of a family that docs/families.md lists beside it, or give a dense model."
    )
