"""The probe runs models and tokens from directories as users have them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn

from models.hf import LayeredDecoderForCausalLM, to_huggingface
from models.spec import DecoderSpec, LayerShape
from models.transformer import Decoder, init_weights
from orchestrator.common.errors import UserError
from orchestrator.config import load, schema
from orchestrator.config.schema import TokenizerKind
from orchestrator.forensics.measures.encoding import special_tokens, tokens_of
from orchestrator.forensics.measures.probe import probe
from orchestrator.forensics.measures.runner import runnable, why_not
from orchestrator.storage import checkpoint
from tests.naming import names, naming
from tests.orchestrator.forensics.payload import Payload

WORDS = ["[UNK]", "<s>", "</s>", "a", "b", "c", "d"]
SIZES = {
    "vocab_size": 16, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "max_position_embeddings": 40,
}  # fmt: skip


def save_tokenizer(directory: Path, single: str = "<s> $A") -> None:
    """One id per word, framed as `single` says."""
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(single=single, special_tokens=[("<s>", 1), ("</s>", 2)])
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="</s>", unk_token="[UNK]"
    ).save_pretrained(directory)


def save_llama(directory: Path) -> nn.Module:
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES))
    model.save_pretrained(directory)
    return model


def rewrite(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_saved_model_is_loaded_in_fp32_with_readable_attention(precision: torch.dtype, tmp_path: Path) -> None:
    save_llama(tmp_path).to(precision).save_pretrained(tmp_path)
    model = runnable(tmp_path)
    assert not model.training
    saved = load_file(tmp_path / "model.safetensors")
    for name, parameter in model.named_parameters():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, saved[f"model.{name}"].float())
    assert all(layer["sink_mass"] is not None for layer in probe(model, torch.tensor([[1, 2, 3]])))


def test_an_encoder_that_was_saved_without_its_pooler(tmp_path: Path) -> None:
    transformers.BertForMaskedLM(transformers.BertConfig(**SIZES)).save_pretrained(tmp_path)
    assert len(probe(runnable(tmp_path), torch.tensor([[1, 2, 3]]))) == 2


def test_our_decoder_under_its_own_model_type(tmp_path: Path) -> None:
    shapes = (LayerShape(8, 2, 1, 4, 16), LayerShape(16, 2, 2, 4, 16))
    ours = Decoder(DecoderSpec(shapes, 16))
    init_weights(ours, 0)
    to_huggingface(ours).save_pretrained(tmp_path)
    loaded = runnable(tmp_path)
    assert isinstance(loaded, LayeredDecoderForCausalLM)
    tokens = torch.tensor([[1, 2, 1, 3]])
    assert probe(loaded, tokens) == probe(ours, tokens)


def _remove_config(directory: Path) -> None:
    (directory / "config.json").unlink()


def _break_config(directory: Path) -> None:
    (directory / "config.json").write_text("{")


def _remote_code(directory: Path) -> None:
    (directory / "evil.py").write_text("open('ran', 'w')")
    rewrite(directory / "config.json", model_type="evil", auto_map={"AutoConfig": "evil.C", "AutoModel": "evil.M"})


def _truncate(directory: Path) -> None:
    os.truncate(directory / "model.safetensors", 3000)


def _lose_a_tensor(directory: Path) -> None:
    tensors = load_file(directory / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})


def _widen(directory: Path) -> None:
    rewrite(directory / "config.json", intermediate_size=32)


def _encoder_decoder(directory: Path) -> None:
    transformers.T5Config(d_model=8, num_layers=1).save_pretrained(directory)


def _vision(directory: Path) -> None:
    transformers.ViTConfig().save_pretrained(directory)


def _pickle(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    torch.save({"model.norm.weight": Payload("ran")}, directory / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (_remove_config, ["config.json"]),
        (_break_config, ["config.json", "JSON"]),
        (_remote_code, ["model_type"]),
        (_truncate, ["deserializing header"]),  # safetensors' own words
        (_lose_a_tensor, ["1 of the tensors", "missing", "layers.1.mlp.up_proj.weight"]),
        (_widen, ["6 of the tensors", "shape", "layers.0.mlp.down_proj.weight"]),
        (_encoder_decoder, ["t5", "one stack"]),
        (_vision, ["vit", "one stack"]),
        (_pickle, ["Weights only load failed"]),
    ],
)
def test_what_cannot_be_run_is_refused_in_one_sentence(
    spoil: Callable[[Path], None], named: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "model"
    save_llama(model)
    spoil(model)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=naming(model, *named)) as refusal:
        runnable(model)
    assert str(refusal.value).isprintable()  # one line, no colours
    assert not list(tmp_path.rglob("ran"))


def test_nothing_but_the_result_reaches_the_terminal(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    save_llama(tmp_path)
    save_tokenizer(tmp_path)
    capfd.readouterr()
    probe(runnable(tmp_path), tokens_of(tmp_path, "a b"))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("single", "words", "limit", "length", "expected"),
    [
        ("<s> $A", "a b c", 4096, 256, [[1, 3, 4, 5]]),
        ("<s> $A </s>", "a b c d", 4096, 4, [[1, 3, 4, 2], [1, 5, 6, 2]]),
        ("$A", "a b c d", 4096, 3, [[3, 4], [5, 6]]),  # equal rows, not 3 and 1
        ("$A", "a b c d a", 4096, 3, [[3, 4], [5, 6]]),
        ("$A", "a b c d a", 2, 256, [[3, 4]]),
        ("$A", "a b c d a", 4, 2, [[3, 4], [5, 6]]),
        ("<s> $A", "a <s>", 4096, 256, [[1, 3, 0, 0, 0]]),  # text spells no special token
        ("<s> $A", "a \ud800", 4096, 256, [[1, 3, 0]]),
    ],
)
def test_text_in_rows_of_the_models_own_tokens(
    single: str, words: str, limit: int, length: int, expected: list[list[int]], tmp_path: Path
) -> None:
    transformers.LlamaConfig(**SIZES).save_pretrained(tmp_path)
    save_tokenizer(tmp_path, single)
    assert tokens_of(tmp_path, words, limit, length).tolist() == expected
    assert special_tokens(tmp_path) == {0, 1, 2}


def test_rows_are_no_longer_than_the_models_context(tmp_path: Path) -> None:
    save_llama(tmp_path)
    save_tokenizer(tmp_path)
    tokens = tokens_of(tmp_path, "a b c d " * 100)
    assert tokens.shape == (11, 37)  # ceil(400 / 39 places) rows of 400 // 11 words behind BOS
    assert len(probe(runnable(tmp_path), tokens, special_tokens(tmp_path))) == 2


@pytest.mark.parametrize("kind", ["Llama", "GPT2", "Bert"])
def test_a_model_without_a_tokenizer(kind: str, tmp_path: Path) -> None:
    getattr(transformers, f"{kind}Config")().save_pretrained(tmp_path)
    with pytest.raises(UserError, match=naming(tmp_path, "no tokenizer")):
        tokens_of(tmp_path, "some text")
    assert special_tokens(tmp_path) == frozenset()


def test_a_missing_description_is_said_before_a_missing_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=naming(tmp_path, "config.json")):
        tokens_of(tmp_path, "some text")


def test_the_reason_why_no_tokens_can_be_run(tmp_path: Path) -> None:
    assert names(why_not(tmp_path), tmp_path, "config.json")
    (tmp_path / "config.json").write_text('{"num_attention_heads": 2}')
    assert names(why_not(tmp_path), tmp_path, "no model_type")
    transformers.LlamaConfig(**SIZES).save_pretrained(tmp_path)
    assert why_not(tmp_path) is None
    (tmp_path / "part.bin").touch()
    assert names(why_not(tmp_path / "part.bin"), tmp_path / "part.bin")
    (tmp_path / "part.bin").unlink()
    transformers.T5Config(d_model=8, num_layers=1).save_pretrained(tmp_path)
    assert names(why_not(tmp_path), "t5", "one stack")
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    assert why_not(tmp_path) is None  # the only weights there, whatever lies beside them


def test_a_tokenizer_that_is_broken(tmp_path: Path) -> None:
    transformers.LlamaConfig(**SIZES).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match=naming(tmp_path, "tokenizer")):
        tokens_of(tmp_path, "some text")


@pytest.mark.parametrize(("text", "count"), [("", 0), ("a", 1)])
def test_too_short_a_text(text: str, count: int, tmp_path: Path) -> None:
    transformers.LlamaConfig(**SIZES).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    with pytest.raises(UserError, match=naming(f"{count} token(s)")):
        tokens_of(tmp_path, text)


@pytest.fixture
def cell(tmp_path: Path) -> Callable[[TokenizerKind], Path]:
    """A checkpoint of ours in a cell whose data can be prepared."""

    def write(kind: TokenizerKind) -> Path:
        text = tmp_path / "text.txt"
        text.write_text("\n".join(f"line {i} {i * i}" for i in range(800)))
        config = schema.Config(
            name="test",
            model=schema.ModelConfig(layers=2, width=16, head_dim=4, vocab_size=300),
            data=schema.DataConfig(
                {"text": schema.DomainConfig(schema.Source.files, path=str(text))},
                heldout_tokens=256,
                cache_dir=str(tmp_path / "cache"),
                tokenizer=schema.TokenizerConfig(kind, vocab_size=300),
            ),
            train=schema.TrainConfig(seq_len=32),
        )
        directory = tmp_path / "test" / "main" / "seed=0"
        decoder = Decoder(DecoderSpec((LayerShape(16, 4, 2, 4, 24),) * 2, 300))
        init_weights(decoder, 0)
        state = {"schema": 1, "step": 4, "spec": decoder.spec.to_dict(), "data": "of another corpus"}
        path = checkpoint.save(directory / "checkpoints", 4, {"model": dict(decoder.named_parameters())}, state)
        (directory / "config.yaml").write_text(load.to_yaml(config))
        return path

    return write


def test_a_cell_from_text_to_measures(cell: Callable[[TokenizerKind], Path]) -> None:
    source = cell(TokenizerKind.byte)
    text = "def f(x):\n    return x\n" * 4
    tokens = tokens_of(source, text)
    assert tokens.shape == (3, 30)  # 92 bytes in rows of at most train.seq_len=32
    assert bytes(tokens.flatten().tolist()).decode() == text[:90]
    assert special_tokens(source) == {256}
    assert all(None not in layer.values() for layer in probe(runnable(source), tokens))


def test_a_tokenizer_that_was_not_learnt_outlives_its_data(
    cell: Callable[[TokenizerKind], Path], tmp_path: Path
) -> None:
    source = cell(TokenizerKind.byte)
    (tmp_path / "text.txt").unlink()
    assert tokens_of(source, "abc").tolist() == [[97, 98, 99]]


def test_a_tokenizer_learnt_from_other_data_is_refused(cell: Callable[[TokenizerKind], Path]) -> None:
    source = cell(TokenizerKind.bpe)
    with pytest.raises(UserError, match=naming(source, "other data")):
        tokens_of(source, "line 7")
    assert special_tokens(source) == frozenset()
