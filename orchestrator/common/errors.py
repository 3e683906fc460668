"""The one exception that a user can cause, and sentences about it."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable
from pathlib import Path

INTERRUPTED = 130  # exit code after a signal
STOPPED = "Stopped: the same command resumes from the newest checkpoints."


class UserError(Exception):
    """An error that the user can correct: one sentence with the value, the reason and the cure.

    Every command prints it without a traceback and exits with code 2.
    """


def nearest(word: str, known: Iterable[str]) -> str:
    """` (did you mean 'x'?)` for the closest of `known`, or an empty string where nothing is close."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" (did you mean '{close[0]}'?)" if close else ""


def no_experiment(path: Path) -> str:
    """The sentence for a directory that holds no experiment."""
    if (path / "config.yaml").is_file():
        return f"{path} is one cell: name its experiment's directory, {path.parents[1]}."
    if not path.exists() and (inside := Path("outputs", path)).exists():
        return f"{path} is not there, but {inside} is: name that."
    if not path.exists() and not path.is_absolute() and not path.parent.exists():
        return f"{path} is not under {Path.cwd()}: go to where the run was started, or give its whole path."
    if not path.exists():
        close = nearest(path.name, [other.name for other in path.parent.glob("*")])
        return f"{path} is not there{close}: name a directory that a run wrote, such as outputs/width_ablation."
    if begun := sorted(path.glob("search/*/events.jsonl"), key=lambda log: log.stat().st_mtime):
        return f"{path} is a search that still explores, or was stopped: its newest trials are {begun[-1].parent}."
    return f"{path} holds no experiment: name a directory that a run wrote, such as outputs/width_ablation."


def complain(sentence: str) -> None:
    """Print a sentence to stderr."""
    print(sentence, file=sys.stderr, flush=True)
