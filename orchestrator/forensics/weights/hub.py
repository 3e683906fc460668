"""A checkpoint by its path, or by its name on the Hugging Face hub."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from orchestrator.common.errors import UserError
from orchestrator.forensics.weights.files import GGUF, PICKLES

_NAME = re.compile(
    r"(?P<name>[\w-][\w.-]*/[\w-][\w.-]*)(?:/(?P<file>[\w-][\w.-]*\.gguf))?(?:@(?P<revision>\w[\w./-]*))?"
)
_FILES = (".safetensors", *PICKLES, ".json")
_DESCRIPTIONS = ["*.json", "*.txt", "*.model", "*.jinja"]  # configuration and tokenizers; never code

# Names from before the hub had organisations, which still stand in many scripts.
_LEGACY = {
    "openai-community": "gpt2 gpt2-medium gpt2-large gpt2-xl openai-gpt",
    "google-bert": "bert-base-uncased bert-base-cased bert-large-uncased bert-large-cased bert-base-chinese "
    "bert-base-german-cased bert-base-multilingual-cased bert-base-multilingual-uncased",
    "FacebookAI": "roberta-base roberta-large xlm-roberta-base xlm-roberta-large",
    "distilbert": "distilbert-base-uncased distilbert-base-cased distilroberta-base distilgpt2",
    "albert": "albert-base-v2 albert-large-v2 albert-xlarge-v2 albert-xxlarge-v2",
    "almanach": "camembert-base",
}
_ORGANISATIONS = {name: organisation for organisation, names in _LEGACY.items() for name in names.split()}

# Error → the rest of a sentence that begins with the name; the first match is taken.
_REFUSALS: list[tuple[type[Exception], str]] = [
    (GatedRepoError, "is gated: ask for access on its page of the hub, then run `hf auth login`."),
    (
        RepositoryNotFoundError,
        "is neither a path here nor a repository that the hub shows you: "
        "check the spelling, or run `hf auth login` if it is private.",
    ),
    (RevisionNotFoundError, "has no such revision on the hub: name a branch, a tag or a commit after the @."),
    (HFValidationError, "is neither a path here nor a valid name on the hub: check the spelling."),
    (
        LocalEntryNotFoundError,
        "is not a path here, is not whole in the cache, and the hub cannot be reached: "
        "fetch it where there is a network (`hf download`) and give the path of the copy.",
    ),
]


def local(source: str) -> Path:
    """The path `source` names, or the local copy of `org/name` or `org/name@revision`, fetched into the usual cache.

    A repository of GGUF files holds the same model many times: `org/name/file.gguf` names one of them. Only weights,
    configuration and tokenizer are fetched: no code. Raises `UserError` where there is neither.
    """
    path = Path(source)
    with suppress(RuntimeError):  # ~user with an unknown user
        path = path.expanduser()
    if path.exists():
        return _snapshot(path)
    bare = source.partition("@")[0]
    named = _NAME.fullmatch(f"{_ORGANISATIONS[bare]}/{source}" if bare in _ORGANISATIONS else source)
    if named is None or named["name"].endswith((*_FILES, GGUF)):
        raise UserError(f"{source} does not exist: give the path of a checkpoint, or org/name for one on the hub.")
    try:
        return _fetch(named["name"], named["revision"], named["file"])
    except UserError:
        raise
    except Exception as error:  # the network can raise anything
        reason = str(error).strip().partition("\n")[0]
        otherwise = f"could not be fetched from the hub ({reason}): fetch it with `hf download` and give the path."
        why = next((why for kind, why in _REFUSALS if isinstance(error, kind)), otherwise)
        raise UserError(f"{source} {why}") from error


def _snapshot(path: Path) -> Path:
    """`path`, or the one snapshot in it where it is a repository in the hub's cache; of several, the one of `main`."""
    snapshots = path / "snapshots"
    if not (path.name.startswith("models--") and snapshots.is_dir()):
        return path
    held = sorted(snapshots.iterdir())
    main = path / "refs" / "main"
    current = snapshots / main.read_text(encoding="utf-8").strip() if main.is_file() else path
    if current in held or len(held) == 1:
        return current if current in held else held[0]
    raise UserError(f"{path} holds {len(held)} snapshots and no main one: give one of those in {snapshots}.")


def _fetch(name: str, revision: str | None, file: str | None) -> Path:
    """Safetensors if the repository has any, else pickles; not the subdirectories, which hold other copies."""
    for weights in (file,) if file else ("*.safetensors", "*.bin"):
        wanted = [weights] if file else [*_DESCRIPTIONS, weights]
        path = Path(snapshot_download(name, revision=revision, allow_patterns=wanted, ignore_patterns="*/*"))
        if any(path.glob(weights)):
            return path / file if file else path
    raise UserError(
        f"{name} holds no {file or '*.safetensors and no *.bin'} on the hub: name another revision, or one of its GGUF "
        "files as org/name/file.gguf."
    )
