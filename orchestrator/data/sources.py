"""Sources of text. Each yields unique documents in groups, in an order that does not depend on file names."""

from __future__ import annotations

import glob
import heapq
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.common.errors import UserError, nearest
from orchestrator.config.schema import DomainConfig, Source
from orchestrator.data import builtin
from orchestrator.data.groups import Group, deal, digest, shuffle, stream

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

# datasets and pyarrow (0.7 s) are imported in functions: training reads rows, and needs neither.

PIECE = 2048  # characters of the longest document cut from a plain text


def reason(error: Exception) -> str:
    """The first line of an error's message."""
    cause = error.__cause__ or error  # `datasets` raises a general error from the specific one
    return (str(cause).strip() or type(cause).__name__).splitlines()[0].rstrip(".")


def text_column(rows: datasets.Dataset, column: str, where: str, cure: str) -> pa.ChunkedArray:
    """A table's column of text, memory-mapped. Raises `UserError` where there is none of that name.

    An item costs microseconds; a row of `datasets` costs a hundred.
    """
    import pyarrow as pa

    if column not in rows.column_names:
        raise UserError(
            f"{where} has no column '{column}'{nearest(column, rows.column_names)}: "
            f"{cure} one of {', '.join(rows.column_names)}."
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
    return texts


# builtin


def builtin_text(name: str, domain: DomainConfig, scratch: Path, seen: set[bytes]) -> Iterator[Group]:
    """The groups of `code`, `prose`, `facts` or `math`."""
    known: dict[str, Callable[[], Iterator[Group]]] = {
        "code": lambda: iter(deal(builtin.code(), seen)),
        "prose": lambda: iter(deal(builtin.prose(), seen)),
        "facts": lambda: stream(builtin.facts(), seen),
        "math": lambda: stream(builtin.math(), seen),
    }
    which = domain.path or name
    if which not in known:
        raise UserError(
            f"data.domains.{name}: there is no builtin text '{which}'{nearest(which, known)}: "
            f"set its path to one of {', '.join(known)}."
        )
    return known[which]()


def builtin_identity(name: str, domain: DomainConfig) -> Any:
    """The sizes of the files or topics that differ between versions of Python; else None."""
    of_python = {
        "code": lambda: [(p.name, p.stat().st_size) for p in builtin.stdlib_files()],
        "prose": lambda: [(topic, len(text)) for topic, text in builtin.topics.items()],
    }
    which = domain.path or name
    return of_python[which]() if which in of_python else None


# files


def plain_text(path: Path) -> list[str]:
    """A plain text, cut into pieces."""
    with path.open(encoding="utf-8-sig") as file:
        return list(builtin.pieces(file, PIECE))


def _rows(reader: str, **options: Any) -> Callable[[Path, Path], datasets.Dataset]:
    """A function of a file and a scratch folder that returns the file's rows."""

    def read(path: Path, scratch: Path) -> datasets.Dataset:
        import datasets

        read_file = getattr(datasets.Dataset, reader)
        return read_file(glob.escape(str(path)), cache_dir=str(scratch), **options)

    return read


TEXT = ".txt"
TABLES = {  # suffix → what reads it
    ".jsonl": _rows("from_json"),
    ".json": _rows("from_json"),
    ".csv": _rows("from_csv", keep_default_na=False),  # a document may read "NA"
    ".parquet": _rows("from_parquet"),
}
FORMATS = (TEXT, *TABLES)
COMPRESSED = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}  # suffix behind that of the format → codec


def format_of(path: Path) -> str:
    """The suffix that says how a file is read, without that of its compression."""
    return Path(path.stem).suffix if path.suffix in COMPRESSED else path.suffix


def decompressed(path: Path, scratch: Path) -> Path:
    """`path`, or a copy in `scratch` without its compression. Raises `OSError` where its bytes are not of it."""
    if path.suffix not in COMPRESSED:
        return path
    import pyarrow as pa

    scratch.mkdir(parents=True, exist_ok=True)
    copy = Path(tempfile.mkdtemp(dir=scratch), path.stem)  # of its own, as `datasets` caches by path and time
    with pa.input_stream(str(path), compression=COMPRESSED[path.suffix]) as source, copy.open("wb") as target:
        shutil.copyfileobj(source, target)
    return copy


@dataclass(frozen=True)
class Words:
    """What a user typed to name files, and how errors about them are cured there."""

    given: str
    absent: str
    column: str


def of_domain(name: str, domain: DomainConfig) -> Words:
    """The words of a configuration."""
    column = f"set data.domains.{name}.column to"
    return Words(f"data.domains.{name}.path={domain.path}", "or use source=hub for a dataset's name", column)


def matching_files(domain: DomainConfig, words: Words) -> list[Path]:
    """The files of a path or glob, sorted. Raises `UserError` for a missing or empty file and an unknown format."""
    assert domain.path is not None
    key = words.given
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
        raise UserError(f"{key} does not exist: {', '.join(filter(None, ('check the path', words.absent)))}.")
    for file in files:
        which = key if file == path else f"{key}: {file}"
        if format_of(file) not in FORMATS:
            raise UserError(
                f"{which} has an unknown format: give files that end in {', '.join(FORMATS)}, also compressed "
                f"({', '.join(COMPRESSED)} behind it)."
            )
        if file.stat().st_size == 0:
            raise UserError(f"{which} is empty: fill it, or leave it out.")
    return files


def file_text(
    name: str, domain: DomainConfig, scratch: Path, seen: set[bytes], words: Words | None = None
) -> Iterator[Group]:
    """The groups of all files. Raises `UserError` for one that cannot be read, in the `words` by which it was named."""
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(logging.CRITICAL)  # failures below are reported once, by us
    texts: list[Sequence[str]] = []
    tables: list[pa.ChunkedArray] = []
    words = words or of_domain(name, domain)
    for path in matching_files(domain, words):
        try:
            plain = decompressed(path, scratch)
            if format_of(path) == TEXT:
                texts.append(plain_text(plain))
            else:
                rows = TABLES[format_of(path)](plain, scratch)
                tables.append(text_column(rows, domain.column, str(path), words.column))
            if plain != path:
                plain.unlink()
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}): convert it first.") from error
        except UserError:
            raise
        except Exception as error:  # whatever a parser throws at a broken file
            raise UserError(f"{path} cannot be read ({reason(error)}): repair the file or leave it out.") from error
    dealt = deal(texts, seen)
    return heapq.merge(dealt, shuffle(tables, seen), key=lambda group: digest(group[0]))


def file_identity(name: str, domain: DomainConfig) -> Any:
    """Name, size and time of each file."""
    return _stamps(matching_files(domain, of_domain(name, domain)))


# hub


def hub_text(name: str, domain: DomainConfig, scratch: Path, seen: set[bytes]) -> Iterator[Group]:
    """The groups of a dataset, which may be streamed. Raises `UserError` where it cannot be loaded."""
    import datasets

    assert domain.path is not None
    try:
        rows = datasets.load_dataset(domain.path, domain.name, split=domain.split, streaming=domain.streaming)
    except Exception as error:  # network, permissions, names, formats
        raise hub_error(name, domain, error) from error
    if domain.streaming:
        return stream(hub_stream(name, domain, rows), seen)
    words = of_domain(name, domain)
    return shuffle([text_column(rows, domain.column, words.given, words.column)], seen)


def hub_stream(name: str, domain: DomainConfig, rows: datasets.IterableDataset) -> Iterator[str | None]:
    """The texts of a streamed dataset, in its order."""
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
    """The error to raise for a dataset that cannot be loaded."""
    return UserError(
        f"data.domains.{name}.path={domain.path} cannot be loaded ({reason(error)}): "
        f"check its path, name={domain.name}, split={domain.split} and the network."
    )


def hub_identity(name: str, domain: DomainConfig) -> Any:
    """The files of a local folder; None for a dataset on the Hub, which is taken not to change."""
    assert domain.path is not None
    return folder_identity(Path(domain.path))


def folder_identity(folder: Path) -> list[tuple[str, int, int]] | None:
    """Name, size and time of each of a folder's files; None where there is no such folder."""
    if not folder.is_dir():
        return None
    return _stamps(sorted(p for p in folder.rglob("*") if p.is_file()))


def _stamps(files: Iterable[Path]) -> list[tuple[str, int, int]]:
    return [(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in files]


@dataclass(frozen=True)
class Reader:
    """The functions of a source: `documents(name, domain, scratch, seen)` yields groups of documents.

    `identity(name, domain)` is a JSON-able value that changes with the text.
    """

    documents: Callable[[str, DomainConfig, Path, set[bytes]], Iterator[Group]]
    identity: Callable[[str, DomainConfig], Any]


READERS: dict[Source, Reader] = {
    Source.builtin: Reader(builtin_text, builtin_identity),
    Source.files: Reader(file_text, file_identity),
    Source.hub: Reader(hub_text, hub_identity),
}
