"""The prepared corpus: disjoint, capped, built once whatever happens, and batches that remember nothing."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import random
import re
from pathlib import Path
from pydoc_data.topics import topics

import pytest
import torch

from orchestrator.common.errors import UserError
from orchestrator.config.schema import DataConfig, DomainConfig, Source, TokenizerConfig, TokenizerKind
from orchestrator.data import Corpus, prepare
from orchestrator.data import builtin as builtin_text
from orchestrator.data.packing import HELDOUT
from tests.naming import naming
from tests.waiting import PATIENCE, wait_for

SPLITS = (*HELDOUT, "train")


def builtin(tmp_path: Path, **changes: object) -> DataConfig:
    domains = {name: DomainConfig() for name in ("code", "facts", "math")}
    defaults = {
        "domains": domains,
        "train_tokens": 6000,
        "heldout_tokens": 700,
        "cache_dir": str(tmp_path / "cache"),
    }
    return DataConfig(**(defaults | changes))  # type: ignore[arg-type]


def notes(tmp_path: Path, texts: list[str], name: str = "notes", **changes: object) -> DataConfig:
    path = tmp_path / f"{name}.jsonl"
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    domains = {name: DomainConfig(source=Source.files, path=str(path))}
    return builtin(tmp_path, **{"domains": domains, "train_tokens": None} | changes)


def text(corpus: Corpus, domain: str, split: str) -> str:
    """All of a split, decoded: the first token, then what each row predicts."""
    table = corpus._rows(domain, split, slice(None))
    return bytes(i if i < 256 else 10 for i in [table[0, 0], *table[:, 1:].ravel()]).decode(errors="replace")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return prepare(builtin(tmp_path_factory.mktemp("corpus")), 257, 32)


# batches


def test_batches_are_a_pure_function_of_seed_and_step(corpus: Corpus) -> None:
    config = DataConfig(
        domains={name: DomainConfig() for name in reversed(corpus.domains)},
        train_tokens=6000, heldout_tokens=700, cache_dir=str(corpus.folder.parent),
    )  # fmt: skip
    steps = [0, 1, 2, 57, 58, 200, 900]
    expected = {step: prepare(config, 500, 32).batch(7, step, 5) for step in steps}  # a fresh object each time
    random.Random(0).shuffle(steps)
    for step in steps:
        corpus.batch(8, step, 3)
        assert torch.equal(corpus.batch(7, step, 5), expected[step])
    assert expected[0].dtype == torch.int64
    assert expected[0].shape == (5, 33)
    assert not torch.equal(corpus.batch(8, 0, 5), expected[0])


def test_steps_share_one_sequence_of_rows(corpus: Corpus) -> None:
    """Twice the batch at half the steps sees the same rows: batch size is not part of the order."""
    wide = torch.cat([corpus.batch(1, step, 10) for step in range(6)])
    narrow = torch.cat([corpus.batch(1, step, 4) for step in range(15)])
    assert torch.equal(wide, narrow)


def test_batch_rows_are_the_rows_named(corpus: Corpus) -> None:
    tables = {name: corpus.heldout(name, "train") for name in corpus.domains}
    ids = corpus.mixture.row_ids(0, 3 * 40, 40)
    assert {name for name, _ in ids} == set(corpus.domains)
    assert torch.equal(corpus.batch(0, 3, 40), torch.stack([tables[name][row] for name, row in ids]))


def test_weights_count_tokens(tmp_path: Path) -> None:
    domains = {"facts": DomainConfig(weight=3.0), "math": DomainConfig(weight=1.0)}
    corpus = prepare(builtin(tmp_path, domains=domains), 257, 32)
    size = corpus.mixture.size
    epoch = [name for name, _ in corpus.mixture.row_ids(0, 0, size)]
    assert (epoch.count("facts"), epoch.count("math")) == (round(size * 3 / 4), size - round(size * 3 / 4))


# splits


def test_sizes_are_as_asked(corpus: Corpus) -> None:
    for name in corpus.domains:
        assert corpus.splits[name]["train"].tokens == 6000
        assert corpus.splits[name]["train"].rows == (6000 - 1) // 32
        for split in HELDOUT:
            assert corpus.splits[name][split].tokens == 700
            assert corpus.heldout(name, split).shape == ((700 - 1) // 32, 33)
            assert corpus.heldout(name, split).dtype == torch.int64


def test_splits_are_disjoint_and_complete(tmp_path: Path) -> None:
    """Even where most documents come several times, in two files and in two domains."""
    numbers = list(range(300)) * 3
    random.Random(0).shuffle(numbers)
    config = notes(tmp_path, [f"note-{n:03d} it says {n}." for n in numbers])
    other = notes(tmp_path, [f"note-{n:03d} it says {n}." for n in range(200, 500)], name="other")
    config.domains |= other.domains
    corpus = prepare(config, 257, 16)
    found = [set(re.findall(r"note-\d{3}", text(corpus, name, split))) for name in corpus.domains for split in SPLITS]
    assert all(len(s) > 20 for s in found)
    assert sum(map(len, found)) == len(set().union(*found))
    assert len(set().union(*found)) > 490  # all but what overran a split


@pytest.mark.parametrize(("domain", "many"), [("code", 6), ("prose", 1)])
def test_no_file_or_topic_of_python_is_in_two_splits_and_each_split_holds_many(
    domain: str, many: int, tmp_path: Path
) -> None:
    """At the sizes of the default."""
    config = builtin(tmp_path, domains={domain: DomainConfig()}, train_tokens=16384, heldout_tokens=4096)
    corpus = prepare(config, 257, 128)
    files = {str(path): path.read_text(errors="replace") for path in builtin_text.stdlib_files()}
    sources = files if domain == "code" else topics
    homes: list[set[str]] = []
    for split in SPLITS:
        table = corpus._rows(domain, split, slice(None))
        stream = bytes(i if i < 256 else 0 for i in [table[0, 0], *table[:, 1:].ravel()])
        documents = [document.decode() for document in stream.split(b"\0")[:-1]]
        found = [{path for path, text in sources.items() if document in text} for document in documents]
        assert all(found)
        homes.append({path for paths in found if len(paths) == 1 for path in paths})
    assert all(len(home) >= many for home in homes), [len(home) for home in homes]
    assert sum(map(len, homes)) == len(set().union(*homes))


def text_files(tmp_path: Path, count: int, lines: int) -> DataConfig:
    for f in range(count):
        text = "".join(f"<{f}:{i}> {i * i}\n" for i in range(lines))
        (tmp_path / f"{f}.txt").write_text(text)
    domains = {"notes": DomainConfig(source=Source.files, path=str(tmp_path / "*.txt"))}
    return builtin(tmp_path, domains=domains, train_tokens=None)


def test_no_text_file_is_in_two_splits(tmp_path: Path) -> None:
    corpus = prepare(text_files(tmp_path, 60, 600), 257, 16)
    found = [{f for f, _ in re.findall(r"<(\d+):(\d+)>", text(corpus, "notes", split))} for split in SPLITS]
    assert all(found)
    assert sum(map(len, found)) == len(set().union(*found))
    assert len(found[-1]) > 50


def test_the_splits_of_a_single_text_file_meet_nowhere_but_at_their_ends(tmp_path: Path) -> None:
    corpus = prepare(text_files(tmp_path, 1, 40_000), 257, 16)
    home = {
        int(i): split
        for split in SPLITS
        for _, i in re.findall(r"<(\d+):(\d+)>", text(corpus, "notes", split))
    }  # fmt: skip
    assert len(home) > 0.85 * 40_000
    lines = sorted(home)
    changes = sum(home[a] != home[b] for a, b in itertools.pairwise(lines))
    assert 3 <= changes <= 6


def test_a_changed_corpus_is_not_what_a_model_was_trained_on(tmp_path: Path) -> None:
    texts = [f"note {n} " * 5 for n in range(200)]
    corpus = prepare(notes(tmp_path, texts), 257, 16)
    corpus.check_digest(corpus.digest, Path("step_00000007"))
    changed = prepare(notes(tmp_path, texts[1:]), 257, 16)
    with pytest.raises(UserError, match=naming("step_00000007", "other data")):
        changed.check_digest(corpus.digest, Path("step_00000007"))


def test_order_of_the_file_changes_nothing(tmp_path: Path) -> None:
    texts = [f"note {n} " * 5 for n in range(200)]
    one = prepare(notes(tmp_path, texts), 257, 16)
    rows = {split: one.heldout("notes", split) for split in SPLITS}
    two = prepare(notes(tmp_path, texts[::-1]), 257, 16)
    assert all(torch.equal(two.heldout("notes", split), rows[split]) for split in SPLITS)


# the tokenizers


def test_bpe_packs_what_it_decodes(tmp_path: Path) -> None:
    config = builtin(tmp_path, tokenizer=TokenizerConfig(kind=TokenizerKind.bpe, vocab_size=400))
    corpus = prepare(config, 400, 32)
    again = prepare(config, 400, 32)
    assert corpus.tokenizer.vocab_size == 400
    assert corpus.splits["facts"]["test"].bytes_per_token > 1.5
    decoded = again.tokenizer.decode(again.heldout("math", "test")[3].tolist())
    assert re.search(r"\d+ [-+*] \d+ = \d+\n", decoded)
    assert int(corpus.batch(0, 0, 16).max()) < 400


def test_a_saved_bpe_serves_as_a_foreign_tokenizer(tmp_path: Path) -> None:
    first = prepare(builtin(tmp_path, tokenizer=TokenizerConfig(kind=TokenizerKind.bpe, vocab_size=400)), 400, 32)
    path = str(first.folder / "tokenizer")
    second = prepare(builtin(tmp_path, tokenizer=TokenizerConfig(kind=TokenizerKind.hf, path=path)), 400, 32)
    assert torch.equal(first.batch(0, 0, 8), second.batch(0, 0, 8))
    with pytest.raises(UserError, match=naming("hf tokenizer", "400", "model.vocab_size=399")):
        prepare(builtin(tmp_path, tokenizer=TokenizerConfig(kind=TokenizerKind.hf, path=path)), 399, 32)


# built once


def test_the_second_call_only_reads(tmp_path: Path) -> None:
    first = prepare(builtin(tmp_path), 257, 32)
    made = (first.folder / "meta.json").stat().st_mtime_ns
    second = prepare(builtin(tmp_path), 257, 32)
    assert (second.folder / "meta.json").stat().st_mtime_ns == made
    assert second.folder.name == first.folder.name


def test_the_fingerprint_covers_what_matters_and_nothing_else(tmp_path: Path) -> None:
    texts = [f"note {n} " * 5 for n in range(200)]
    base = prepare(notes(tmp_path, texts), 257, 16).folder.name
    assert (
        prepare(notes(tmp_path, texts, cache_dir=str(tmp_path / "elsewhere"), heldout_tokens=701), 257, 16).folder.name
        != base
    )
    moved = notes(tmp_path, texts)
    written = prepare(moved, 257, 16).folder.name  # the file was written again
    moved.cache_dir = str(tmp_path / "elsewhere")
    assert prepare(moved, 300, 16).folder.name == written != base
    assert prepare(moved, 257, 17).folder.name != written


def test_a_cache_without_its_last_file_is_built_again(tmp_path: Path) -> None:
    first = prepare(builtin(tmp_path), 257, 32)
    expected = first.batch(0, 0, 4)
    (first.folder / "meta.json").unlink()
    (first.folder / "rows/math/train.bin").write_bytes(b"torn")
    assert torch.equal(prepare(builtin(tmp_path), 257, 32).batch(0, 0, 4), expected)


@pytest.mark.parametrize("content", [b"", b"torn", None])
def test_rows_of_another_length_are_refused(tmp_path: Path, content: bytes | None) -> None:
    corpus = prepare(builtin(tmp_path), 257, 32)
    rows = corpus.folder / "rows/math/train.bin"
    rows.write_bytes(rows.read_bytes() + b"more" if content is None else content)
    with pytest.raises(UserError, match=naming("train.bin", str(corpus.folder))):
        corpus.batch(0, 0, 4)


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=naming("data.domains.notes", "1 distinct documents")):
        prepare(notes(tmp_path, ["too short"] * 9), 257, 32)
    assert [p.suffix for p in (tmp_path / "cache").iterdir()] == [".lock"]


def test_killed_then_built_by_two_at_once(tmp_path: Path) -> None:
    """A process is killed in the middle of building; of the two that follow one builds, and both can read."""
    domains = {"facts": DomainConfig(), "math": DomainConfig()}
    config = builtin(tmp_path, domains=domains, train_tokens=2_000_000)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["orchestrator.data"])
    killed, *others = (context.Process(target=prepare, args=(config, 257, 32)) for _ in range(3))
    killed.start()
    wait_for(lambda: list(tmp_path.glob("cache/*.tmp/rows/facts/test.bin")), poll=0.005)
    killed.kill()
    killed.join()
    assert list(tmp_path.glob("cache/*.tmp"))
    assert not list(tmp_path.glob("cache/*/meta.json"))
    for process in others:
        process.start()
    for process in others:
        process.join(PATIENCE)
        assert process.exitcode == 0
    assert not list(tmp_path.glob("cache/*.tmp"))
    assert prepare(config, 257, 32).splits["math"]["train"].tokens == 2_000_000


# refusals


def test_refusals_come_early_and_name_the_cure(tmp_path: Path) -> None:
    def refused(*named: str, vocab_size: int = 257, **changes: object) -> None:
        with pytest.raises(UserError, match=naming(*named)):
            prepare(builtin(tmp_path, **changes), vocab_size, 32)

    refused("byte tokenizer", "257", "model.vocab_size=256", vocab_size=256)
    refused("bpe tokenizer", "4096", "257", tokenizer=TokenizerConfig(kind=TokenizerKind.bpe))
    refused("data.tokenizer.vocab_size=256", "257", tokenizer=TokenizerConfig(kind=TokenizerKind.bpe, vocab_size=256))
    refused("data.tokenizer.path", "kind=hf", tokenizer=TokenizerConfig(kind=TokenizerKind.hf))
    refused("data.heldout_tokens=32", "train.seq_len", "33", heldout_tokens=32)
    refused("data.train_tokens=32", "train.seq_len", "33", train_tokens=32)
    refused("data.domains", "'a/b'", domains={"a/b": DomainConfig(path="math")})
    assert not (tmp_path / "cache").exists()


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=naming(f"data.cache_dir={tmp_path / 'file/cache'}")):
        prepare(builtin(tmp_path, cache_dir=str(tmp_path / "file/cache")), 257, 32)


def test_odd_folder_names_hold_a_corpus(tmp_path: Path) -> None:
    config = builtin(tmp_path, cache_dir=str(tmp_path / "name[model=tiny,*] é"))
    config.domains = {"my math [1]": DomainConfig(path="math")}
    assert prepare(config, 257, 32).batch(0, 0, 2).shape == (2, 33)
