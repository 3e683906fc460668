"""Checks that a message names files, keys, values and cures, whatever the words between."""

from __future__ import annotations

import re


def naming(*words: object) -> str:
    """A pattern, for `match=` and `re.search`, of the text that names each of `words` whole, in any order and line."""
    return "(?s)" + "".join(f"(?=.*{_whole(str(word))})" for word in words)


def names(text: object, *words: object) -> bool:
    """True where the text, or an error's, names each of `words`."""
    return re.search(naming(*words), str(text)) is not None


def _whole(word: str) -> str:
    """A pattern that finds 4 in `4 layers`, and neither in `40` nor in `4.5`; a space matches a fold."""
    return r"(?<!\w)(?<!\d\.)" + r"\s+".join(map(re.escape, word.split())) + r"(?!\w)(?!\.\d)"
