"""Sources: the same documents in the same order from any file layout, and every bad file named."""

from __future__ import annotations

import ast
import bz2
import gzip
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pyarrow as pa
import pytest

from orchestrator.common.errors import UserError
from orchestrator.config.schema import DomainConfig, Source
from orchestrator.data import builtin
from orchestrator.data.sources import READERS
from tests.naming import naming

TEXTS = [f"document {i}: naïve 日本語" for i in range(30)]


@pytest.fixture(autouse=True)
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub-cache")


def read(tmp_path: Path, seen: set[bytes] | None = None, **domain: Any) -> list[str]:
    config = DomainConfig(**domain)
    documents = READERS[config.source].documents("text", config, tmp_path / "scratch", set() if seen is None else seen)
    return [text for group in documents for text in group]


def identity(**domain: Any) -> object:
    config = DomainConfig(**domain)
    return READERS[config.source].identity("text", config)


def write_jsonl(path: Path, texts: list[str], column: str = "text") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"id": i, column: t}) + "\n" for i, t in enumerate(texts)))
    return path


# builtin


def test_code_is_the_standard_library_in_pieces() -> None:
    files = builtin.code()
    assert sum(len(piece) for file in files for piece in file) > 2_000_000
    assert max(len(piece) for file in files for piece in file) <= builtin.PIECE
    texts = {"".join(file) for file in files}
    assert Path(ast.__file__).read_text() in texts  # pieces of a file follow each other and lose nothing
    assert not any("class IdleConf" in text or "build_time_vars = {" in text for text in texts)


def test_facts_are_zipf_and_never_contradict() -> None:
    statements = "".join(itertools.islice(builtin.facts(), 5000)).splitlines()
    assert len(statements) == 30_000
    parts = [re.fullmatch(r"(.*?[A-Z].*) ((?:is|speak|was|is the) [A-Z]\w+\.)", s) for s in statements]
    assert all(parts)
    values: dict[str, set[str]] = {}
    for match in parts:
        assert match is not None
        values.setdefault(match[1], set()).add(match[2])
    assert all(len(v) == 1 for v in values.values())
    counts = Counter(statements)
    table = builtin.fact_table()
    assert len(set(table)) == builtin.FACTS
    harmonic = sum(1 / r for r in range(1, builtin.FACTS + 1))
    for rank in (1, 2, 10, 100):
        expected = 30_000 / rank / harmonic
        assert abs(counts[table[rank - 1]] - expected) < 5 * expected**0.5


def test_math_is_right() -> None:
    lines = "".join(itertools.islice(builtin.math(), 500)).splitlines()
    assert len(lines) == 6000
    assert {line.split()[1] for line in lines} == {"+", "-", "*"}
    for line in lines:
        question, answer = line.split(" = ")
        assert eval(question) == int(answer) >= 0


@pytest.mark.parametrize("name", ["facts", "math"])
def test_generated_text_is_the_same_every_time_and_long(name: str, tmp_path: Path) -> None:
    def start() -> list[str]:
        config = DomainConfig(path=name)
        return list(itertools.islice(documents(config), 1000))

    def documents(config: DomainConfig) -> Iterator[str]:
        return itertools.chain.from_iterable(READERS[Source.builtin].documents("text", config, tmp_path, set()))

    assert len(set(start())) == 1000
    assert start() == start()
    assert sum(map(len, start())) / 1000 * builtin.GENERATED > 9_000_000


def test_an_unknown_builtin_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=naming("builtin", "'maths'", "'math'?")):
        read(tmp_path, path="maths")


# cutting


def test_pieces_lose_nothing_and_end_at_lines() -> None:
    lines = [f"{i} " * (i % 40) + "\n" for i in range(500)] + ["x" * 5000 + "\n", "end"]
    pieces = list(builtin.pieces(lines, 700))
    assert "".join(pieces) == "".join(lines)
    assert max(map(len, pieces)) <= 700
    assert all(p.endswith("\n") for p in pieces if "x" not in p and p != pieces[-1])
    assert min(map(len, pieces[:20])) > 350


# files


def test_every_format_gives_the_same_documents_in_the_same_order(tmp_path: Path) -> None:
    lines = write_jsonl(tmp_path / "a.jsonl", TEXTS)
    turned = write_jsonl(tmp_path / "b.json", TEXTS[::-1])
    pd.DataFrame({"text": TEXTS, "n": range(30)}).to_parquet(tmp_path / "c.parquet")
    for i, text in enumerate(TEXTS):
        (tmp_path / f"{i}.txt").write_text(text)
    write_jsonl(tmp_path / "parts/x/1.jsonl", TEXTS[:10], "body")
    write_jsonl(tmp_path / "parts/y/2.jsonl", TEXTS[10:], "body")
    expected = read(tmp_path, source=Source.files, path=str(lines))
    assert sorted(expected) == sorted(TEXTS)
    assert expected != TEXTS
    assert expected == read(tmp_path, source=Source.files, path=str(turned))
    assert expected == read(tmp_path, source=Source.files, path=str(tmp_path / "c.parquet"))
    assert expected == read(tmp_path, source=Source.files, path=str(tmp_path / "*.txt"))
    assert expected == read(tmp_path, source=Source.files, path=str(tmp_path / "parts/**/*.jsonl"), column="body")


def test_compressed_files_and_csv_give_the_same_documents(tmp_path: Path) -> None:
    texts = [*TEXTS, 'with, a "quoted"\nline', "NA", "null", " 17"]
    lines = write_jsonl(tmp_path / "a.jsonl", texts)
    expected, content = read(tmp_path, source=Source.files, path=str(lines)), lines.read_bytes()
    pd.DataFrame({"n": range(len(texts)), "text": texts}).to_csv(tmp_path / "c.csv", index=False)
    half = content.index(b"\n", len(content) // 2) + 1
    files = {
        "a.jsonl.gz": gzip.compress(content),
        "two.jsonl.gz": gzip.compress(content[:half]) + gzip.compress(content[half:]),
        "a.json.bz2": bz2.compress(content),
        "a.jsonl.zst": _zstd(content),
        "two.jsonl.zst": _zstd(content[:half]) + _zstd(content[half:]),
        "c.csv.zst": _zstd((tmp_path / "c.csv").read_bytes()),
    }
    for name, packed in files.items():
        (tmp_path / name).write_bytes(packed)
    for name in ("c.csv", *files):
        assert read(tmp_path, source=Source.files, path=str(tmp_path / name)) == expected, name
    (tmp_path / "x").mkdir()
    for i in range(3):  # of one name, as shards in folders have
        (tmp_path / f"x/{i}").mkdir()
        (tmp_path / f"x/{i}/part.txt.gz").write_bytes(gzip.compress(f"text {i}\n".encode()))
    shards = read(tmp_path, source=Source.files, path=str(tmp_path / "x/*/*.gz"))
    assert sorted(shards) == [f"text {i}\n" for i in range(3)]


def test_duplicates_blanks_and_nulls_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in ["a", None, "", " \n", "b", "a", "c", "b"]))
    assert sorted(read(tmp_path, source=Source.files, path=str(path))) == ["a", "b", "c"]
    seen: set[bytes] = set()
    assert len(read(tmp_path, seen, source=Source.files, path=str(path))) == 3
    assert read(tmp_path, seen, source=Source.files, path=str(path)) == []  # as a second domain


def test_texts_and_tables_mix_in_one_order(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", TEXTS[:15])
    for i, text in enumerate(TEXTS[10:]):
        (tmp_path / f"{i}.txt").write_text(text)
    expected = read(tmp_path, source=Source.files, path=str(write_jsonl(tmp_path / "all/a.jsonl", TEXTS)))
    assert read(tmp_path, source=Source.files, path=str(tmp_path / "*.*")) == expected


def test_paths_with_pattern_characters_are_taken_literally(tmp_path: Path) -> None:
    for suffix in ("jsonl", "txt"):
        path = write_jsonl(tmp_path / f"odd [a] *dir/data [1].{suffix}", TEXTS)
        assert read(tmp_path, source=Source.files, path=str(path))
    pd.DataFrame({"text": TEXTS}).to_parquet(tmp_path / "odd [a] *dir/x?.parquet")
    assert len(read(tmp_path, source=Source.files, path=str(tmp_path / "odd [a] *dir/x?.parquet"))) == 30


def test_identity_follows_size_and_time(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", TEXTS)
    before = identity(source=Source.files, path=str(path))
    assert before == identity(source=Source.files, path=str(path))
    write_jsonl(path, TEXTS[1:])
    assert before != identity(source=Source.files, path=str(path))
    assert identity(path="code") == identity(path="code") is not None


def _zstd(content: bytes) -> bytes:
    return bytes(pa.compress(content, codec="zstd", asbytes=True))


BAD: dict[str, tuple[bytes | None, str, list[str]]] = {
    "missing": (None, "*.jsonl", ["*.jsonl", "no file"]),
    "absent.txt": (None, "absent.txt", ["absent.txt", "exist"]),
    "empty.txt": (b"", "empty.txt", ["empty.txt", "empty"]),
    "table.tsv": (b"text\na\n", "table.tsv", ["table.tsv", "format", ".txt", ".csv", ".zst"]),
    "table.csv": (b"body\na\n", "table.csv", ["table.csv", "column 'text'", "body"]),
    "cut.txt.gz": (gzip.compress(b"some text" * 99)[:-20], "cut.txt.gz", ["cut.txt.gz", "read"]),
    "cut.jsonl.zst": (_zstd(b'{"text": "a"}\n' * 99)[:-5], "cut.jsonl.zst", ["cut.jsonl.zst", "read"]),
    "not.jsonl.gz": (b'{"text": "a"}\n', "not.jsonl.gz", ["not.jsonl.gz", "read"]),
    "packed.gz": (gzip.compress(b"text"), "packed.gz", ["packed.gz", "format"]),
    "latin.txt.gz": (gzip.compress("é".encode("latin-1")), "latin.txt.gz", ["latin.txt.gz", "UTF-8"]),
    "latin.txt": ("é".encode("latin-1"), "latin.txt", ["latin.txt", "UTF-8", "byte 0"]),
    "latin.jsonl": (b'{"text": "\xe9"}\n', "latin.jsonl", ["latin.jsonl", "column 'text'", "UTF-8"]),
    "cut.jsonl": (b'{"text": "a"}\n{"text": "b', "cut.jsonl", ["cut.jsonl", "JSON parse error"]),
    "blank.jsonl": (b"\n\n", "blank.jsonl", ["blank.jsonl", "read"]),
    "bad.parquet": (b"PAR1 not really", "bad.parquet", ["bad.parquet", "read", "Parquet"]),
    "other.jsonl": (b'{"txt": "a", "id": 1}\n', "other.jsonl", ["column 'text'", "'txt'?", "txt, id"]),
    "numbers.jsonl": (b'{"text": 1}\n', "numbers.jsonl", ["column 'text'", "Value('int64')", "strings"]),
    "list.jsonl": (b'{"text": ["a"]}\n', "list.jsonl", ["column 'text'", "List(Value('string'))", "strings"]),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_named_in_one_sentence(name: str, tmp_path: Path) -> None:
    content, path, named = BAD[name]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=naming(*named)) as caught:
        read(tmp_path, source=Source.files, path=str(tmp_path / path))
    assert "\n" not in str(caught.value)


def test_a_folder_is_refused_with_the_cure(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=naming(tmp_path, "folder", "*.jsonl")):
        read(tmp_path, source=Source.files, path=str(tmp_path))


# hub


@pytest.mark.parametrize("streaming", [False, True])
def test_hub_reads_what_datasets_can_load(streaming: bool, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "corpus/train.jsonl", TEXTS + TEXTS[:5], "body")
    write_jsonl(tmp_path / "corpus/test.jsonl", ["other"], "body")
    hub: dict[str, Any] = {
        "source": Source.hub,
        "path": str(tmp_path / "corpus"),
        "column": "body",
        "streaming": streaming,
    }
    documents = read(tmp_path, **hub)
    assert sorted(documents) == sorted(TEXTS)
    assert (documents == TEXTS) == streaming  # a stream keeps its own order
    assert read(tmp_path, **hub | {"split": "test"}) == ["other"]
    before = identity(**hub)
    write_jsonl(tmp_path / "corpus/test.jsonl", ["another one"], "body")
    assert identity(**hub) != before


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"path": "nowhere"}, ["nowhere", "loaded"]),
        ({"split": "tests"}, ["loaded", "split=tests"]),
        ({"name": "english"}, ["loaded", "name=english"]),
        ({"column": "txt"}, ["column 'txt'", "id, text"]),
        ({"column": "id"}, ["column 'id'"]),
        ({"path": "broken"}, ["broken", "loaded"]),
    ],
)
def test_hub_failures_are_one_sentence(
    change: dict[str, str], named: list[str], streaming: bool, tmp_path: Path
) -> None:
    write_jsonl(tmp_path / "corpus/train.jsonl", TEXTS)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/train.jsonl").write_text('{"text": "a"}\n{"text": oops\n')
    hub: dict[str, Any] = {"path": "corpus", "streaming": streaming} | change
    with pytest.raises(UserError, match=naming(*named)) as caught:
        read(tmp_path, source=Source.hub, **hub | {"path": f"{tmp_path}/{hub['path']}"})
    assert "\n" not in str(caught.value)


def test_a_stream_is_read_no_further_than_asked(tmp_path: Path) -> None:
    """A source may be broken behind the documents that are taken."""
    write_jsonl(tmp_path / "corpus/train-1.jsonl", TEXTS)
    (tmp_path / "corpus/train-2.jsonl").write_text("{broken\n")
    config = DomainConfig(source=Source.hub, path=str(tmp_path / "corpus"), streaming=True)
    documents = READERS[Source.hub].documents("text", config, tmp_path, set())
    assert list(itertools.islice(documents, 20)) == [[text] for text in TEXTS[:20]]
