"""Tokenizers: nothing lost, nothing smuggled in, and saved ones are the same."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Model
from tokenizers import models, pre_tokenizers
from transformers import AutoTokenizer, Gemma2Config, LlamaConfig, PreTrainedTokenizerFast

from orchestrator.common.errors import UserError
from orchestrator.config.schema import TokenizerConfig, TokenizerKind
from orchestrator.data.tokenizer import (
    END_OF_TEXT,
    ByteTokenizer,
    PretrainedTokenizer,
    check_size,
    load_pretrained,
    train_bpe,
)
from tests.naming import naming

TEXTS = ["The cat sat on the mat, the cat sat.\n" * 20, "def cat(mat):\n    return mat  # the cat\n" * 20]
BYTES = ByteTokenizer()
HOSTILE = [
    "",
    " ",
    "\n\n\t ",
    "naïve 日本語 🎈",
    "\x00\x7f",
    f"a {END_OF_TEXT} b",
    END_OF_TEXT,
    "  two  spaces , here .",
]


@pytest.fixture(scope="module")
def bpe() -> PretrainedTokenizer:
    return train_bpe(TEXTS, 280)


def words(folder: Path, eos: str | None = "[END]") -> Path:
    """A word-level tokenizer as anybody may have saved one."""
    model = Model(models.WordLevel({"[UNK]": 0, "[END]": 1, "the": 2, "cat": 3, "sat": 4}, unk_token="[UNK]"))
    model.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=model, eos_token=eos, unk_token="[UNK]").save_pretrained(folder)
    return folder


@given(st.text())
def test_bytes_round_trip(text: str) -> None:
    (ids,) = ByteTokenizer().encode([text])
    assert ids == [*text.encode(), 256]
    assert ByteTokenizer().decode(ids) == text


def test_bytes_survive_what_utf8_cannot_hold() -> None:
    assert ByteTokenizer().encode(["a\ud800b"]) == [[*b"a?b", 256]]
    assert ByteTokenizer().decode([104, 0xFF, 256, 105]) == "h�i"


@pytest.mark.parametrize("text", [*TEXTS, *HOSTILE])
def test_bpe_round_trip(bpe: PretrainedTokenizer, text: str) -> None:
    (ids,) = bpe.encode([text])
    assert ids[-1] == bpe.end_of_text
    assert bpe.end_of_text not in ids[:-1]  # no text can end a document
    assert max(ids) < bpe.vocab_size
    assert bpe.decode(ids) == text


def test_bpe_compresses_and_keeps_its_size(bpe: PretrainedTokenizer) -> None:
    assert bpe.vocab_size == 280
    assert len(bpe.encode(TEXTS)[0]) < len(TEXTS[0]) / 3


def test_bpe_is_the_same_every_time_and_after_saving(bpe: PretrainedTokenizer, tmp_path: Path) -> None:
    bpe.save(tmp_path)
    loaded = load_pretrained(tmp_path)
    assert loaded.vocab_size == bpe.vocab_size
    for other in (loaded, train_bpe(TEXTS, 280)):
        assert other.encode(TEXTS + HOSTILE) == bpe.encode(TEXTS + HOSTILE)


def test_a_foreign_tokenizer_is_used_as_it_is(tmp_path: Path) -> None:
    tokenizer = load_pretrained(words(tmp_path / "words"))
    assert tokenizer.vocab_size == 5
    assert tokenizer.encode(["the cat sat", "", "sat dog"]) == [[2, 3, 4, 1], [1], [4, 0, 1]]
    assert tokenizer.decode([2, 3, 1, 4]) == "the cat sat"
    tokenizer.save(tmp_path / "copy")
    assert load_pretrained(tmp_path / "copy").encode(["the cat"]) == [[2, 3, 1]]


def test_no_end_of_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=naming(tmp_path, "end-of-text")):
        load_pretrained(words(tmp_path, eos=None))


def test_no_tokenizer_is_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=naming(f"data.tokenizer.path={tmp_path}", "loaded")) as caught:
        load_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_larger_than_the_model_is_refused() -> None:
    check_size(264, 264, TokenizerConfig())
    with pytest.raises(UserError, match=naming("bpe", "4096", "model.vocab_size=264", "data.tokenizer.vocab_size")):
        check_size(4096, 264, TokenizerConfig(kind=TokenizerKind.bpe))


@given(st.text())
def test_the_bytes_of_transformers_are_ours(text: str) -> None:
    tokenizer = BYTES.pretrained()
    text = text.encode(errors="replace").decode()  # lone surrogates, which neither can encode
    ids = tokenizer(text, split_special_tokens=True)["input_ids"]
    assert [*ids, tokenizer.eos_token_id] == BYTES.encode([text])[0] == [*text.encode(), 256]
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("kind", ["byte", "bpe"])
def test_a_tokenizer_saved_beside_a_model_of_any_type_gives_the_same_ids(
    kind: str, bpe: PretrainedTokenizer, tmp_path: Path
) -> None:
    ours = BYTES if kind == "byte" else bpe
    ours.pretrained().save_pretrained(tmp_path)
    for config in (LlamaConfig(), Gemma2Config()):  # of which AutoTokenizer has classes of its own
        config.save_pretrained(tmp_path)
        loaded = AutoTokenizer.from_pretrained(tmp_path)
        assert len(loaded) == ours.vocab_size
        for text in (*TEXTS, *HOSTILE):
            assert [*loaded(text, split_special_tokens=True)["input_ids"], loaded.eos_token_id] == ours.encode([text])[
                0
            ]
    broken = [255, 0x98, 97, 0xE2, 0x98]
    assert kind == "bpe" or loaded.decode(broken) == ours.decode(broken)
