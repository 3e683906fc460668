"""Documents: the text on which interventions are judged, in a model's own tokens."""

from __future__ import annotations

import hashlib
import itertools
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from orchestrator.common.errors import UserError
from orchestrator.config.schema import DomainConfig, Source
from orchestrator.data import prepare
from orchestrator.data.groups import Group
from orchestrator.data.sources import READERS, Words, file_text
from orchestrator.forensics.architecture.description import is_ours
from orchestrator.forensics.measures.encoding import Encoding
from orchestrator.storage import checkpoint

BUILTIN = {name: DomainConfig(path=name) for name in ("code", "prose")}
UNNAMED = "text"  # the domain of a text without a name
SPLIT = "validation"
AT_ONCE = 512  # tokens in a batch
LENGTH = 128  # tokens that a document is cut after
SHORTEST = 8  # tokens of a document


@dataclass(frozen=True)
class Document:
    """One text in tokens; its domain has a loss of its own."""

    domain: str
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Batch:
    """Documents of about one length: `tokens` [B, T], padded on the right where `mask` [B, T] is False."""

    documents: tuple[int, ...]  # their places in the list of all
    tokens: Tensor
    mask: Tensor


def texts(named: Sequence[str]) -> dict[str, DomainConfig]:
    """Domain → its text, of `name=files` or `files`. Raises `UserError` for two of one name."""
    found: dict[str, DomainConfig] = {}
    for value in named:
        name, separator, path = value.partition("=")  # outputs/x/seed=0/notes.txt is a path
        domain, files = (name, path) if separator and "/" not in name else (UNNAMED, value)
        if domain in found:
            raise UserError(f"--data {value} is a second text named '{domain}': name each, as in --data mine={files}.")
        found[domain] = DomainConfig(source=Source.files, path=files)
    return found


def refuse_two_texts(own: bool, data: Sequence[str]) -> None:
    """Raise `UserError` where a model's own samples and a text are asked for at once."""
    if own and data:
        raise UserError(f"--own and --data {data[0]} are two texts: give one of them.")


def digest(documents: Sequence[Document]) -> str:
    """The sha256 of the documents' domains and tokens."""
    return hashlib.sha256(repr([(of.domain, of.tokens) for of in documents]).encode()).hexdigest()


def chosen(source: Path, texts: Mapping[str, DomainConfig], count: int, length: int | None) -> list[Document]:
    """At most `count` documents of each of `texts`; without any, our own held-out rows, or the built-in text.

    Raises `UserError` as `heldout` and `from_text` do.
    """
    if is_ours(source) and not texts:
        return heldout(source, count)
    return from_text(source, texts or BUILTIN, count, length)


def heldout(source: Path, count: int) -> list[Document]:
    """At most `count` held-out rows per domain of one of our checkpoints, spread evenly over its validation split.

    Raises `UserError` where the data that it was trained on cannot be prepared again.
    """
    config = checkpoint.config_of(source)
    digest = checkpoint.read_state(source).get("data", "")
    corpus = prepare(config.data, config.model.vocab_size, config.train.seq_len, digest)
    corpus.check_digest(digest, source)
    rows = {domain: corpus.heldout(domain, SPLIT) for domain in corpus.domains}
    chosen = {domain: of[torch.linspace(0, len(of) - 1, min(count, len(of))).long()] for domain, of in rows.items()}
    return [Document(domain, tuple(row.tolist())) for domain, of in chosen.items() for row in of]


def from_text(source: Path, texts: Mapping[str, DomainConfig], count: int, length: int | None) -> list[Document]:
    """At most `count` documents of each domain, in the tokens of `source`, each cut after `length` tokens (128).

    Framed as the model's tokenizer frames a text. Documents of fewer than 8 tokens are passed over. Raises `UserError`
    for a source without a tokenizer or with a shorter context, for text that cannot be read, and for a domain without
    a document.
    """
    encoding = Encoding(source)
    length = min(LENGTH, encoding.context) if length is None else length
    if length > encoding.context:
        raise UserError(f"--length {length} is more than the {encoding.context} tokens that {source} reads: lower it.")
    found = []
    for domain, of in texts.items():
        documents = list(itertools.islice(_documents(domain, of, encoding, length), count))
        if not documents:
            raise UserError(f"{of.path or domain} holds no document of {SHORTEST} tokens or more: give a longer text.")
        found += documents
    return found


def _documents(domain: str, of: DomainConfig, encoding: Encoding, length: int) -> Iterator[Document]:
    with tempfile.TemporaryDirectory() as scratch:
        for group in _groups(domain, of, Path(scratch)):
            for text in group:
                tokens = encoding.row(text, length)
                if len(tokens) >= min(SHORTEST, length):
                    yield Document(domain, tuple(tokens))


def _groups(domain: str, of: DomainConfig, scratch: Path) -> Iterator[Group]:
    if of.source is not Source.files:
        return READERS[of.source].documents(domain, of, scratch, set())
    given = f"--data {of.path}" if domain == UNNAMED else f"--data {domain}={of.path}"
    words = Words(given, "", f"its text has to be in a column '{of.column}': rename")
    return file_text(domain, of, scratch, set(), words)


def batches(documents: Sequence[Document], tokens: int) -> list[Batch]:
    """All documents, the longest first, in batches of at most `tokens` places or of one document."""
    order = sorted(range(len(documents)), key=lambda i: (-len(documents[i].tokens), i))
    found = []
    while order:
        longest = len(documents[order[0]].tokens)
        size = max(1, tokens // longest)
        found.append(_batch(documents, order[:size], longest))
        order = order[size:]
    return found


def _batch(documents: Sequence[Document], places: Sequence[int], longest: int) -> Batch:
    rows = torch.zeros(len(places), longest, dtype=torch.int64)
    mask = torch.zeros(len(places), longest, dtype=torch.bool)
    for row, place in enumerate(places):
        of = documents[place].tokens
        rows[row, : len(of)] = torch.tensor(of)
        mask[row, : len(of)] = True
    return Batch(tuple(places), rows, mask)
