"""Text ↔ token ids. Every encoded document ends with the tokenizer's end-of-text token."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from orchestrator.common.errors import UserError
from orchestrator.config.schema import TokenizerConfig, TokenizerKind
from orchestrator.data.sources import reason

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

END_OF_TEXT = "<|endoftext|>"


class Tokenizer(Protocol):
    vocab_size: int  # ids are below this

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """One list of ids per text, ending with end-of-text. No text can spell a special token."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text, without end-of-text tokens."""

    def save(self, folder: Path) -> None:
        """Write to `folder` what `load_pretrained` reads."""

    def pretrained(self) -> PreTrainedTokenizerBase:
        """The tokenizer of `transformers` that gives the same ids."""


class ByteTokenizer:
    """The 256 bytes of UTF-8, and 256 for end-of-text."""

    vocab_size = 257

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [[*text.encode(errors="replace"), 256] for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(i for i in ids if i < 256).decode(errors="replace")

    def save(self, folder: Path) -> None:
        """Nothing to save: every ByteTokenizer is the same."""

    def pretrained(self) -> PreTrainedTokenizerBase:
        """A byte-level BPE without merges."""
        from tokenizers import Tokenizer as Model
        from tokenizers import decoders, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        names = set(pre_tokenizers.ByteLevel.alphabet())  # GPT-2's letter for each byte: itself where it is printable
        others = iter(sorted(name for name in names if ord(name) > 255))
        model = Model(models.BPE({chr(i) if chr(i) in names else next(others): i for i in range(256)}, []))
        model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        model.decoder = decoders.ByteLevel()
        return PreTrainedTokenizerFast(tokenizer_object=model, eos_token=END_OF_TEXT)  # gets the next id, 256


class PretrainedTokenizer:
    """A tokenizer of `transformers`; our BPE is one."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.end_of_text = tokenizer.eos_token_id
        self.vocab_size = len(tokenizer)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        encoded = self.tokenizer(
            [text.encode(errors="replace").decode() for text in texts],
            add_special_tokens=False,
            split_special_tokens=True,  # "<|endoftext|>" inside a document is text
            verbose=False,
        )
        return [[*ids, self.end_of_text] for ids in encoded["input_ids"]]

    def decode(self, ids: Sequence[int]) -> str:
        kept = [i for i in ids if i != self.end_of_text]
        return str(self.tokenizer.decode(kept, clean_up_tokenization_spaces=False))

    def save(self, folder: Path) -> None:
        self.tokenizer.save_pretrained(folder)

    def pretrained(self) -> PreTrainedTokenizerBase:
        return self.tokenizer


def given(config: TokenizerConfig) -> Tokenizer | None:
    """The tokenizer that the configuration names; None for a BPE, which is learnt from the data."""
    if config.kind == TokenizerKind.byte:
        return ByteTokenizer()
    if config.kind == TokenizerKind.hf:
        assert config.path is not None
        return load_pretrained(config.path)
    return None


def load_pretrained(path: str | Path) -> PretrainedTokenizer:
    """A tokenizer of `transformers` by name or folder. Raises `UserError` if it is missing or has no eos token."""
    from transformers import AutoTokenizer  # seconds to import, and the byte tokenizer needs none of it

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(path), trust_remote_code=False)
    except Exception as error:  # network, names, formats
        raise UserError(
            f"data.tokenizer.path={path} cannot be loaded ({reason(error)}): "
            "give a folder that holds a saved tokenizer, or the name of a model that can be reached."
        ) from error
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"data.tokenizer.path={path} has no end-of-text token (eos_token), which separates documents: "
            "add one and save it again, or choose another tokenizer."
        )
    return PretrainedTokenizer(tokenizer)


def train_bpe(texts: Iterable[str], vocab_size: int) -> PretrainedTokenizer:
    """A byte-level BPE of at most `vocab_size` tokens: end-of-text (id 0), 256 bytes, learnt merges."""
    from tokenizers import Tokenizer as Model
    from tokenizers import decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    model = Model(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    model.train_from_iterator(texts, trainer)
    return PretrainedTokenizer(PreTrainedTokenizerFast(tokenizer_object=model, eos_token=END_OF_TEXT))


def check_size(size: int, vocab_size: int, config: TokenizerConfig) -> None:
    """Raise `UserError` where the tokenizer has more ids than the model has embeddings."""
    if size > vocab_size:
        cure = " or lower data.tokenizer.vocab_size" if config.kind == TokenizerKind.bpe else ""
        raise UserError(
            f"The {config.kind} tokenizer has {size} tokens and model.vocab_size={vocab_size} is too small: "
            f"set model.vocab_size to at least {size}{cure}."
        )
