"""Packing: groups of documents → splits, parquet files of rows of seq_len + 1 tokens."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

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
    path: Path, groups: Iterator[Iterator[tuple[str, list[int]]]], budget: int | None, seq_len: int
) -> Split:
    """Take groups until the budget of tokens is reached, and write their concatenation as rows.

    Row r holds tokens r·T … (r+1)·T of the stream, both ends included, so that every token but the first is predicted
    once. Tokens beyond the budget or the last full row are dropped; the next split begins with the next group.
    """
    documents = tokens = rows = read_bytes = read_tokens = 0
    pending: list[int] = []
    digest = hashlib.sha256()
    schema = pa.schema([("tokens", pa.list_(pa.int32(), seq_len + 1))])
    with pq.ParquetWriter(path, schema) as writer:

        def flush() -> int:
            count = max(len(pending) - 1, 0) // seq_len
            if count:
                flat = np.array(pending[: count * seq_len + 1], dtype=np.int32)
                cut = np.lib.stride_tricks.sliding_window_view(flat, seq_len + 1)[::seq_len]  # [count, T+1]
                column = pa.FixedSizeListArray.from_arrays(pa.array(cut.ravel()), seq_len + 1)
                writer.write_table(pa.table({"tokens": column}, schema=schema))
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
    return Split(documents, tokens, rows, read_bytes / max(read_tokens, 1), digest.hexdigest())


def write_domain(
    name: str, groups: Iterable[Group], tokenizer: Tokenizer, config: DataConfig, seq_len: int, folder: Path
) -> dict[str, Split]:
    """Fill test, validation, reward and train, in this order, each from its own groups.

    Raises `UserError` where the text cannot fill the held-out splits and one row of training.
    """
    folder.mkdir(parents=True)
    encoded = encode(groups, tokenizer)
    heldout = config.heldout_tokens
    splits = {split: write_split(folder / f"{split}.parquet", encoded, heldout, seq_len) for split in HELDOUT}
    splits["train"] = write_split(folder / "train.parquet", encoded, config.train_tokens, seq_len)
    if splits["train"].rows == 0:  # it is filled last, so it is empty where any split is short
        found = sum(split.tokens for split in splits.values())
        read = sum(split.documents for split in splits.values())
        raise UserError(
            f"data.domains.{name} has {read} distinct documents, which fill {found} tokens, and needs "
            f"{len(HELDOUT) * heldout} held out ({len(HELDOUT)} × data.heldout_tokens, no document in two splits) "
            f"and {seq_len + 1} to train on: add text, or lower data.heldout_tokens or train.seq_len."
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
