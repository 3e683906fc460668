"""The outcome for each family: read rightly, refused, or not tried. Run as a module, it writes docs/families.md."""

from __future__ import annotations

import logging
import re
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from orchestrator.common.errors import UserError
from orchestrator.forensics.architecture.model import CheckpointModel
from tests.orchestrator.forensics.architecture.zoo.flow import silence
from tests.orchestrator.forensics.architecture.zoo.mixture import check_experts
from tests.orchestrator.forensics.architecture.zoo.tiny import UNBUILT, build, marks
from tests.orchestrator.forensics.architecture.zoo.truth import check

PAGE = Path("docs/families.md")
UNSEEN = {"paligemma": "its first token is turned too"}  # families whose attention is not compared

REFUSALS = {  # pattern of the sentence → the reason in short
    r"mixture of experts": "mixture of experts",
    r"latent attention": "latent attention",
    r"state-space|linear attention|recurrent|convolution layers": "layers without attention",
    r"cross-attention|EncDec|encoder_decoder": "cross-attention",
    r"several stacks": "several stacks of layers",
    r"declares the family": "other layers, named in the message",
    r"": "layout unknown",
}


def outcome(mark: str, directory: Path, **others: Any) -> tuple[str, str]:
    """("checked", the family's name here) or ("refused", the sentence). Raises `Wrong`."""
    model = build(mark, **others)
    model.save_pretrained(directory, max_shard_size="30KB" if len(mark) % 2 else "1GB")
    try:
        opened = CheckpointModel(directory)
    except UserError as error:
        return "refused", str(error)
    embedding = _embedding(model)
    if opened.family.mixed:  # before the router loses its biases
        check_experts(opened, model)
    silence(model)
    left_out = check(opened, model, embedding, attends=mark not in UNSEEN)
    return "checked", opened.family_name + (f" without {left_out}" if left_out else "")


def reason(sentence: str) -> str:
    """The reason for a refusal, in short."""
    return next(short for pattern, short in REFUSALS.items() if re.search(pattern, sentence))


def _embedding(model: PreTrainedModel) -> Any:
    weight = getattr(model.get_input_embeddings(), "weight", None)
    return None if weight is None else weight.detach().clone()


def page() -> str:
    """The text of docs/families.md, from every family tried now."""
    found: dict[str, list[str]] = defaultdict(list)
    for mark in marks():
        with tempfile.TemporaryDirectory() as directory:
            kind, said = outcome(mark, Path(directory))
        found["checked" if kind == "checked" else reason(said)].append(mark)
    lines = [
        "# Families of checkpoints",
        "",
        "Every text family that `transformers` builds from a tiny configuration is read here, or refused for a reason.",
        "Read means: each matrix, in the order of its heads, and each norm's scale agree with the numbers that flow",
        "through the model's own modules; of a mixture, so do each expert and the choices of the router. Mixers other",
        "than full self-attention are left aside. The tests try all of them, and this page is written from what they",
        "find.",
        "",
        f"**Read and checked ({len(found['checked'])}):** {_listed(found.pop('checked'))}.",
        "",
    ]
    for why, these in sorted(found.items(), key=lambda item: -len(item[1])):
        lines += [f"**Refused, {why} ({len(these)}):** {_listed(these)}.", ""]
    lines += [f"**Not tried ({len(UNBUILT)}):** {_listed(sorted(UNBUILT))}.", ""]
    unseen = "; ".join(f"{mark} ({why})" for mark, why in UNSEEN.items())
    lines += [f"The attention of these is not compared, only their FFN and norms: {unseen}."]
    return "\n".join(lines) + "\n"


def _listed(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def written() -> dict[str, str]:
    """Family → "checked", or the reason for its refusal, as the page says."""
    pairs = re.findall(r"^\*\*(Read and checked|Refused, (.*)) \(\d+\):\*\* (.*)\.$", PAGE.read_text(), re.MULTILINE)
    return {name: why or "checked" for _, why, names in pairs for name in re.findall(r"`(.+?)`", names)}


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    PAGE.write_text(page())
