"""Export: a model as a directory that `AutoModelForCausalLM` loads, with fewer layers where that is wanted."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from orchestrator.common.errors import UserError
from orchestrator.common.formatting import counted, duration, size
from orchestrator.config.schema import DomainConfig
from orchestrator.forensics.architecture.description import is_ours
from orchestrator.forensics.measures.encoding import own_tokenizer, pretrained_tokenizer
from orchestrator.forensics.measures.runner import configuration, loading, place
from orchestrator.forensics.weights.files import GGUF
from orchestrator.forensics.weights.sources import whole
from orchestrator.interventions.device import default_device, within_memory
from orchestrator.interventions.documents import AT_ONCE, Batch, batches, chosen, digest
from orchestrator.interventions.evidence import read_evidence
from orchestrator.interventions.losses import losses
from orchestrator.interventions.passes import Pass, refuse_entangled
from orchestrator.interventions.progress import Progress
from orchestrator.interventions.pruning import cannot_say, deleted, in_precision, layers_of, pruned
from orchestrator.interventions.samples import sampled
from orchestrator.interventions.subject import Subject, TooLarge, is_causal, load
from orchestrator.storage.files import permit_as_umask

SCHEMA = 1
TOLERANCE = 1e-4  # nats per token between the loss that was promised and the one that was measured


@dataclass(frozen=True)
class Options:
    """The layers to drop, as `7,12-14`, and the text on which the loss is measured, as for an intervention.

    `evidence`: the JSON of an intervention on the model, which predicts what dropping the layers costs. `own`: the text
    is what the whole model itself says.
    """

    drop: str = ""
    evidence: Path | None = None
    texts: Mapping[str, DomainConfig] = field(default_factory=dict)
    documents: int = 64
    length: int | None = None
    own: bool = False


@within_memory
def export(source: Path, target: Path, options: Options, progress: Progress | None = None) -> dict[str, Any]:
    """Write the model to the new directory `target`, load it from there and measure its loss; plain JSON values.

    Raises `UserError` for a source that cannot be exported, and where the memory of the GPU does not suffice; it leaves
    no directory then.
    """
    progress = progress or Progress()
    path = place(whole(source))
    refuse_existing(target)
    evidence = None if options.evidence is None else read_evidence(options.evidence)
    dtype = None if is_ours(path) else _causal(path).dtype
    tokenizer = tokenizer_of(path)
    device = default_device()
    subject = load(path, device)
    depth, context = len(subject.layers), subject.context
    dropped = layers_of(options.drop, depth)
    if options.own:
        documents = sampled(subject, options.documents, options.length, progress.announce)
    else:
        documents = chosen(path, options.texts, options.documents, options.length)
    groups = batches(documents, AT_ONCE)
    times = 3 if dropped else 2  # before, without the layers, and of what is written
    progress.announce(_cost(subject, groups, times))
    progress.begin(times * len(groups))
    before, first = losses(subject, documents, groups, progress.advance)
    intact, parameters = before.means(), count(subject)
    prediction = None
    if evidence is not None:
        prediction = evidence.predict(path, depth, dropped, digest(documents), intact)
    promised = before
    if dropped:
        refuse_entangled(subject, groups[-1].tokens[:1])
        with deleted(subject, dropped):
            promised, first = losses(subject, documents, groups, progress.advance)
    model = in_precision(pruned(subject, dropped), dtype)
    weights = sum(tensor.numel() * tensor.element_size() for tensor in model.parameters())
    progress.announce(f"Writing {target}, {size(weights)}, and measuring the loss of what it holds.")
    with new_directory(target) as partial:
        _write(model, tokenizer, context if is_ours(path) else None, partial)
        config, precision = model.config, str(model.dtype).removeprefix("torch.")
        del subject, model  # one model in memory at a time
        exported = _loaded(partial, config, dropped, path, device)
        after, again = losses(exported, documents, groups, progress.advance)
    return {
        "schema": SCHEMA,
        "source": str(path),
        "directory": str(target),
        "dtype": precision,
        "class": type(exported.model).__name__,
        "layers": depth,
        "dropped": dropped,
        "parameters": {"before": parameters, "exported": count(exported)},
        "loss": {
            domain: {"before": intact[domain], "promised": promised.means()[domain], "exported": loss}
            for domain, loss in after.means().items()
        },
        "rise": after.rises(before) if dropped else None,
        "prediction": prediction,
        "largest_logit_difference": float((first - again).abs().max()),
    }


def _cost(subject: Subject, groups: Sequence[Batch], times: int) -> str:
    """The sentence that says how long it will take, by the time of the smallest batch."""
    start = time.perf_counter()
    Pass(subject, groups[-1].tokens, groups[-1].mask)
    seconds = (time.perf_counter() - start) / groups[-1].tokens.numel()
    tokens = sum(group.tokens.numel() for group in groups)
    documents = counted(sum(len(group.documents) for group in groups), "document")
    return f"Measuring the loss on {documents} {times} times: about {duration(times * tokens * seconds)}."


def refuse_ours(source: Path, option: str) -> None:
    """Raise `UserError` for a source that other tools cannot read: a checkpoint of ours, or a GGUF file."""
    path = place(whole(source))
    if is_ours(path) or path.suffix == GGUF:
        raise UserError(
            f"{option} describes a directory of transformers, which {source} is not: export it whole first, and give "
            "that directory."
        )


def keeps_its_promise(result: Mapping[str, Any]) -> bool:
    """True where the exported model has, on every text, the loss that the model in memory had."""
    return all(abs(of["promised"] - of["exported"]) <= TOLERANCE for of in result["loss"].values())


def refuse_existing(target: Path) -> None:
    """Raise `UserError` where something has this name, or it cannot be made."""
    if target.exists() or target.is_symlink():
        raise UserError(f"{target} exists: name a directory that does not, so that nothing is overwritten.")
    if not target.absolute().parent.is_dir():
        raise UserError(f"{target} cannot be made: make the directory {target.parent} first.")


@contextmanager
def new_directory(target: Path) -> Iterator[Path]:
    """A directory beside `target` that gets its name at the end of the block, and is gone where the block raises."""
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
        yield partial
        permit_as_umask(partial)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def tokenizer_of(path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of transformers for a model. Raises `UserError` where it has none."""
    return own_tokenizer(path).pretrained() if is_ours(path) else pretrained_tokenizer(path)


def count(subject: Subject) -> int:
    """Number of parameters, shared ones once."""
    return sum(parameter.numel() for parameter in subject.model.parameters())


def _causal(path: Path) -> Any:
    """The configuration. Raises `UserError` for a model that does not predict the next token."""
    config = configuration(path)
    if not is_causal(config):
        raise UserError(
            f"{path} ({config.model_type}) does not predict the next token, as a model for AutoModelForCausalLM does: "
            "give one that does, saved with its head."
        )
    return config


def _write(model: Any, tokenizer: PreTrainedTokenizerBase, context: int | None, target: Path) -> None:
    """`context`: positions to declare, where the model does not yet say how many it was trained on."""
    if context is not None:
        model.config.max_position_embeddings = tokenizer.model_max_length = context
    defaults = model.generation_config
    if defaults.eos_token_id is None:
        defaults.eos_token_id = tokenizer.eos_token_id
    if defaults.pad_token_id is None:
        defaults.pad_token_id = tokenizer.pad_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id
    with loading(f"{target} cannot be written", "make room, or report it with the name of the model"):
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)


def _loaded(target: Path, config: Any, dropped: Sequence[int], source: Path, device: torch.device) -> Subject:
    """The exported model. Raises `UserError` where its configuration does not describe it."""
    try:
        return load(target, device)
    except TooLarge:
        raise
    except UserError as error:
        if dropped:
            reason = str(error).partition("; ")[0]  # without the cure, which is for a directory that the user gave
            raise cannot_say(str(source), config, reason) from error
        raise
