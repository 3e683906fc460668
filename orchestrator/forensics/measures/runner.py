"""A checkpoint's model, ready to run: ours, what `save_pretrained` writes, or a GGUF file."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from copy import deepcopy
from functools import lru_cache, wraps
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from models.transformer import Decoder
from orchestrator.common.errors import UserError
from orchestrator.forensics.architecture.description import is_ours
from orchestrator.forensics.weights.adapters import CONFIG, is_adapter
from orchestrator.forensics.weights.files import GGUF, INDEX, USUAL
from orchestrator.forensics.weights.sources import WEIGHTS, no_tensors
from orchestrator.storage import checkpoint

KNOWN = "a probe needs a config.json with a model_type that transformers knows; weights are read without"
UNUSED = "pooler."  # parameters after an encoder's last layer, which are often not saved

T = TypeVar("T")


def place(source: Path) -> Path:
    """The directory, or the GGUF file, whose model is run for the weights at `source`.

    Raises `UserError` where that would run other weights than are read: two models would make one reading.
    """
    if is_adapter(source):
        raise UserError(
            f"{source} is an adapter, and only a whole model is run: merge it (merge_and_unload), or leave it out."
        )
    directory = source if source.is_dir() else source.parent
    if (directory / CONFIG).is_file():
        raise UserError(
            f"{source} cannot be run beside an adapter ({CONFIG}), which transformers would run with it: "
            "put one of them into a directory of its own, or read the weights without a probe."
        )
    runs = next((name for name in USUAL if (directory / name).is_file()), None)
    if source.suffix == GGUF:
        return source
    if source.is_file() and source.name != runs:
        if not source.name.endswith((*WEIGHTS, INDEX)):
            raise no_tensors(source)
        raise UserError(
            f"{source} cannot be run, since {runs or 'what save_pretrained writes'} in its directory is what runs: "
            "put it there under that name, or read it without a probe."
        )
    packed = sorted(directory.glob(f"*{GGUF}"))
    return packed[0] if runs is None and len(packed) == 1 else directory


def why_not(source: Path) -> str | None:
    """The sentence that refuses a probe of a checkpoint that no text or tokenizer could cure; None for others."""
    try:
        directory = place(source)
        if directory.suffix != GGUF and not is_ours(directory):
            config = json.loads(_described(directory).read_text(encoding="utf-8"))
            if not (config.get("model_type") or config.get("architectures")):  # a description that a user wrote
                return f"{directory} cannot be run, since its config.json names no model_type: {KNOWN}."
            _refuse_other_shapes(directory, config.get("model_type"), not config.get("is_encoder_decoder"))
    except UserError as error:
        return str(error)
    except (OSError, ValueError, RecursionError):  # reading the weights says so
        return None
    return None


def runnable(source: Path, head: bool = False) -> nn.Module:
    """The model of a directory, ours or transformers', or of a GGUF file, in fp32 on the CPU, in evaluation mode.

    A transformers model has no head, unless it is asked for, and eager attention, which returns its weights. Nothing
    is fetched, and no remote code or pickle is run. Raises `UserError` where it cannot be loaded completely.
    """
    if is_ours(source):
        return checkpoint.load_decoder(source).float()
    config = configuration(source)
    if source.suffix == GGUF:
        return _unpacked(source, config, head)
    from transformers import AutoModel, AutoModelForCausalLM  # seconds to import

    from models.hf import LayeredDecoderConfig

    loader: Any = AutoModelForCausalLM if head or isinstance(config, LayeredDecoderConfig) else AutoModel
    with loading(f"{source} cannot be run", "save it whole with save_pretrained, or read it without a probe"):
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


def _unpacked(path: Path, config: Any, head: bool) -> nn.Module:
    """The model of a GGUF file, de-quantised by transformers (whose `from_pretrained` needs accelerate for it)."""
    from transformers import AutoModelForCausalLM
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    with loading(f"{path} cannot be run", "give the directory of the model that it was converted from"):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
        with redirect_stderr(io.StringIO()):  # a progress bar that nothing else switches off
            tensors = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=model)["tensors"]
        report = model.load_state_dict(tensors, strict=False)
        model.tie_weights()
    tied = {} if not config.get_text_config().tie_word_embeddings else set(model._tied_weights_keys or ())
    if missing := sorted(set(report.missing_keys) - set(tied)):
        raise UserError(
            f"{path} cannot be run: it lacks {len(missing)} tensors of a {config.model_type}, {missing[0]} for one; "
            "give the directory of the model that it was converted from."
        )
    return (model if head else model.base_model).eval()


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


def parsed_once(parse: Callable[[Path], T]) -> Callable[[Path], T]:
    """`parse` with a cache for GGUF files, whose headers take seconds to parse; a file that changes is parsed again."""
    of_file = lru_cache(maxsize=4)(lambda source, *_: parse(source))

    @wraps(parse)
    def parsed(source: Path) -> T:
        if source.suffix != GGUF or not source.is_file():
            return parse(source)
        about = source.stat()
        return deepcopy(of_file(source, source.resolve(), about.st_mtime_ns, about.st_size))

    return parsed


@parsed_once
def configuration(source: Path) -> Any:
    """The configuration of a model of transformers. Raises `UserError` where there is none that can be run."""
    if source.suffix != GGUF:
        _described(source)
    from transformers import AutoConfig  # seconds to import

    import models.hf  # noqa: F401  # registers our own model type

    with loading(f"{source} cannot be run", KNOWN):
        config = AutoConfig.from_pretrained(**named(source), local_files_only=True, trust_remote_code=False)
    text = config.get_text_config()
    is_stack = hasattr(text, "vocab_size") and hasattr(text, "num_hidden_layers")
    _refuse_other_shapes(source, config.model_type, is_stack and not config.is_encoder_decoder)
    return config


def named(source: Path) -> dict[str, str]:
    """The arguments by which transformers finds a directory, or a GGUF file."""
    if source.suffix != GGUF:
        return {"pretrained_model_name_or_path": str(source)}
    return {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name}


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
def loading(failed: str, cure: str) -> Iterator[None]:
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
