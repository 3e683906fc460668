"""The prepared corpus: built once for each fingerprint of all that it depends on, then read from disk."""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import torch

from orchestrator.common.errors import UserError
from orchestrator.config.schema import DataConfig, TokenizerKind
from orchestrator.config.validation import LONGEST_ENTRY
from orchestrator.data import tokenizer as tokenizers
from orchestrator.data.groups import Group
from orchestrator.data.mixing import Mixture
from orchestrator.data.packing import HELDOUT, Split, learn_bpe, read_rows, write_domain
from orchestrator.data.sources import READERS, folder_identity
from orchestrator.data.tokenizer import Tokenizer
from orchestrator.storage.locks import hold

FORMAT = 4  # version of the prepared files; a new number rebuilds them
BPE_TOKENS = 2**22  # tokens of the largest text that a BPE is learnt from, per domain
DIGITS = 12  # of a domain's digest
LONGEST_TOKEN = 8  # bytes, at most, of a mean token: sizes the text that is read ahead for a BPE


def prepare(config: DataConfig, vocab_size: int, seq_len: int, digest: str | None = None) -> Corpus:
    """The corpus of a configuration, built under `cache_dir/<fingerprint>` where it does not exist yet.

    With `digest`, it is the corpus of that digest, of whatever sources, where `cache_dir` has it. Of several processes
    one builds and the others wait; a killed build is done again. Raises `UserError` for too little text, for text or a
    tokenizer that cannot be read, and for a tokenizer of more than `vocab_size` ids.
    """
    corpus = find(config, seq_len, digest) if digest else None
    if corpus is None:
        corpus = Corpus(_built(config, vocab_size, seq_len), config, seq_len)
    tokenizers.check_size(corpus.vocab_size, vocab_size, config.tokenizer)
    return corpus


def find(config: DataConfig, seq_len: int, digest: str) -> Corpus | None:
    """The corpus with this digest in `cache_dir`; None where it has none."""
    learnt = config.tokenizer.kind != TokenizerKind.byte  # else no tokenizer is kept
    wanted = (FORMAT, seq_len, config.domains.keys(), learnt)
    for meta in sorted(Path(config.cache_dir).glob("*/meta.json")):
        with suppress(OSError, ValueError, LookupError, TypeError):  # of an older format, or deleted just now
            known = json.loads(meta.read_text(encoding="utf-8"))
            kept = (meta.parent / "tokenizer").is_dir()
            if (known["format"], known["seq_len"], known["domains"].keys(), kept) == wanted:
                corpus = Corpus(meta.parent, config, seq_len)
                if corpus.digest == digest:
                    return corpus
    return None


def _built(config: DataConfig, vocab_size: int, seq_len: int) -> Path:
    """The folder of the corpus of the sources as they are now."""
    folder = Path(config.cache_dir) / check(config, vocab_size, seq_len)
    if not (folder / "meta.json").is_file():
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with hold(folder.with_suffix(".lock"), wait=True):
                if not (folder / "meta.json").is_file():
                    build(config, vocab_size, seq_len, folder)
        except OSError as error:
            raise UserError(
                f"data.cache_dir={config.cache_dir} cannot hold the prepared corpus ({error}): choose another folder."
            ) from error
    return folder


def check(config: DataConfig, vocab_size: int, seq_len: int) -> str:
    """The corpus's fingerprint, without reading any text. Raises `UserError` for missing files and bad settings."""
    for key, value in {"heldout_tokens": config.heldout_tokens, "train_tokens": config.train_tokens}.items():
        if value is not None and value < seq_len + 1:
            raise UserError(
                f"data.{key}={value} cannot fill one row of train.seq_len + 1 = {seq_len + 1} tokens: "
                f"raise data.{key} or lower train.seq_len."
            )
    for name in config.domains:
        if not name or "/" in name or "\0" in name or name in {".", ".."}:
            raise UserError(
                f"data.domains: '{name}' cannot name a folder, and each domain has one: choose another name."
            )
        if len(name.encode()) > LONGEST_ENTRY:
            raise UserError(
                f"data.domains: '{name:.40}…' has {len(name.encode())} bytes, more than a folder's name may "
                f"({LONGEST_ENTRY}): shorten it."
            )
    tokenizer = config.tokenizer
    if tokenizer.kind == TokenizerKind.byte:
        tokenizers.check_size(tokenizers.ByteTokenizer.vocab_size, vocab_size, tokenizer)
    elif tokenizer.kind == TokenizerKind.bpe:
        tokenizers.check_size(tokenizer.vocab_size, vocab_size, tokenizer)
        if tokenizer.vocab_size < 257:
            raise UserError(
                f"data.tokenizer.vocab_size={tokenizer.vocab_size} is too small for the 256 bytes and the end-of-text "
                "token that a BPE begins with: set it to at least 257."
            )
    elif not tokenizer.path:
        raise UserError("data.tokenizer.path is not set, and kind=hf needs it: give the name or folder of a tokenizer.")
    return fingerprint(config, seq_len)


def fingerprint(config: DataConfig, seq_len: int) -> str:
    """16 hex digits that change with everything that the prepared files depend on."""
    plain = asdict(config)
    del plain["cache_dir"]
    path = config.tokenizer.path
    sources = {name: READERS[domain.source].identity(name, domain) for name, domain in config.domains.items()}
    depends = {
        "format": FORMAT,
        "data": plain,
        "seq_len": seq_len,
        "sources": sources,
        "tokenizer": folder_identity(Path(path)) if path else None,
    }
    return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:16]


def build(config: DataConfig, vocab_size: int, seq_len: int, folder: Path) -> None:
    """Write the prepared files to a temporary folder, and rename it when complete. The caller holds the lock."""
    work = folder.with_suffix(".tmp")
    for leftover in (work, folder):  # of a build that was killed, or whose meta.json was deleted
        shutil.rmtree(leftover, ignore_errors=True)
    scratch = work / ".scratch"
    scratch.mkdir(parents=True)
    try:
        seen: set[bytes] = set()
        groups = {
            name: READERS[config.domains[name].source].documents(name, config.domains[name], scratch, seen)
            for name in sorted(config.domains)
        }
        tokenizer = make_tokenizer(config, groups)
        tokenizers.check_size(tokenizer.vocab_size, vocab_size, config.tokenizer)
        tokenizer.save(work / "tokenizer")
        splits = {
            name: write_domain(name, texts, tokenizer, config, seq_len, work / "rows" / name)
            for name, texts in groups.items()
        }
        shutil.rmtree(scratch)
        meta = {
            "format": FORMAT,
            "seq_len": seq_len,
            "vocab_size": tokenizer.vocab_size,
            "domains": {name: {s: asdict(of) for s, of in parts.items()} for name, parts in splits.items()},
        }
        (work / "meta.json").write_text(json.dumps(meta, indent=1))
        work.rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def make_tokenizer(config: DataConfig, groups: dict[str, Iterator[Group]]) -> Tokenizer:
    """The configured tokenizer. For a BPE, the first of `groups` are read, and put back."""
    if (given := tokenizers.given(config.tokenizer)) is not None:
        return given
    train_tokens = min(config.train_tokens or BPE_TOKENS, BPE_TOKENS)
    heads: dict[str, list[Group]] = {}
    for name, source in groups.items():
        heads[name] = []
        for budget in (*[config.heldout_tokens] * len(HELDOUT), train_tokens):  # each from its own groups
            room = LONGEST_TOKEN * budget
            for group in source:
                heads[name].append(group)
                room -= sum(map(len, group))
                if room <= 0:
                    break
        groups[name] = itertools.chain(heads[name], source)
    return learn_bpe(heads, config.tokenizer.vocab_size, config.heldout_tokens, LONGEST_TOKEN * train_tokens)


class Corpus:
    """Packed rows on disk, read on demand."""

    def __init__(self, folder: Path, config: DataConfig, seq_len: int) -> None:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        self.folder, self.config, self.seq_len = folder, config, seq_len
        self.vocab_size: int = meta["vocab_size"]
        self.splits: dict[str, dict[str, Split]] = {  # domain → train, reward, validation or test → counts
            name: {split: Split(**of) for split, of in meta["domains"][name].items()} for name in config.domains
        }
        weights = {name: domain.weight for name, domain in config.domains.items()}
        self.mixture = Mixture({name: of["train"].rows for name, of in self.splits.items()}, weights)
        self._table = cache(self._open)

    @property
    def domains(self) -> list[str]:
        return list(self.splits)

    @property
    def digest(self) -> str:
        """sha256 over the rows of every split; equal digests mean equal data on any machine."""
        parts = [f"{name}/{s}={of.digest}" for name, splits in self.splits.items() for s, of in splits.items()]
        return hashlib.sha256("\n".join(sorted(parts)).encode()).hexdigest()

    @property
    def digests(self) -> dict[str, str]:
        """Domain → the first digits of a sha256 over the rows of its splits."""
        rows = {name: " ".join(splits[s].digest for s in sorted(splits)) for name, splits in self.splits.items()}
        return {name: hashlib.sha256(of.encode()).hexdigest()[:DIGITS] for name, of in rows.items()}

    def check_digest(self, digest: str, user: Path) -> None:
        """Raise `UserError` where `user`, a checkpoint, was trained on data of another digest."""
        if digest != self.digest:
            raise UserError(
                f"{user} was trained on other data than is there now, so that tokens and held-out text may differ: "
                "restore the data it was trained on."
            )

    @cached_property
    def tokenizer(self) -> Tokenizer:
        if self.config.tokenizer.kind == TokenizerKind.byte:
            return tokenizers.ByteTokenizer()
        return tokenizers.load_pretrained(self.folder / "tokenizer")

    def heldout(self, domain: str, split: str) -> torch.Tensor:
        """All rows of a split, int64 [rows, T+1], T = seq_len."""
        return torch.from_numpy(self._rows(domain, split, slice(None)))

    def batch(self, seed: int, step: int, batch_size: int) -> torch.Tensor:
        """The training batch of a step, int64 [B, T+1]: a pure function of its arguments."""
        ids = self.mixture.row_ids(seed, step * batch_size, batch_size)
        batch = torch.empty(batch_size, self.seq_len + 1, dtype=torch.int64)
        for domain in {name for name, _ in ids}:
            places = [i for i, (name, _) in enumerate(ids) if name == domain]
            batch[places] = torch.from_numpy(self._rows(domain, "train", [ids[i][1] for i in places]))
        return batch

    def _rows(self, domain: str, split: str, which: slice | list[int]) -> np.ndarray:
        return self._table(domain, split)[which].astype(np.int64)  # [n, T+1]

    def _open(self, domain: str, split: str) -> np.ndarray:
        path = self.folder / "rows" / domain / f"{split}.bin"
        return read_rows(path, self.splits[domain][split].rows, self.seq_len, self.vocab_size)
