"""Text in the tokens of a checkpoint, and back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from orchestrator.common.errors import UserError
from orchestrator.data import tokenizer
from orchestrator.forensics.architecture.description import is_ours
from orchestrator.forensics.measures.runner import configuration, loading, named, parsed_once
from orchestrator.forensics.weights.files import GGUF
from orchestrator.storage import checkpoint

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from orchestrator.data.tokenizer import Tokenizer

# Without any of these, transformers makes an empty tokenizer.
TOKENIZER_FILES = ("tokenizer*", "vocab*", "*.model", "*.tiktoken")
LONGEST_ROW = 2**20  # tokens, of a model whose positions nothing limits


def tokens_of(source: Path, text: str, limit: int = 4096, length: int = 256) -> Tensor:
    """`text` in the checkpoint's own tokens, int64 [B, T]: equal rows of at most `length`, `limit` in all.

    Rows are no longer than the model's context, and each carries the special tokens that its tokenizer frames
    a text with (BOS; [CLS] and [SEP]). Fewer than B tokens at the end are dropped, so that rows are equal.
    Raises `UserError` where the checkpoint has no tokenizer, or the text gives fewer than two tokens.
    """
    encoding = Encoding(source)
    before, ids, after = encoding.framed(text)
    if len(ids) < 2:
        raise UserError(f"The text gives {len(ids)} token(s), and the measures need two or more: give a longer text.")
    length = min(length, encoding.context, limit)
    room = max(2, length - len(before) - len(after))  # of a row
    ids = ids[: limit // length * room]
    rows = -(-len(ids) // room)
    width = len(ids) // rows
    return torch.tensor([[*before, *ids[row * width : (row + 1) * width], *after] for row in range(rows)])


class Encoding:
    """Puts text into the tokens of a checkpoint, and back."""

    def __init__(self, source: Path) -> None:
        """Raises `UserError` where the checkpoint has no tokenizer, or ours was learnt from data that has changed."""
        self._source = source
        self._own = is_ours(source)
        self._tokenizer: Any
        if self._own:
            self.context = checkpoint.config_of(source).train.seq_len  # most tokens of a row
            self._tokenizer = own_tokenizer(source)
        else:
            positions = getattr(configuration(source).get_text_config(), "max_position_embeddings", None)
            self._tokenizer = pretrained_tokenizer(source)
            self.context = min(positions or LONGEST_ROW, self._tokenizer.model_max_length)

    def framed(self, text: str) -> tuple[list[int], list[int], list[int]]:
        """The special tokens before, the text's own ids, the special tokens after. No text can spell a special one."""
        if self._own:
            return [], self._tokenizer.encode([text])[0][:-1], []  # without the end of text
        return _framed(self._tokenizer, text)

    def row(self, text: str, length: int) -> list[int]:
        """The framed text, whose own ids are cut so that it has at most `length` tokens."""
        before, ids, after = self.framed(text)
        return [*before, *ids[: max(0, length - len(before) - len(after))], *after]

    def chat(self, text: str) -> list[int]:
        """`text` as a user's message in the tokenizer's own chat template, up to where the answer begins.

        Raises `UserError` where the tokenizer has no template.
        """
        if self._own or not self._tokenizer.chat_template:
            raise UserError(f"{self._source} has no chat template: leave --chat out.")
        message = [{"role": "user", "content": text.encode(errors="replace").decode()}]
        with loading(f"The chat template of {self._source} cannot be used", "leave --chat out"):
            return list(self._tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=False))

    def text(self, token: int) -> str:
        """The token as text; `#<id>` where it has none, like end-of-text."""
        text = self._tokenizer.decode([token])
        return f"#{token}" if text in ("", "\N{REPLACEMENT CHARACTER}") else text


def special_tokens(source: Path) -> frozenset[int]:
    """Ids that no text contains, like BOS or end-of-text; empty where the checkpoint has no tokenizer."""
    try:
        if is_ours(source):
            return frozenset(own_tokenizer(source).encode([""])[0])  # end of text
        return frozenset(pretrained_tokenizer(source).all_special_ids)
    except UserError:  # tokens can be run without knowing which are special
        return frozenset()


def own_tokenizer(source: Path) -> Tokenizer:
    """The tokenizer that one of our checkpoints was trained with.

    Raises `UserError` where it cannot be loaded; for a BPE, where the data that it was learnt from has changed.
    """
    config = checkpoint.config_of(source)
    if (given := tokenizer.given(config.data.tokenizer)) is not None:
        return given
    from orchestrator.data import prepare  # imports datasets, which reading weights does not need

    digest = checkpoint.read_state(source).get("data", "")
    corpus = prepare(config.data, config.model.vocab_size, config.train.seq_len, digest)
    corpus.check_digest(digest, source)  # other data, other tokens
    return corpus.tokenizer


@parsed_once
def pretrained_tokenizer(source: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in a directory of transformers, or in a GGUF file. Raises `UserError` where there is none."""
    from transformers import AutoTokenizer  # seconds to import

    if source.suffix != GGUF and not any(path for pattern in TOKENIZER_FILES for path in source.glob(pattern)):
        raise UserError(
            f"{source} holds no tokenizer, so that text cannot be put into its tokens: "
            "save the model's tokenizer beside its weights."
        )
    with loading(f"The tokenizer in {source} cannot be loaded", "save it again with save_pretrained"):
        return AutoTokenizer.from_pretrained(**named(source), local_files_only=True, trust_remote_code=False)


def _framed(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[list[int], list[int], list[int]]:
    """The special tokens before, the text's own ids, the special tokens after. No text can spell a special token."""
    text = text.encode(errors="replace").decode()  # lone surrogates have no bytes
    options: dict[str, Any] = {"split_special_tokens": True, "verbose": False}
    ids = tokenizer(text, add_special_tokens=False, **options)["input_ids"]
    whole = tokenizer(text, add_special_tokens=True, **options)["input_ids"]
    for start in range(len(whole) - len(ids) + 1):
        if whole[start : start + len(ids)] == ids:
            return whole[:start], ids, whole[start + len(ids) :]
    return [], ids, []
