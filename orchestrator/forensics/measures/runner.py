"""The probe's inputs: a checkpoint's model, ready to run, and text in its own tokens."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from models.transformer import Decoder
from orchestrator.common.errors import UserError
from orchestrator.config.schema import TokenizerKind
from orchestrator.forensics.architecture.description import is_ours
from orchestrator.forensics.weights.adapters import CONFIG, is_adapter
from orchestrator.forensics.weights.files import GGUF, USUAL
from orchestrator.storage import checkpoint

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from orchestrator.data.tokenizer import Tokenizer

# Without any of these, transformers makes an empty tokenizer.
TOKENIZER_FILES = ("tokenizer*", "vocab*", "*.model", "*.tiktoken")
KNOWN = "a probe needs a config.json with a model_type that transformers knows; weights are read without"
UNUSED = "pooler."  # parameters after an encoder's last layer, which are often not saved


def refuse_another_model(source: Path) -> None:
    """Raise `UserError` for weights other than those that a probe runs: two models would make one reading."""
    if is_adapter(source):
        raise UserError(
            f"{source} is an adapter, and a probe runs a model: merge it (merge_and_unload), or leave it out."
        )
    directory = source if source.is_dir() else source.parent
    if (directory / CONFIG).is_file():
        raise UserError(
            f"{source} cannot be probed beside an adapter ({CONFIG}), which transformers would run with it: "
            "put one of them into a directory of its own, or read the weights without a probe."
        )
    runs = next((name for name in USUAL if (directory / name).is_file()), None)
    packed = next(directory.glob(f"*{GGUF}"), None) if source.is_dir() and runs is None else source
    if packed is not None and packed.suffix == GGUF:
        raise UserError(
            f"{packed} cannot be probed, since a probe runs what save_pretrained writes: give the directory of the "
            "model that it was converted from, or read it without a probe."
        )
    if source.is_file() and source.name != runs:
        raise UserError(
            f"{source} cannot be probed, since a probe runs {runs or 'what save_pretrained writes'} in its directory: "
            "put it there under that name, or read it without a probe."
        )


def why_not(source: Path) -> str | None:
    """The sentence that refuses a probe of a checkpoint that no text or tokenizer could cure; None for others."""
    directory = source if source.is_dir() else source.parent
    try:
        refuse_another_model(source)
        if not is_ours(directory):
            config = json.loads(_described(directory).read_text())
            if not (config.get("model_type") or config.get("architectures")):  # a description that a user wrote
                return f"{directory} cannot be run, since its config.json names no model_type: {KNOWN}."
            _refuse_other_shapes(directory, config.get("model_type"), not config.get("is_encoder_decoder"))
    except UserError as error:
        return str(error)
    except (OSError, ValueError, RecursionError):  # reading the weights says so
        return None
    return None


def runnable(source: Path, head: bool = False) -> nn.Module:
    """The model of a checkpoint directory, ours or transformers', in fp32 on the CPU, in evaluation mode.

    A transformers model has no head, unless it is asked for, and eager attention, which returns its weights. Nothing
    is fetched, and no remote code or pickle is run. Raises `UserError` where it cannot be loaded completely.
    """
    if is_ours(source):
        return checkpoint.load_decoder(source).float()
    config = _config(source)
    from transformers import AutoModel, AutoModelForCausalLM  # seconds to import

    from models.hf import LayeredDecoderConfig

    loader: Any = AutoModelForCausalLM if head or isinstance(config, LayeredDecoderConfig) else AutoModel
    with _loading(f"{source} cannot be run", "save it whole with save_pretrained, or read it without a probe"):
        model, report = loader.from_pretrained(
            source,
            config=config,
            dtype=torch.float32,
            attn_implementation="eager",
            local_files_only=True,
            trust_remote_code=False,
            weights_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported, and refused below
        )
    missing = {name for name in report["missing_keys"] if not name.startswith(UNUSED)}
    wrong = sorted(missing | {name for name, *_ in report["mismatched_keys"]})
    if wrong:
        raise UserError(
            f"{source} cannot be run: {len(wrong)} of the tensors that its config.json asks for are missing or of "
            f"another shape, {wrong[0]} for one; save it whole with save_pretrained, or read it without a probe."
        )
    return model.eval()


def runnable_copy(module: nn.Module | None, name: str, head: bool = False) -> nn.Module:
    """A copy of a live module, ready to run as `runnable` gives it. Raises `UserError` where there is none to run."""
    if module is None:
        raise UserError(f"A {name} holds weights and no code, so tokens cannot be run: give the module.")
    if not (isinstance(module, Decoder) or hasattr(module, "set_attn_implementation")):
        raise UserError(
            f"{name} is neither a model of transformers nor a Decoder of ours, whose layers a probe can follow: "
            "read its weights without tokens."
        )
    tensors = [*module.parameters(), *module.buffers()]
    on_cpu = {id(tensor): _copied(tensor) for tensor in tensors}  # an accelerator may have no room for a second model
    model: Any = deepcopy(module, on_cpu).eval()
    if isinstance(model, Decoder):
        return model
    from models.hf import LayeredDecoderConfig

    model.set_attn_implementation("eager")
    if head and model.get_output_embeddings() is None:
        raise UserError(
            f"{name} has no head, and so no next-token loss: give the model with it, or leave gradients out."
        )
    return model if head or isinstance(model.config, LayeredDecoderConfig) else model.base_model


def _copied(tensor: Tensor) -> Tensor:
    """A copy on the CPU, in fp32 where it is no integer; a parameter stays one."""
    copy = tensor.detach().to("cpu", torch.float32 if tensor.is_floating_point() else tensor.dtype, copy=True)
    return nn.Parameter(copy, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else copy


def tokens_of(source: Path, text: str, limit: int = 4096, length: int = 256) -> Tensor:
    """`text` in the checkpoint's own tokens, int64 [B, T]: equal rows of at most `length`, `limit` in all.

    Rows are no longer than the model's context, and each carries the special tokens that its tokenizer frames
    a text with (BOS; [CLS] and [SEP]). Fewer than B tokens at the end are dropped, so that rows are equal.
    Raises `UserError` where the checkpoint has no tokenizer, or the text gives fewer than two tokens.
    """
    before: list[int] = []
    after: list[int] = []
    if is_ours(source):
        context = checkpoint.config_of(source).train.seq_len
        ids = own_tokenizer(source).encode([text])[0][:-1]  # without the end of text
    else:
        positions = getattr(_config(source).get_text_config(), "max_position_embeddings", None) or length
        tokenizer = _pretrained_tokenizer(source)
        context = min(positions, tokenizer.model_max_length)
        before, ids, after = _framed(tokenizer, text)
    if len(ids) < 2:
        raise UserError(f"The text gives {len(ids)} token(s), and the measures need two or more: give a longer text.")
    length = min(length, context, limit)
    room = max(2, length - len(before) - len(after))  # of a row
    ids = ids[: limit // length * room]
    rows = -(-len(ids) // room)
    width = len(ids) // rows
    return torch.tensor([[*before, *ids[row * width : (row + 1) * width], *after] for row in range(rows)])


def special_tokens(source: Path) -> frozenset[int]:
    """Ids that no text contains, like BOS or end-of-text; empty where the checkpoint has no tokenizer."""
    try:
        if is_ours(source):
            return frozenset(own_tokenizer(source).encode([""])[0])  # end of text
        return frozenset(_pretrained_tokenizer(source).all_special_ids)
    except UserError:  # tokens can be run without knowing which are special
        return frozenset()


def own_tokenizer(source: Path) -> Tokenizer:
    """The tokenizer that one of our checkpoints was trained with. `UserError` where its data has changed."""
    from orchestrator.data import prepare  # imports datasets, which reading weights does not need

    config = checkpoint.config_of(source)
    corpus = prepare(config.data, config.model.vocab_size, config.train.seq_len)
    if config.data.tokenizer.kind == TokenizerKind.bpe:  # learnt from the corpus: other data, other tokens
        corpus.check_digest(checkpoint.read_state(source).get("data", ""), source)
    return corpus.tokenizer


def _pretrained_tokenizer(source: Path) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer  # seconds to import

    if not any(path for pattern in TOKENIZER_FILES for path in source.glob(pattern)):
        raise UserError(
            f"{source} holds no tokenizer, so that text cannot be put into its tokens: "
            "save the model's tokenizer beside its weights."
        )
    with _loading(f"The tokenizer in {source} cannot be loaded", "save it again with save_pretrained"):
        return AutoTokenizer.from_pretrained(str(source), local_files_only=True, trust_remote_code=False)


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


def _config(source: Path) -> Any:
    """The configuration of a model of transformers. `UserError` where there is none that can be run."""
    _described(source)
    from transformers import AutoConfig  # seconds to import

    import models.hf  # noqa: F401  # registers our own model type

    with _loading(f"{source} cannot be run", KNOWN):
        config = AutoConfig.from_pretrained(source, local_files_only=True, trust_remote_code=False)
    text = config.get_text_config()
    is_stack = hasattr(text, "vocab_size") and hasattr(text, "num_hidden_layers")
    _refuse_other_shapes(source, config.model_type, is_stack and not config.is_encoder_decoder)
    return config


def _described(source: Path) -> Path:
    """The directory's config.json. `UserError` where there is none."""
    if not (path := source / "config.json").is_file():
        raise UserError(
            f"{source} cannot be run without a config.json: a probe needs the directory that save_pretrained writes, "
            "or a checkpoint of ours."
        )
    return path


def _refuse_other_shapes(source: Path, name: str, is_stack: bool) -> None:
    """Raise `UserError`, naming the model's type, for what is no one stack of layers over a vocabulary."""
    if not is_stack:
        raise UserError(
            f"{source} ({name}) is not one stack of layers over a vocabulary, which is what a probe "
            "follows: read its weights without a probe."
        )


@contextmanager
def _loading(failed: str, cure: str) -> Iterator[None]:
    """Silence transformers in the block, and turn any error in it into a `UserError`: `failed (error): cure.`"""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    except Exception as error:  # files, formats, shapes, unknown types: for the user to mend
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{failed} ({first_line.split('. ')[0].rstrip('.:')}): {cure}.") from error
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
