"""Broken and hostile input, as real files, through the command: one clear sentence and exit code 2, or it works."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM, PreTrainedTokenizerFast

from orchestrator.forensics.__main__ import main
from tests.naming import names
from tests.orchestrator.forensics.payload import Payload

Said = Callable[..., str]
SIZES = {
    "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip
UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    """As transformers saves it, with a tokenizer."""
    torch.manual_seed(0)
    path = tmp_path / "llama"
    LlamaForCausalLM(LlamaConfig(**SIZES)).save_pretrained(path)
    words = Tokenizer(WordLevel({"<unk>": 0, "a": 1, "b": 2, "c": 3}, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()  # type: ignore[assignment]
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>").save_pretrained(path)
    return path


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Said:
    """The one sentence on stderr that the command ends with, having printed nothing and exited with 2."""

    def said(*arguments: object) -> str:
        capsys.readouterr()
        assert main([str(argument) for argument in arguments]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.count("\n") == 1
        assert err.endswith(".\n")
        assert "Traceback" not in err
        return err

    return said


def cut(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def change(path: Path, edit: Callable[[dict[str, np.ndarray]], object]) -> None:
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path, {"format": "pt"})


def index(path: Path, shard: str) -> None:
    """All tensors of the file in one shard of this name."""
    names = list(load_file(path / "model.safetensors"))
    (path / "model.safetensors").rename(path / "model-00001-of-00002.safetensors")
    weight_map = dict.fromkeys(names, "model-00001-of-00002.safetensors") | {names[-1]: shard}
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_a_truncated_file(llama: Path, refused: Said) -> None:
    cut(llama / "model.safetensors")
    assert names(refused(llama), llama / "model.safetensors", "complete")


def test_a_truncated_shard(llama: Path, refused: Said) -> None:
    index(llama, "model-00001-of-00002.safetensors")
    cut(llama / "model-00001-of-00002.safetensors")
    assert names(refused(llama), llama / "model-00001-of-00002.safetensors", "complete")


def test_an_index_naming_a_missing_shard(llama: Path, refused: Said) -> None:
    index(llama, "model-00002-of-00002.safetensors")
    assert names(refused(llama), "model.safetensors.index.json", "model-00002-of-00002.safetensors", "shards")


@pytest.mark.parametrize(
    "name", ["../outside.safetensors", "{}/outside.safetensors", "..", "sub/../../outside.safetensors"]
)
def test_an_index_naming_a_shard_elsewhere(llama: Path, tmp_path: Path, refused: Said, name: str) -> None:
    shutil.copy(llama / "model.safetensors", tmp_path / "outside.safetensors")
    (llama / "sub").mkdir()
    index(llama, name.format(tmp_path))
    assert names(refused(llama), "model.safetensors.index.json", Path(name).name, "shards")


@pytest.mark.parametrize(
    "content", ["", "[]", "{", '{"weight_map": 3}', '{"weight_map": {"a": null}}', '{"weight_map":' * 100_000]
)
def test_an_index_that_is_none(llama: Path, refused: Said, content: str) -> None:
    (llama / "model.safetensors").unlink()
    (llama / "model.safetensors.index.json").write_text(content)
    assert "model.safetensors.index.json" in refused(llama)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_name_their_tensor(llama: Path, refused: Said, value: float) -> None:
    change(llama / "model.safetensors", lambda tensors: tensors[UP].__setitem__((3, 4), value))
    assert names(refused(llama), UP, llama / "model.safetensors", "NaN")


def test_a_zero_matrix_is_read(llama: Path, tmp_path: Path) -> None:
    target = tmp_path / "f.json"
    for part in ("mlp.up_proj", "self_attn.q_proj", "self_attn.o_proj", "mlp.down_proj"):
        name = f"model.layers.1.{part}.weight"
        change(llama / "model.safetensors", lambda tensors, name=name: tensors[name].fill(0))  # type: ignore[misc]
    assert main([str(llama), "--json", str(target), "--figure", str(tmp_path / "f.png")]) == 0
    result = json.loads(target.read_text(), parse_constant=pytest.fail)
    assert result["layers"][1]["measures"]["effective_rank.o"] is None


def test_a_model_of_zeros_is_read(llama: Path, tmp_path: Path) -> None:
    change(llama / "model.safetensors", lambda tensors: [tensor.fill(0) for tensor in tensors.values()])
    assert main([str(llama), "--json", str(tmp_path / "f.json"), "--figure", str(tmp_path / "f.png")]) == 0
    json.loads((tmp_path / "f.json").read_text(), parse_constant=pytest.fail)


def test_one_layer_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    LlamaForCausalLM(LlamaConfig(**SIZES | {"num_hidden_layers": 1})).save_pretrained(tmp_path / "one")
    assert main([str(tmp_path / "one"), "--figure", str(tmp_path / "f.png")]) == 0
    assert "no peers" in capsys.readouterr().out


@pytest.mark.parametrize("place", ["weights", "raw", "optimizer"])
def test_a_pickle_that_would_run_code_does_not(llama: Path, tmp_path: Path, refused: Said, place: str) -> None:
    mark = tmp_path / "ran"
    file = io.BytesIO()
    torch.save({"state": {0: {"exp_avg": Payload(mark)}}}, file)
    content = pickle.dumps(Payload(mark)) if place == "raw" else file.getvalue()
    target = llama / ("optimizer.pt" if place == "optimizer" else "pytorch_model.bin")
    target.write_bytes(content)
    if place != "optimizer":
        (llama / "model.safetensors").unlink()
    arguments = ["--optimizer", target] if place == "optimizer" else []
    assert target.name in refused(llama, *arguments)
    assert not mark.exists()
    pickle.loads(pickle.dumps(Payload(mark))).close()  # the payload itself works
    assert mark.exists()


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_an_empty_file(llama: Path, refused: Said, name: str) -> None:
    (llama / "model.safetensors").unlink()
    (llama / name).touch()
    assert "0 bytes" in refused(llama)


def test_text_in_place_of_weights(tmp_path: Path, refused: Said) -> None:
    said = {}
    for name in ("a.safetensors", "a.bin", "a.txt", "a.json", "README"):
        (tmp_path / name).write_text("these are not weights")
        said[name] = refused(tmp_path / name)
        assert name in said[name]
    assert "complete" in said["a.safetensors"]
    for name in ("a.txt", "a.json", "README"):
        assert names(said[name], ".safetensors", ".pt")


def test_safetensors_under_another_name_are_read(llama: Path) -> None:
    blob = (llama / "model.safetensors").rename(llama / "0a1b2c")  # as the hub's cache names what its links lead to
    assert main([str(blob)]) == 0


def test_places_with_nothing_to_read(tmp_path: Path, refused: Said) -> None:
    assert names(refused(tmp_path / "absent"), tmp_path / "absent", "exist")
    (tmp_path / "empty").mkdir()
    assert names(refused(tmp_path / "empty"), tmp_path / "empty", "model.safetensors", "nothing")


def test_two_files_that_do_not_belong_together(llama: Path, refused: Said) -> None:
    shutil.copy(llama / "model.safetensors", llama / "b.safetensors")
    (llama / "model.safetensors").rename(llama / "a.safetensors")
    assert names(refused(llama), llama, "a.safetensors, b.safetensors")
    assert main([str(llama / "a.safetensors")]) == 0


def test_weights_without_a_config_are_inferred_and_the_assumptions_told(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = shutil.copy(llama / "model.safetensors", tmp_path / "alone.safetensors")
    assert main([str(alone)]) == 0
    out = capsys.readouterr().out
    assert "inferred · 3 layers" in out
    assert "assumed" in out
    heading, table = out.index("inferred"), out.index("margin")
    assert heading < out.index("number of heads is not declared") < table  # nobody overlooks it there


def test_a_config_that_is_none(llama: Path, refused: Said) -> None:
    (llama / "config.json").write_text('{"model_type": ')
    assert names(refused(llama), llama / "config.json", "decoder")


def test_a_mixture_of_experts_that_is_not_whole(tmp_path: Path, refused: Said) -> None:
    MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=4)).save_pretrained(tmp_path / "m")
    config = json.loads((tmp_path / "m/config.json").read_text()) | {"num_local_experts": 8}
    (tmp_path / "m/config.json").write_text(json.dumps(config))
    assert names(refused(tmp_path / "m"), "model.layers.0", "4 experts", "declares 8")


def test_a_name_on_the_hub_without_a_network(tmp_path: Path) -> None:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "orchestrator.forensics", "some-org/some-model"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert names(done.stderr, "some-org/some-model", "cache", "hf download")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("option", ["--json", "--csv", "--figure"])
def test_targets_that_cannot_be_written(llama: Path, tmp_path: Path, refused: Said, option: str) -> None:
    assert names(refused(llama, option, tmp_path / "absent/f.png"), tmp_path / "absent/f.png", tmp_path / "absent")
    (tmp_path / "d.png").mkdir()
    assert names(refused(llama, option, tmp_path / "d.png"), tmp_path / "d.png", "directory")
    dangling = tmp_path / "dangling.png"
    dangling.symlink_to(tmp_path / "absent/f.png")
    assert names(refused(llama, option, dangling), dangling, "No such file or directory")


def test_a_picture_of_an_unknown_kind(llama: Path, tmp_path: Path, refused: Said) -> None:
    assert names(refused(llama, "--figure", tmp_path / "x.bmp"), "x.bmp", ".png")


def test_a_probe_of_what_cannot_be_run(llama: Path, tmp_path: Path, refused: Said) -> None:
    assert names(refused(llama, "--probe", "a"), "1 token(s)")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x80")
    assert names(refused(llama, "--probe", tmp_path / "bytes"), tmp_path / "bytes", "text")
    described = json.loads((llama / "config.json").read_text())
    (llama / "config.json").write_text(json.dumps(described | {"model_type": "some_new_thing"}))
    assert main([str(llama)]) == 0
    assert names(refused(llama, "--probe", "a b c a b c"), llama, "model_type")
    (llama / "config.json").write_text(json.dumps(described))
    for path in llama.glob("tokenizer*"):
        path.unlink()
    assert names(refused(llama, "--probe", "a b c a b c"), llama, "no tokenizer")


@pytest.mark.parametrize("whole", [True, False])
def test_a_probe_of_a_broken_gguf_file(tmp_path: Path, refused: Said, whole: bool) -> None:
    path = tmp_path / "m.gguf"
    path.touch()
    assert names(refused(tmp_path if whole else path, "--probe", "a b"), path, "cannot be run", "weights are read")


def test_an_optimizer_of_another_model(llama: Path, refused: Said) -> None:
    for width in (16, 24):
        model = LlamaForCausalLM(LlamaConfig(**SIZES | {"hidden_size": width}))
        optimizer = torch.optim.AdamW(list(model.named_parameters()))
        ids = torch.ones(1, 4, dtype=torch.long)
        model(ids, labels=ids).loss.backward()
        optimizer.step()
        torch.save(optimizer.state_dict(), llama / f"{width}.pt")
    assert main([str(llama), "--optimizer", str(llama / "16.pt")]) == 0
    assert names(refused(llama, "--optimizer", llama / "24.pt"), "exp_avg", "(24, 24)")
    assert names(refused(llama, "--optimizer", llama / "absent.pt"), llama / "absent.pt", "exist")
    moments = {f"h.0.w.{which}": np.ones((2, 2), np.float32) for which in ("exp_avg", "exp_avg_sq")}
    save_file(moments, llama / "other.safetensors")
    other = llama / "other.safetensors"
    assert names(refused(llama, "--optimizer", other), other, "moments", "h.0.w.exp_avg")


def test_an_optimizer_for_several_checkpoints(llama: Path, tmp_path: Path, refused: Said) -> None:
    for step in (1, 2):
        shutil.copytree(llama, tmp_path / f"run/checkpoint-{step}")
    said = refused(tmp_path / "run", "--optimizer", tmp_path / "optimizer.pt")
    assert names(said, "--optimizer", "one checkpoint")
    assert names(refused(llama, "--against", tmp_path / "run"), tmp_path / "run", "2 checkpoints", "--against")


def test_another_depth_beside_it(llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    LlamaForCausalLM(LlamaConfig(**SIZES | {"num_hidden_layers": 5})).save_pretrained(tmp_path / "five")
    assert main([str(llama), "--against", str(tmp_path / "five"), "--figure", str(tmp_path / "f.png")]) == 0
    assert names(capsys.readouterr().out, "3 and 5 layers")


def test_a_device_that_is_not_there(llama: Path, refused: Said) -> None:
    if torch.cuda.is_available():
        assert main([str(llama), "--device", "cuda"]) == 0
    else:
        assert names(refused(llama, "--device", "cuda"), "--device cuda", "GPU")


def test_an_optimizer_is_no_model(llama: Path, tmp_path: Path, refused: Said) -> None:
    model = LlamaForCausalLM.from_pretrained(llama)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.tensor([[1, 2, 3]]), labels=torch.tensor([[1, 2, 3]])).loss.backward()
    optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    assert names(refused(tmp_path / "optimizer.pt"), tmp_path / "optimizer.pt", "optimizer's state", "directory")
    change(llama / "model.safetensors", lambda t: [t.update({f"{n}.exp_avg": t.pop(n)}) for n in list(t)])
    assert names(refused(llama / "model.safetensors"), "optimizer's state")


def test_a_config_of_another_family(llama: Path, refused: Said) -> None:
    (llama / "config.json").write_text('{"model_type": "gpt2", "n_layer": 3, "n_head": 4, "n_embd": 16}')
    assert names(refused(llama), llama, "config.json", "gpt2", "another family", "h.0.attn.c_attn.weight")


def test_a_config_of_more_layers(llama: Path, refused: Said) -> None:
    config = json.loads((llama / "config.json").read_text())
    (llama / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 12}))
    assert names(refused(llama), llama, "config.json", "12", "0 to 2")


def test_what_is_nearest_to_what_lacks_is_named(llama: Path, refused: Said) -> None:
    change(llama / "model.safetensors", lambda t: t.pop(UP))
    said = refused(llama)
    assert names(said, UP, "model.layers.1.mlp.down_proj.weight", "model.layers.1.mlp.gate_proj.weight")
    assert not names(said, "lm_head.weight")


def test_all_tensors_with_nan_are_counted(llama: Path, refused: Said) -> None:
    broken = UP, UP.replace(".1.", ".2."), UP.replace("up_proj", "down_proj")
    change(llama / "model.safetensors", lambda t: [t[name].fill(np.nan) for name in broken])
    assert names(refused(llama), llama, "NaN", "3 tensors", UP)


def test_every_kind_of_file_is_named_where_there_is_none(tmp_path: Path, refused: Said) -> None:
    (tmp_path / "empty").mkdir()
    kinds = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".index.json", ".metadata")
    assert names(refused(tmp_path / "empty"), *kinds)
