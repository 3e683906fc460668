"""Text becomes documents in a model's own tokens."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import transformers

from orchestrator.common.errors import UserError
from orchestrator.config import load
from orchestrator.config.schema import DomainConfig, Source
from orchestrator.data import prepare
from orchestrator.interventions.documents import from_text, heldout
from orchestrator.storage import checkpoint
from tests.naming import naming


def of(path: object) -> DomainConfig:
    return DomainConfig(source=Source.files, path=str(path))


def test_documents_are_framed_and_cut(llama: Path, text: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(llama)
    expected = {tuple(tokenizer(json.loads(line)["text"])["input_ids"][:11]) for line in text.read_text().split("\n")}
    found = from_text(llama, {"notes": of(text)}, 20, 11)
    assert {document.tokens for document in found} == {tokens for tokens in expected if len(tokens) >= 8}
    assert {document.domain for document in found} == {"notes"}
    assert len(from_text(llama, {"notes": of(text)}, 2, 11)) == 2


def test_heldout_rows_are_spread_over_validation(cell: Path) -> None:
    config = load.from_file(cell / "config.yaml")
    corpus = prepare(config.data, 264, 16)
    found = heldout(checkpoint.find(cell), 3)
    splits = [corpus.heldout(domain, "validation") for domain in ("words", "numbers")]
    rows = [split[row].tolist() for split in splits for row in (0, (len(split) - 1) // 2, len(split) - 1)]
    assert [list(document.tokens) for document in found] == rows
    assert [document.domain for document in found] == ["words"] * 3 + ["numbers"] * 3


def test_text_for_a_checkpoint_of_ours_is_in_its_bytes(cell: Path, text: Path) -> None:
    found = from_text(checkpoint.find(cell), {"notes": of(text)}, 20, 16)
    assert {bytes(document.tokens).decode() for document in found} == {
        json.loads(line)["text"][:16] for line in text.read_text().split("\n")
    }


def test_text_that_gives_no_document(llama: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("a b")
    with pytest.raises(UserError, match=naming(short, "8 tokens")):
        from_text(llama, {"text": of(short)}, 4, 32)


def test_documents_longer_than_the_context(llama: Path, text: Path) -> None:
    with pytest.raises(UserError, match=naming("41", "40")):
        from_text(llama, {"text": of(text)}, 4, 41)


def test_a_source_without_a_tokenizer(llama: Path, text: Path) -> None:
    for file in llama.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(UserError, match=naming(llama, "tokenizer")):
        from_text(llama, {"text": of(text)}, 4, 32)


def test_changed_training_data_is_refused_unless_its_rows_are_kept(cell: Path) -> None:
    """A changed corpus deals its files anew: what is held out now may have been trained on."""
    before = heldout(checkpoint.find(cell), 3)
    data = load.from_file(cell / "config.yaml").data
    words = Path(data.domains["words"].path or "")
    words.write_text(words.read_text() + "\none line more")
    assert heldout(checkpoint.find(cell), 3) == before
    shutil.rmtree(data.cache_dir)
    with pytest.raises(UserError, match=naming("step_00000007", "other data")):
        heldout(checkpoint.find(cell), 3)
