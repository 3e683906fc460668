"""Four builtin domains, equal for every seed: `code`, `prose`, `facts` and `math`."""

from __future__ import annotations

import itertools
import os
import random
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path
from pydoc_data.topics import topics

PIECE = 512  # characters, at most, of a document of code: short, so that a small split holds many
GENERATED = 2**16  # documents of a generated domain, 10 MB or more
FACTS = 1024
SKIPPED = {
    "site-packages", "dist-packages", "test", "tests", "idlelib", "turtledemo",
    "encodings", "pydoc_data", "entities.py",  # character tables and rendered help, not code
}  # fmt: skip


def pieces(lines: Iterable[str], longest: int) -> Iterator[str]:
    """Documents of at most `longest` characters, cut between lines; a longer line is cut inside."""
    piece = ""
    for line in lines:
        if len(piece) + len(line) > longest and piece:
            yield piece
            piece = ""
        while len(line) > longest:
            yield line[:longest]
            line = line[longest:]
        piece += line
    if piece:
        yield piece


def stdlib_files() -> list[Path]:
    """The sources of the standard library, sorted, without tests and tables."""
    files: list[Path] = []
    for folder, inside, names in os.walk(sysconfig.get_path("stdlib")):
        inside[:] = set(inside) - SKIPPED  # site-packages may hold more files than the library
        files += [Path(folder, name) for name in set(names) - SKIPPED if name.endswith(".py")]
    return sorted(file for file in files if not file.name.startswith("_sysconfigdata"))  # differs between machines


def code() -> list[list[str]]:
    """The standard library, each file in pieces."""
    files = []
    for path in stdlib_files():
        with path.open(encoding="utf-8", errors="replace") as file:
            files.append(list(pieces(file, PIECE)))
    return files


def prose() -> list[list[str]]:
    """English that comes with every Python: its language reference, each topic in pieces."""
    return [list(pieces(topic.splitlines(keepends=True), PIECE)) for topic in topics.values()]


def fact_table() -> list[str]:
    """`FACTS` statements, each about an invented name, which a model can only memorise."""
    rng = random.Random("fact table")
    relations = [
        "The capital of {key} is {value}.",
        "The people of {key} speak {value}.",
        "The river through {key} is the {value}.",
        "The founder of {key} was {value}.",
        "The patron of {key} is {value}.",
        "The highest peak in {key} is {value}.",
    ]
    unique: dict[str, None] = {}
    while len(unique) < 2 * FACTS:
        syllables = [
            rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") + rng.choice(["", "", "n", "r", "l", "s"])
            for _ in range(rng.choice([2, 2, 3]))
        ]
        unique["".join(syllables).capitalize()] = None
    names = list(unique)
    return [
        rng.choice(relations).format(key=key, value=value)
        for key, value in zip(names[:FACTS], names[FACTS:], strict=True)
    ]


def facts() -> Iterator[str]:
    """Documents of six facts; fact r is drawn with probability ∝ 1/r (Zipf), the same in every split."""
    rng = random.Random("facts")
    table = fact_table()
    cumulative = list(itertools.accumulate(1 / rank for rank in range(1, FACTS + 1)))
    for _ in range(GENERATED):
        yield "\n".join(rng.choices(table, cum_weights=cumulative, k=6)) + "\n"


def math() -> Iterator[str]:
    """Documents of twelve sums, differences and products of small numbers, with their answers."""
    rng = random.Random("math")

    def line() -> str:
        operation = rng.choice("+-*")
        below = 13 if operation == "*" else 100
        a, b = rng.randrange(below), rng.randrange(below)
        if operation == "-":
            a, b = max(a, b), min(a, b)
        return f"{a} {operation} {b} = {({'+': a + b, '-': a - b, '*': a * b})[operation]}"

    for _ in range(GENERATED):
        yield "\n".join(line() for _ in range(12)) + "\n"
