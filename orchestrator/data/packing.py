"""Packing: groups of documents → splits, files of token ids that rows of seq_len + 1 are cut from."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from orchestrator.common.errors import UserError
from orchestrator.config.schema import DataConfig
from orchestrator.data.groups import Group
from orchestrator.data.tokenizer import Tokenizer, train_bpe

HELDOUT = ("test", "validation", "reward")  # filled in this order, before train
ENCODED_AT_ONCE = 256  # documents
ROWS_AT_ONCE = 1024


@dataclass(frozen=True)
class Split:
    """The counts of one split of one domain; `bytes_per_token` converts nats per token to bits per byte."""

    documents: int
    tokens: int
    rows: int
    bytes_per_token: float
    digest: str  # sha256 of the rows


def id_type(vocab_size: int) -> type[np.unsignedinteger]:
    """The type of the ids in a file: the smaller of two that holds them."""
    return np.uint16 if vocab_size <= 2**16 else np.uint32


def read_rows(path: Path, rows: int, seq_len: int, vocab_size: int) -> np.ndarray:
    """The rows of a split, memory-mapped [rows, seq_len + 1]: each begins with the last token of the one before.

    Raises `UserError` where the file is gone or has another length.
    """
    try:
        ids = np.memmap(path, id_type(vocab_size), mode="r", shape=(rows * seq_len + 1,))
        if path.stat().st_size != ids.nbytes:
            raise ValueError(f"it holds more than {rows} rows")
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read ({error}): delete {path.parents[2]}, so that its corpus is built again."
        ) from error
    return np.lib.stride_tricks.sliding_window_view(ids, seq_len + 1)[::seq_len]


def encode(groups: Iterable[Group], tokenizer: Tokenizer) -> Iterator[Iterator[tuple[str, list[int]]]]:
    """Each group as an iterator over (document, tokens), which need not be exhausted before the next group."""
    numbered = ((number, text) for number, group in enumerate(groups) for text in group)

    def encoded() -> Iterator[tuple[int, str, list[int]]]:
        while batch := list(itertools.islice(numbered, ENCODED_AT_ONCE)):
            ids = tokenizer.encode([text for _, text in batch])
            yield from ((number, text, i) for (number, text), i in zip(batch, ids, strict=True))

    for _, members in itertools.groupby(encoded(), key=lambda document: document[0]):
        yield ((text, ids) for _, text, ids in members)


def write_split(
    path: Path, groups: Iterator[Iterator[tuple[str, list[int]]]], budget: int | None, seq_len: int, vocab_size: int
) -> Split:
    """Take groups until the budget of tokens is reached, and write their concatenation.

    Row r is tokens r·T … (r+1)·T of the stream, both ends included, so that every token but the first is predicted
    once. Tokens beyond the budget or the last full row are dropped; the next split begins with the next group.
    """
    documents = tokens = rows = read_bytes = read_tokens = 0
    pending: list[int] = []
    digest = hashlib.sha256()
    with path.open("wb") as file:

        def flush() -> int:
            count = max(len(pending) - 1, 0) // seq_len
            if count:
                flat = np.array(pending[: count * seq_len + 1], dtype=np.int32)
                file.write(flat[:-1].astype(id_type(vocab_size)).tobytes())
                digest.update(flat.tobytes())
                del pending[: count * seq_len]
            return count

        for text, ids in itertools.chain.from_iterable(groups):
            documents += 1
            read_bytes += len(text.encode(errors="replace"))
            read_tokens += len(ids)
            kept = ids if budget is None else ids[: budget - tokens]
            tokens += len(kept)
            pending += kept
            if len(pending) > ROWS_AT_ONCE * seq_len:
                rows += flush()
            if tokens == budget:
                break
        rows += flush()
        if rows:
            file.write(np.array(pending[:1], dtype=id_type(vocab_size)).tobytes())  # the end of the last row
    return Split(documents, tokens, rows, read_bytes / max(read_tokens, 1), digest.hexdigest())


def write_domain(
    name: str, groups: Iterable[Group], tokenizer: Tokenizer, config: DataConfig, seq_len: int, folder: Path
) -> dict[str, Split]:
    """Fill test, validation, reward and train, in this order, each from its own groups.

    Raises `UserError` where the text cannot fill the held-out splits and one row of training.
    """
    folder.mkdir(parents=True)
    encoded = encode(groups, tokenizer)
    budgets = {**dict.fromkeys(HELDOUT, config.heldout_tokens), "train": config.train_tokens}
    splits = {
        split: write_split(folder / f"{split}.bin", encoded, budget, seq_len, tokenizer.vocab_size)
        for split, budget in budgets.items()
    }
    if splits["train"].rows == 0:  # it is filled last, so it is empty where any split is short
        found = sum(split.tokens for split in splits.values())
        read = sum(split.documents for split in splits.values())
        raise UserError(
            f"data.domains.{name} has {read} distinct documents, which fill {found} tokens, and needs "
            f"{len(HELDOUT) * config.heldout_tokens} held out ({len(HELDOUT)} × data.heldout_tokens, no document in "
            f"two splits) and {seq_len + 1} to train on: add text, or lower data.heldout_tokens or train.seq_len."
        )
    return splits


def heldout_groups(groups: Iterable[Group], tokenizer: Tokenizer, heldout_tokens: int) -> int:
    """The number of groups that the held-out splits take; they take the first ones."""
    encoded = encode(groups, tokenizer)
    taken = 0
    for _ in HELDOUT:
        tokens = 0
        for group in encoded:
            taken += 1
            tokens += sum(len(ids) for _, ids in group)
            if tokens >= heldout_tokens:
                break
    return taken


def beginning(groups: Iterable[Group], length: int) -> Iterator[str]:
    """The first documents, up to `length` characters in total."""
    for text in itertools.chain.from_iterable(groups):
        if length <= 0:
            return
        length -= len(text)
        yield text


def learn_bpe(heads: dict[str, list[Group]], vocab_size: int, heldout_tokens: int, length: int) -> Tokenizer:
    """A BPE learnt from at most `length` characters of each domain, and from no group that is held out.

    Which groups are held out depends on the tokenizer. So the first tokenizer is learnt from all groups, each next one
    only from those that the one before does not hold out, until a tokenizer holds out no group that it has seen.
    """
    reserved = dict.fromkeys(heads, 0)
    while True:
        learnt_from = (beginning(head[reserved[name] :], length) for name, head in heads.items())
        tokenizer = train_bpe(itertools.chain.from_iterable(learnt_from), vocab_size)
        taken = {name: heldout_groups(head, tokenizer, heldout_tokens) for name, head in heads.items()}
        if all(taken[name] <= reserved[name] for name in heads):
            return tokenizer
        reserved = {name: max(taken[name], reserved[name]) for name in heads}
