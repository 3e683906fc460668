"""A cell of ours, and a directory as `save_pretrained` writes it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
import transformers

from models.spec import DecoderSpec, LayerShape
from models.transformer import Decoder, init_weights
from orchestrator.config import load
from orchestrator.config.schema import (
    Config,
    DataConfig,
    DomainConfig,
    ModelConfig,
    Profile,
    Source,
    TrainConfig,
    WidthConfig,
)
from orchestrator.data import prepare
from orchestrator.storage import checkpoint
from tests.naming import names
from tests.orchestrator.forensics.measures.test_runner import save_tokenizer
from tests.orchestrator.interventions.models import SIZES, WIDTHS


def decoder_of(seed: int) -> Decoder:
    shapes = tuple(LayerShape(width=w, heads=w // 4, kv_heads=w // 4, head_dim=4, ffn=2 * w) for w in WIDTHS)
    decoder = Decoder(DecoderSpec(shapes, vocab_size=264))
    init_weights(decoder, seed)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.mul_(1 + torch.rand(parameter.shape, generator=torch.Generator().manual_seed(seed)))
    return decoder.eval()


@pytest.fixture
def cell(tmp_path: Path) -> Path:
    """A cell with checkpoints of steps 0 and 7, as training leaves it."""
    text = tmp_path / "text"
    text.mkdir()
    for name in ("words", "numbers"):
        lines = (f"{name} {i} {'ab'[i % 2] * (i % 17)} {i * i}" for i in range(800))
        (text / f"{name}.txt").write_text("\n".join(lines))
    config = Config(
        name="test",
        model=ModelConfig(layers=4, width=12, head_dim=4, ffn_ratio=2.0),
        width=WidthConfig(profile=Profile.explicit, widths=list(WIDTHS)),
        data=DataConfig(
            {n: DomainConfig(Source.files, path=str(text / f"{n}.txt")) for n in ("words", "numbers")},
            heldout_tokens=256, cache_dir=str(tmp_path / "cache"),
        ),
        train=TrainConfig(seq_len=16, batch_size=6),
    )  # fmt: skip
    directory = tmp_path / "test" / "main" / "seed=0"
    for step in (0, 7):
        decoder = decoder_of(step)
        state = {
            "schema": 1,
            "step": step,
            "spec": decoder.spec.to_dict(),
            "data": prepare(config.data, 264, 16).digest,
            "optim": {"beta1": 0.9, "beta2": 0.95},
        }
        checkpoint.save(directory / "checkpoints", step, {"model": dict(decoder.named_parameters())}, state)
    (directory / "config.yaml").write_text(load.to_yaml(config))
    return directory


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    """A Llama of 4 layers whose tokens are the words a, b, c and d."""
    torch.manual_seed(0)
    path = tmp_path / "llama"
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES)).save_pretrained(path)
    save_tokenizer(path)
    return path


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    """An encoder of 4 layers with the same tokens."""
    torch.manual_seed(0)
    path = tmp_path / "bert"
    transformers.BertModel(transformers.BertConfig(**SIZES), add_pooling_layer=False).save_pretrained(path)
    save_tokenizer(path)
    return path


@pytest.fixture
def refuses(capsys: pytest.CaptureFixture[str]) -> Callable[..., None]:
    """Check that a command refuses its arguments in one sentence, which names these, with exit code 2."""

    def check(main: Callable[[list[str]], int], arguments: Sequence[object], named: Sequence[object]) -> None:
        capsys.readouterr()  # what was printed before
        assert main([str(argument) for argument in arguments]) == 2, arguments
        printed = capsys.readouterr()
        assert names(printed.err, *named), printed.err
        assert (printed.out, printed.err.count("\n")) == ("", 1)

    return check


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """Eight documents of 6 to 20 words."""
    path = tmp_path / "notes.jsonl"
    words = ["a b c d", "d c b", "a a b"]
    texts = [" ".join([*(words[(i + j) % 3] for j in range(2 + i % 4)), "abcd"[i % 4]]) for i in range(8)]
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    return path
