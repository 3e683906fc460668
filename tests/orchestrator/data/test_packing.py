"""Documents to rows, against a plain-Python packer."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.common.errors import UserError
from orchestrator.config.schema import DataConfig
from orchestrator.data.packing import HELDOUT, learn_bpe, read_rows, write_domain
from orchestrator.data.tokenizer import ByteTokenizer
from tests.naming import naming


def reference(texts: list[str], budgets: list[int | None], seq_len: int) -> list[list[list[int]]]:
    """Rows of each split, packed the obvious way."""
    rows, texts = [], list(texts)
    for budget in budgets:
        stream: list[int] = []
        while texts and (budget is None or len(stream) < budget):
            stream += [*texts.pop(0).encode(), 256]
        stream = stream[:budget]
        rows.append([stream[i : i + seq_len + 1] for i in range(0, len(stream) - seq_len, seq_len)])
    return rows


def read(path: Path, seq_len: int) -> list[list[int]]:
    """The file's rows, each a token longer than the way to the next."""
    ids = np.fromfile(path, dtype="<u2").tolist()
    return [ids[start : start + seq_len + 1] for start in range(0, len(ids) - 1, seq_len)]


@settings(max_examples=40, deadline=None)
@given(
    texts=st.lists(st.text(max_size=60), min_size=40, max_size=80),
    seq_len=st.integers(1, 20),
    spare=st.integers(0, 30),
    train=st.one_of(st.none(), st.integers(21, 200)),
)
def test_rows_are_those_of_the_plain_packer(texts: list[str], seq_len: int, spare: int, train: int | None) -> None:
    heldout = seq_len + 1 + spare
    expected = reference(texts, [heldout, heldout, heldout, train], seq_len)
    config = DataConfig(heldout_tokens=heldout, train_tokens=train)
    with TemporaryDirectory() as temporary:
        folder = Path(temporary) / "rows"
        try:
            splits = write_domain("text", [[t] for t in texts], ByteTokenizer(), config, seq_len, folder)
        except UserError:
            assert not expected[3]  # only where the text is too short
            return
        assert expected[3]
        for split, rows in zip([*HELDOUT, "train"], expected, strict=True):
            assert read(folder / f"{split}.bin", seq_len) == rows
            assert splits[split].rows == len(rows)
        assert all(splits[split].tokens == heldout for split in HELDOUT)


def test_many_rows_are_written_in_pieces(tmp_path: Path) -> None:
    """More than one buffer's worth, and a document longer than a buffer."""
    rng = random.Random(0)
    texts = ["".join(rng.choices("abcdef", k=n)) for n in [30, 30, 30, 9000, 10, 2500, 7000, 1]]
    write_domain("text", [[t] for t in texts], ByteTokenizer(), DataConfig(heldout_tokens=10), 4, tmp_path / "rows")
    assert read(tmp_path / "rows/train.bin", 4) == reference(texts, [10, 10, 10, None], 4)[3]


def test_ids_of_a_large_vocabulary_are_kept_whole(tmp_path: Path) -> None:
    class Words(ByteTokenizer):
        vocab_size = 2**16 + 1

        def encode(self, texts: Sequence[str]) -> list[list[int]]:
            return [[*map(int, text.split()), 2**16] for text in texts]

    texts = [[f"{n} {n + 2**15}"] for n in range(2**15)]
    splits = write_domain("text", texts, Words(), DataConfig(heldout_tokens=5), 4, tmp_path / "rows")
    rows = read_rows(tmp_path / "rows/train.bin", splits["train"].rows, 4, Words.vocab_size)
    stream = [token for text in texts for token in Words().encode(text)[0]][18:]  # three splits of two documents
    assert rows.tolist() == [stream[start : start + 5] for start in range(0, len(stream) - 4, 4)]
    assert rows.max() == 2**16


def test_a_group_is_in_one_split(tmp_path: Path) -> None:
    """The rest of a split's last group is dropped, even where one group takes many batches to encode."""
    groups = [[letter * 9] * 700 for letter in "abcdef"]
    write_domain("t", groups, ByteTokenizer(), DataConfig(heldout_tokens=21), 4, tmp_path / "r")
    seen = {split: {t for row in read(tmp_path / f"r/{split}.bin", 4) for t in row} for split in (*HELDOUT, "train")}
    letters = [{*letter.encode(), 256} for letter in "abc"]
    assert list(seen.values()) == [*letters, {*b"def", 256}]
    assert len(read(tmp_path / "r/train.bin", 4)) == (3 * 700 * 10 - 1) // 4


def test_bytes_per_token_counts_end_of_text(tmp_path: Path) -> None:
    splits = write_domain(
        "t", [["ab"], ["é"], ["xyz"], ["abcdefg"]], ByteTokenizer(), DataConfig(heldout_tokens=2), 1, tmp_path / "r"
    )
    assert splits["test"].bytes_per_token == pytest.approx(2 / 3)
    assert splits["validation"].bytes_per_token == pytest.approx(2 / 3)
    assert splits["train"].bytes_per_token == pytest.approx(7 / 8)


def test_too_little_text_says_how_much_there_is_and_is_needed(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=naming("data.domains.notes", "3 distinct documents", "30 tokens", "30 held", "5")
    ):
        write_domain("notes", [["0123456789"]] * 3, ByteTokenizer(), DataConfig(heldout_tokens=10), 4, tmp_path / "r")


def test_bpe_learns_from_no_heldout_document() -> None:
    """Every document repeats a word of its own: a merge learnt from it would make that word one token."""
    rng = random.Random(1)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=12)) for _ in range(200)]
    head = [f"{word} " * 10 for word in words]
    tokenizer = learn_bpe({"text": [[text] for text in head]}, vocab_size=4096, heldout_tokens=500, length=10**6)
    lengths = [len(tokenizer.encode([word])[0]) - 1 for word in words]
    taken = 0
    for _ in range(3):  # the documents that the held-out splits take
        tokens = 0
        while tokens < 500:
            tokens += len(tokenizer.encode([head[taken]])[0])
            taken += 1
    assert 9 <= taken < 100
    assert min(lengths[:taken]) >= 4
    assert max(lengths[150:]) == 1  # what even the first tokenizer left to training is learnt


def test_bpe_learns_from_no_group_that_is_partly_held_out() -> None:
    words = ["abcdefgh", "ijklmnop", "qrstuvwx", "0123456789"]
    tokenizer = learn_bpe(
        {"text": [[f"{word} " * 10] * 50 for word in words]}, vocab_size=400, heldout_tokens=100, length=10**6
    )
    assert [len(tokenizer.encode([word])[0]) - 1 for word in words] == [8, 8, 8, 1]


def test_a_domain_of_long_groups_does_not_take_the_whole_vocabulary() -> None:
    rng = random.Random(2)
    words = ["".join(rng.choices("abcdefghijklm", k=8)) for _ in range(400)]
    long = [[" ".join(rng.choices(words, k=200)) for _ in range(60)] for _ in range(8)]
    short = [[f"nopqrstuvwxyz {n}"] for n in range(400)]
    heads = {"long": long, "short": short}
    tokenizer = learn_bpe(heads, vocab_size=320, heldout_tokens=100, length=3000)
    assert len(tokenizer.encode(["nopqrstuvwxyz"])[0]) == 2  # one token, and end of text


def test_bpe_of_too_little_text_is_still_a_tokenizer() -> None:
    tokenizer = learn_bpe({"text": [["ab"], ["cd"]]}, vocab_size=300, heldout_tokens=100, length=10**6)
    assert tokenizer.vocab_size == 257
    assert tokenizer.decode(tokenizer.encode(["abé"])[0]) == "abé"
