"""English and code from installed packages: one selection, whose digest the tables state."""

from __future__ import annotations

import email
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import distributions
from pathlib import Path
from pydoc_data.topics import topics

from orchestrator.data.builtin import pieces, stdlib_files

COUNT = 48  # documents of each domain
SAME = 60  # letters at the beginning by which pieces are told apart
LONGEST = 480  # characters: about a hundred tokens
LETTERS = 0.97  # share of a piece of English that is letters, spaces and the marks of a sentence, at least
LINE = 50  # characters of a line of English, at least, on the mean


def documentation() -> Iterator[str]:
    """The descriptions of the installed packages."""
    for distribution in distributions():
        yield str(email.message_from_string(distribution.read_text("METADATA") or "").get_payload())


def licences() -> Iterator[str]:
    """The licences of the installed packages."""
    for distribution in distributions():
        for file in distribution.files or ():
            if "dist-info" in str(file) and file.name.upper().startswith(("LICENSE", "COPYING", "NOTICE")):
                yield Path(str(file.locate())).read_text(encoding="utf-8", errors="replace")


def reference() -> Iterator[str]:
    """The language reference that comes with Python."""
    yield from topics.values()


def sources() -> Iterator[str]:
    """Python's standard library."""
    for path in stdlib_files():
        yield path.read_text(encoding="utf-8", errors="replace")


def is_english(piece: str) -> bool:
    """True for sentences, false for lists, tables, links and mark-up."""
    lines = [line for line in piece.splitlines() if line.strip()]
    plain = sum(c.isascii() and (c.isalpha() or c in " ,.;:'\"()-\n") for c in piece) / len(piece)
    shouted = sum(c.isupper() for c in piece) / len(piece)
    return plain >= LETTERS and shouted < 0.1 and "http" not in piece and sum(map(len, lines)) / len(lines) >= LINE


def selection(texts: Iterable[str], accept: Callable[[str], bool], count: int) -> list[str]:
    """Pieces of about full length that are accepted: those of the smallest digests.

    Of pieces whose first letters agree, as those of one licence in several packages do, one is taken.
    """
    found: dict[str, str] = {}
    for text in texts:
        for piece in pieces(text.splitlines(keepends=True), LONGEST):
            if len(piece) >= LONGEST / 2 and accept(piece):
                found.setdefault("".join(filter(str.isalpha, piece.lower()))[:SAME], piece)
    return sorted(found.values(), key=lambda piece: hashlib.sha256(piece.encode()).digest())[:count]


def write(folder: Path, count: int = COUNT) -> tuple[dict[str, Path], str]:
    """Both domains, of `count` documents each, as JSON lines, domain → file, and one digest of them."""
    folder.mkdir(parents=True, exist_ok=True)
    english = [
        piece for texts in (documentation, licences, reference) for piece in selection(texts(), is_english, count // 3)
    ]
    chosen = {"english": english, "code": selection(sources(), lambda _: True, count)}
    found, digest = {}, hashlib.sha256()
    for name, texts in chosen.items():
        digest.update("\0".join(texts).encode())
        found[name] = folder / f"{name}.jsonl"
        found[name].write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return found, digest.hexdigest()[:16]
