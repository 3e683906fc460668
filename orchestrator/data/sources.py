"""Where text comes from. Every source yields unique documents in an order that no file name can change."""

from __future__ import annotations

import glob
import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa

from orchestrator.data import builtin
from orchestrator.errors import UserError, nearest
from orchestrator.schema import DomainConfig, Source


def digest(text: str) -> bytes:
    """16 bytes of the text's sha256: what makes two documents the same one."""
    return hashlib.sha256(text.encode(errors="replace")).digest()[:16]


def stream(texts: Iterable[str | None], seen: set[bytes]) -> Iterator[str]:
    """The documents in their own order, without blanks and those already `seen`."""
    for text in texts:
        if text and not text.isspace() and (key := digest(text)) not in seen:
            seen.add(key)
            yield text


def shuffle(parts: Sequence[Sequence[str | None]], seen: set[bytes]) -> Iterator[str]:
    """The documents of all parts by ascending digest, without blanks and those already `seen`."""
    places: dict[bytes, tuple[int, int]] = {}
    for p, part in enumerate(parts):
        for i, text in enumerate(part):
            if text and not text.isspace() and (key := digest(text)) not in seen:
                places.setdefault(key, (p, i))
    seen.update(places)
    for key in sorted(places):
        p, i = places[key]
        text = parts[p][i]
        assert text is not None
        yield text


def reason(error: Exception) -> str:
    """What went wrong in one line; `datasets` wraps the telling error in a general one."""
    cause = error.__cause__ or error
    return (str(cause).strip() or type(cause).__name__).splitlines()[0].rstrip(".")


class ArrowText(Sequence[str | None]):
    """A memory-mapped column of text; picking one costs microseconds (of a `datasets` row, a hundred)."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        self.column = column

    def __len__(self) -> int:
        return len(self.column)

    def __getitem__(self, i: Any) -> Any:
        return self.column[i].as_py()


def text_column(rows: datasets.Dataset, column: str, where: str) -> ArrowText:
    """The texts of a table. Raises `UserError` where it has no such column, or one that is not of text."""
    if column not in rows.column_names:
        raise UserError(
            f"{where} has no column '{column}'{nearest(column, rows.column_names)}: "
            f"set its domain's column to one of {', '.join(rows.column_names)}."
        )
    if getattr(rows.features[column], "dtype", None) not in {"string", "large_string"}:
        raise UserError(
            f"{where}: column '{column}' holds {rows.features[column]}, not text: choose a column of strings."
        )
    texts = rows.data.column(column)
    try:
        texts.validate(full=True)
    except pa.ArrowInvalid as error:  # parsers let wrong bytes pass
        raise UserError(f"{where}: column '{column}' is not UTF-8 ({reason(error)}): convert it first.") from error
    return ArrowText(texts)


# builtin


def builtin_text(name: str, domain: DomainConfig, scratch: Path, seen: set[bytes]) -> Iterator[str]:
    known = {"code": builtin.code, "facts": builtin.facts, "math": builtin.math}
    which = domain.path or name
    if which not in known:
        raise UserError(
            f"data.domains.{name}: there is no builtin text '{which}'{nearest(which, known)}: "
            f"set its path to one of {', '.join(known)}."
        )
    texts = known[which]()
    return shuffle([texts], seen) if isinstance(texts, list) else stream(texts, seen)


def builtin_identity(name: str, domain: DomainConfig) -> Any:
    """Python versions differ in their library: its file sizes stand for `code`."""
    if (domain.path or name) != "code":
        return None
    return [(p.name, p.stat().st_size) for p in builtin.library_files()]


# files


def cut_text(path: Path, column: str, scratch: Path) -> list[str]:
    with path.open(encoding="utf-8-sig") as file:
        return list(builtin.pieces(file))


def json_lines(path: Path, column: str, scratch: Path) -> Sequence[str | None]:
    table = datasets.Dataset.from_json(glob.escape(str(path)), cache_dir=str(scratch))
    return text_column(table, column, str(path))


def parquet(path: Path, column: str, scratch: Path) -> Sequence[str | None]:
    table = datasets.Dataset.from_parquet(glob.escape(str(path)), cache_dir=str(scratch))
    return text_column(table, column, str(path))


FORMATS: dict[str, Callable[[Path, str, Path], Sequence[str | None]]] = {
    ".txt": cut_text,
    ".jsonl": json_lines,
    ".json": json_lines,
    ".parquet": parquet,
}


def matching_files(name: str, domain: DomainConfig) -> list[Path]:
    """The files of a path or glob, sorted. `UserError` for a missing, empty or unknown one."""
    assert domain.path is not None
    key = f"data.domains.{name}.path={domain.path}"
    path = Path(domain.path).expanduser()
    if path.exists():
        files = [path] if path.is_file() else []
    else:
        found = glob.glob(str(path), recursive=True)  # noqa: PTH207 (Path.glob takes no absolute pattern)
        files = sorted(p for p in map(Path, found) if p.is_file())
    if not files and path.is_dir():
        raise UserError(f"{key} is a folder: name its files, as in {domain.path.rstrip('/')}/*.jsonl.")
    if not files and glob.has_magic(domain.path):
        raise UserError(f"{key} matches no file under {Path.cwd()}: check the pattern.")
    if not files:
        raise UserError(f"{key} does not exist: check the path, or use source=hub for a dataset's name.")
    for file in files:
        if file.suffix not in FORMATS:
            raise UserError(f"{key}: {file} is of no known format: give files that end in {', '.join(FORMATS)}.")
        if file.stat().st_size == 0:
            raise UserError(f"{key}: {file} is empty: fill it, or leave it out of the pattern.")
    return files


def file_text(name: str, domain: DomainConfig, scratch: Path, seen: set[bytes]) -> Iterator[str]:
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(logging.CRITICAL)  # what fails below is said once, by us
    parts = []
    for path in matching_files(name, domain):
        try:
            parts.append(FORMATS[path.suffix](path, domain.column, scratch))
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}): convert it first.") from error
        except UserError:
            raise
        except Exception as error:  # whatever a parser throws at a broken file
            raise UserError(f"{path} cannot be read ({reason(error)}): mend the file or leave it out.") from error
    return shuffle(parts, seen)


def file_identity(name: str, domain: DomainConfig) -> Any:
    return [(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in matching_files(name, domain)]


# hub


def hub_text(name: str, domain: DomainConfig, scratch: Path, seen: set[bytes]) -> Iterator[str]:
    assert domain.path is not None
    try:
        rows = datasets.load_dataset(domain.path, domain.name, split=domain.split, streaming=domain.streaming)
    except Exception as error:  # network, permissions, names, formats: all the user's to mend
        raise hub_error(name, domain, error) from error
    if domain.streaming:
        return stream(hub_stream(name, domain, rows), seen)
    return shuffle([text_column(rows, domain.column, f"data.domains.{name}.path={domain.path}")], seen)


def hub_stream(name: str, domain: DomainConfig, rows: datasets.IterableDataset) -> Iterator[str | None]:
    column = domain.column
    try:
        for row in rows:
            text = row.get(column)
            if column not in row or not (text is None or isinstance(text, str)):
                raise UserError(
                    f"data.domains.{name}.path={domain.path} has no text in a column '{column}': "
                    f"set data.domains.{name}.column to one of {', '.join(row)}."
                )
            yield text
    except UserError:
        raise
    except Exception as error:
        raise hub_error(name, domain, error) from error


def hub_error(name: str, domain: DomainConfig, error: Exception) -> UserError:
    return UserError(
        f"data.domains.{name}.path={domain.path} cannot be loaded ({reason(error)}): "
        f"check its path, name={domain.name}, split={domain.split} and the network."
    )


def hub_identity(name: str, domain: DomainConfig) -> Any:
    """A local folder is known by its files; what is on the Hub is prepared once and then kept."""
    assert domain.path is not None
    return folder_identity(Path(domain.path))


def folder_identity(folder: Path) -> list[tuple[str, int, int]] | None:
    """Names, sizes and times of a folder's files; None where there is no such folder."""
    if not folder.is_dir():
        return None
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return [(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in files]


@dataclass(frozen=True)
class Reader:
    """`documents(name, domain, scratch, seen)` yields text; `identity(name, domain)` changes with it."""

    documents: Callable[[str, DomainConfig, Path, set[bytes]], Iterator[str]]
    identity: Callable[[str, DomainConfig], Any]


READERS: dict[Source, Reader] = {
    Source.builtin: Reader(builtin_text, builtin_identity),
    Source.files: Reader(file_text, file_identity),
    Source.hub: Reader(hub_text, hub_identity),
}
