"""The one exception a user can cause."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path

INTERRUPTED = 130  # exit code of what a signal stopped


class UserError(Exception):
    """Something the user can mend: one sentence with the value, the reason and the cure.

    Every entry point prints it without a traceback and exits with code 2.
    """


def nearest(word: str, known: Iterable[str]) -> str:
    """` (did you mean 'x'?)` for the closest of `known`, or an empty string where nothing is close."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" (did you mean '{close[0]}'?)" if close else ""


def refuse_unwritable(target: Path | None) -> None:
    """Raise `UserError` before the work where its result could not be written."""
    if target is not None and not target.parent.is_dir():
        raise UserError(f"{target} cannot be written: make the directory {target.parent} first.")
