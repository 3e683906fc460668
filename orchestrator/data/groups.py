"""Groups of documents: one row of a table, or pieces of files. No group is in two splits."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa

SHARES = 32  # groups that files are dealt into; a held-out split drops the rest of its last group

Group = list[str]  # documents, of which no two may be in different splits


def digest(text: str) -> bytes:
    """16 bytes of the text's sha256; documents with the same digest are the same."""
    return hashlib.sha256(text.encode(errors="replace")).digest()[:16]


def stream(texts: Iterable[str | None], seen: set[bytes]) -> Iterator[Group]:
    """One group per document, in order, without blanks and those already `seen`."""
    for text in texts:
        if text and not text.isspace() and (key := digest(text)) not in seen:
            seen.add(key)
            yield [text]


def shuffle(columns: Sequence[pa.ChunkedArray], seen: set[bytes]) -> Iterator[Group]:
    """One group per document of all columns, by ascending digest, without blanks and those already `seen`."""
    places: dict[bytes, tuple[int, int]] = {}
    for c, column in enumerate(columns):
        for i, text in enumerate(value.as_py() for value in column):
            if text and not text.isspace() and (key := digest(text)) not in seen:
                places.setdefault(key, (c, i))
    seen.update(places)
    for key in sorted(places):
        c, i = places[key]
        yield [columns[c][i].as_py()]


def deal(files: Sequence[Sequence[str]], seen: set[bytes]) -> list[Group]:
    """The pieces of all files in about `SHARES` groups of equal length, without blanks and those already `seen`.

    A file is in one group. Only a file longer than a share is cut, into contiguous stretches of about a share, so that
    a single file can fill every split. Within a group the files take turns, each with its pieces in the order of their
    digests, so that a short split still holds many files. The order does not depend on file names.
    """
    share = sum(len(piece) for file in files for piece in file) / SHARES
    dealt: dict[int, list[tuple[int, bytes, str]]] = {}  # group → (turn, digest, piece)
    start = 0
    for file in sorted(filter(None, files), key=lambda file: digest("".join(file))):
        length = sum(map(len, file))
        per_stretch = math.ceil(len(file) / math.ceil(length / share))  # pieces
        for first in range(0, len(file), per_stretch):
            stretch = file[first : first + per_stretch]
            size = sum(map(len, stretch))
            group = dealt.setdefault(int((start + size / 2) / share), [])
            start += size
            fresh = {key: piece for piece in stretch if not piece.isspace() and (key := digest(piece)) not in seen}
            seen.update(fresh)
            group += [(turn, key, fresh[key]) for turn, key in enumerate(sorted(fresh))]
    groups = [[piece for _, _, piece in sorted(group)] for group in dealt.values() if group]
    return sorted(groups, key=lambda group: digest(group[0]))
