"""Commands: a parser and a function of the parsed arguments, which `run` turns into an exit code."""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console

from orchestrator.common import cli, streams
from orchestrator.common.errors import INTERRUPTED, UserError, complain
from orchestrator.common.formatting import printable

WIDTH = 100  # columns where the output is not a terminal; rich would assume 80


class Parser(argparse.ArgumentParser):
    """A parser that says in one sentence why an argument cannot be used, as all else that a user can correct."""

    def error(self, message: str) -> NoReturn:
        """Raise `UserError`."""
        raise UserError(f"{message.removeprefix('argument ')}; {self.prog} --help says what is wanted.")


def parser(module: str, doc: str | None, epilog: str | None = None) -> argparse.ArgumentParser:
    """The parser of a command, with `doc` as its help and the option `--version`."""
    by_name = Path(sys.argv[0]).name == cli.NAME
    made = Parser(
        prog=f"{cli.NAME} {module.rpartition('.')[2]}" if by_name else f"python -m {module}",
        description=doc,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--version", action="version", version=cli.VERSION, help="print the version and exit")
    return made


def run(
    parser: argparse.ArgumentParser,
    function: Callable[[argparse.Namespace], int | None],
    arguments: Sequence[str] | None = None,
) -> int:
    """Parse the arguments, call the function and return its exit code, 0 for None.

    The exit code is 2 for a `UserError` or an `OSError`, printed to stderr as one sentence, and 130 when interrupted.
    """
    streams.make_lasting()
    try:
        return function(parser.parse_args(arguments)) or 0
    except UserError as error:
        complain(printable(str(error)))  # it may quote a file
    except OSError as error:
        reason = error.strerror or error
        complain(printable(f"{error.filename or 'A file'} cannot be used ({reason}): check its rights and its disk."))
    except KeyboardInterrupt:
        return INTERRUPTED
    return 2


@contextmanager
def importing() -> Iterator[None]:
    """Import in the block what the process keeps: the garbage collector passes over it, now and later.

    Else each full collection, of which a start takes several, visits the half million objects of torch: 0.1 s.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        if not gc.get_freeze_count():  # at the start alone: later there may be garbage, which would stay
            gc.freeze()


def console() -> Console:
    """A console on stdout, as wide as the terminal or as COLUMNS says; else 100 columns."""
    return Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else WIDTH)


def count(text: str, least: int = 1) -> int:
    """The `type` of an argument that is a number of `least` or more."""
    if not text.isascii() or not text.isdigit() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text} is no number of {least} or more")
    return int(text)


def given(text: str) -> str:
    """The `type` of an argument that is not empty."""
    if not text.strip():
        raise argparse.ArgumentTypeError("it names nothing: give it a value, or leave the option out")
    return text


def listed(text: str) -> str:
    """The `type` of an argument that names several things, with a comma between them."""
    if not all(part.strip() for part in text.split(",")):
        raise argparse.ArgumentTypeError(f"'{text}' names nothing in one place: correct it, or leave the option out")
    return text


def output(text: str, suffixes: Sequence[str] = ()) -> Path:
    """The `type` of an argument that names a file to write.

    Raises `UserError`, before any work, where it cannot be written, or where its suffix is not one of `suffixes`.
    """
    path = Path(text)
    if suffixes and path.suffix.lower() not in suffixes:
        raise UserError(f"{path} cannot be written: end its name in {' or '.join(suffixes)}.")
    if path.is_dir():
        raise UserError(f"{path} cannot be written: it is a directory; name a file in it.")
    if not path.parent.is_dir():
        raise UserError(f"{path} cannot be written: make the directory {path.parent} first.")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UserError(f"{path} cannot be written: you may not write there; name another place.")
    return path


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an `OSError` of the block, which writes `path`, into a `UserError`."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror or error}): name another place.") from error


def write_json(document: Any, path: Path | None) -> None:
    """Write the document, in which no number may be NaN, unless the path is None. Raises `UserError`."""
    if path is not None:
        with writing(path):
            path.write_text(json.dumps(document, indent=1, allow_nan=False), encoding="utf-8")
