"""Every family of the table against the flow of numbers through transformers' own block, whatever its names are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    PreTrainedModel,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from orchestrator.forensics.architecture.families import FAMILIES, find
from orchestrator.forensics.architecture.kinds import PLACES
from orchestrator.forensics.architecture.model import CheckpointModel, Layer

VOCABULARY, WIDTH, FFN, LAYERS, HEADS, HEAD_DIM = 48, 32, 40, 3, 4, 8  # FFN: unlike any other size
COMMON = {
    "vocab_size": VOCABULARY, "hidden_size": WIDTH, "intermediate_size": FFN, "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2, "attention_probs_dropout_prob": 0.0, "hidden_dropout_prob": 0.0,
}  # fmt: skip
GROUPED = COMMON | {"num_key_value_heads": 2, "head_dim": HEAD_DIM}
GPT = COMMON | {"n_inner": FFN}
PHI = GROUPED | {"partial_rotary_factor": 0.5}

# family → model_type and sizes. Several lines per family where the layout hangs on a key.
CASES: list[tuple[str, str, dict[str, Any]]] = [
    *[("llama", mark, GROUPED) for mark in ("llama", "mistral", "ministral", "ministral3", "qwen2", "qwen3")],
    *[("llama", mark, GROUPED) for mark in ("granite", "smollm3", "seed_oss", "helium", "ernie4_5")],
    ("llama", "internlm3", GROUPED),
    ("llama", "llama", GROUPED | {"attention_bias": True, "mlp_bias": True, "head_dim": 12}),
    ("gemma", "gemma", GROUPED | {"head_dim": 12}),
    ("gemma2", "gemma2", GROUPED), ("gemma3", "gemma3_text", GROUPED), ("vaultgemma", "vaultgemma", GROUPED),
    ("olmo", "olmo", GROUPED), ("olmo2", "olmo2", GROUPED), ("olmo2", "olmo3", GROUPED), ("olmo2", "exaone4", GROUPED),
    ("cohere", "cohere", GROUPED), ("cohere", "cohere2", GROUPED),
    ("stablelm", "stablelm", GROUPED), ("stablelm_parallel", "stablelm", GROUPED | {"use_parallel_residual": True}),
    ("nemotron", "nemotron", GROUPED), ("arcee", "arcee", GROUPED), ("apertus", "apertus", GROUPED),
    ("starcoder2", "starcoder2", GROUPED | {"residual_dropout": 0.0, "embedding_dropout": 0.0}),
    ("phi", "phi", PHI), ("phi3", "phi3", GROUPED), ("glm", "glm", PHI), ("glm4", "glm4", PHI),
    ("persimmon", "persimmon", COMMON | {"qk_layernorm": False}),
    ("gpt_neox", "gpt_neox", COMMON), ("gpt_neox", "gpt_neox", COMMON | {"use_parallel_residual": False}),
    ("gpt1", "openai-gpt", COMMON), ("gpt2", "gpt2", GPT), ("gpt_bigcode", "gpt_bigcode", GPT),
    ("gpt_bigcode", "gpt_bigcode", GPT | {"multi_query": False}),
    ("gptj", "gptj", GPT | {"rotary_dim": 4}),
    ("gpt_neo", "gpt_neo", COMMON | {"attention_types": [[["global"], LAYERS]], "num_layers": LAYERS}),
    ("mpt", "mpt", COMMON | {"expansion_ratio": 2}),
    ("bloom", "bloom", COMMON),
    ("falcon", "falcon", COMMON | {"ffn_hidden_size": FFN}),
    ("falcon_sequential", "falcon",
     COMMON | {"ffn_hidden_size": FFN, "parallel_attn": False, "multi_query": False, "alibi": True}),
    ("falcon_two_norms", "falcon", COMMON | {"ffn_hidden_size": FFN, "new_decoder_architecture": True,
                                             "num_kv_heads": 2}),
    ("falcon_one_norm", "falcon", COMMON | {"ffn_hidden_size": FFN, "new_decoder_architecture": True,
                                            "num_kv_heads": 2, "num_ln_in_parallel_attn": 1}),
    ("opt", "opt", COMMON | {"ffn_dim": FFN, "word_embed_proj_dim": WIDTH}),
    ("opt_post", "opt", COMMON | {"ffn_dim": FFN, "word_embed_proj_dim": WIDTH, "do_layer_norm_before": False}),
    ("bert", "bert", COMMON), ("roberta", "roberta", COMMON), ("roberta", "xlm-roberta", COMMON),
    ("roberta", "camembert", COMMON), ("roberta", "electra", COMMON | {"embedding_size": WIDTH}),
    ("distilbert", "distilbert", COMMON | {"dim": WIDTH, "hidden_dim": FFN, "n_layers": LAYERS, "n_heads": HEADS}),
    ("modernbert", "modernbert", COMMON),
]  # fmt: skip

# Attention that does not go through the common interface: what its own code makes of the block's input.
OWN_CODE: dict[str, Callable[[Any, Tensor], tuple[Tensor, Tensor]]] = {
    "gptj": lambda a, x: (a.q_proj(x), a.k_proj(x)),
    "gpt_neo": lambda a, x: (a.attention.q_proj(x), a.attention.k_proj(x)),
    "openai-gpt": lambda a, x: a.c_attn(x).split(a.split_size, dim=2)[:2],
    "mpt": lambda a, x: a.Wqkv(x).chunk(3, dim=2)[:2],
    "bloom": lambda a, x: a._reshape(a.query_key_value(x))[:2],
    "falcon": lambda a, x: a._split_heads(a.query_key_value(x))[:2],
}
LINEAR = {"Linear", "Conv1D", "FalconLinear"}

seen: list[tuple[Tensor, Tensor]] = []  # the (query, key) [1, heads, 1, head_dim] that each attention was given


def _spy(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *rest: Any, **options: Any) -> Any:
    seen.append((query, key))
    options.pop("softcap", None)  # one token attends to itself alone, whatever its score
    return sdpa_attention_forward(module, query, key, value, *rest, **options)


AttentionInterface.register("spy", _spy)
AttentionMaskInterface.register("spy", sdpa_mask)


def build(mark: str, sizes: dict[str, Any]) -> PreTrainedModel:
    """A model of transformers with every parameter random, biases and norm scales too."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(mark, **sizes)
    encoder = mark in {"bert", "roberta", "xlm-roberta", "camembert", "electra", "distilbert", "modernbert"}
    auto = AutoModelForMaskedLM if encoder else AutoModelForCausalLM
    implementation = "eager" if mark in OWN_CODE else "spy"
    model: PreTrainedModel = auto.from_config(config, attn_implementation=implementation).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def silence(model: nn.Module) -> None:
    """Biases to 0 and norms within attention to a constant: what is left of a projection is its matrix."""
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data.zero_()
        elif "q_norm" in name or "k_norm" in name:
            parameter.data.fill_(0.5)


class Flow:
    """Inputs and outputs of one block's leaf modules for a single token, where position does nothing."""

    def __init__(self, model: PreTrainedModel, index: int) -> None:
        stacks = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == LAYERS]
        self.block: Any = stacks[0][index]
        self.linears: list[tuple[Tensor, Tensor]] = []  # in the order in which they ran
        self.norms: list[tuple[nn.Module, Tensor, Tensor]] = []
        self.activated: dict[str, Tensor] = {}
        self.entered: Tensor = torch.empty(0)
        self.left: Tensor = torch.empty(0)
        hooks = [
            self.block.register_forward_pre_hook(self._enter, with_kwargs=True),
            self.block.register_forward_hook(self._exit),
        ]
        for name, module in self.block.named_modules():
            if "act" in name.rpartition(".")[2] or "gelu" in name:
                hooks.append(module.register_forward_hook(self._activate))
            elif not list(module.children()):
                hooks.append(module.register_forward_hook(self._leave))
        seen.clear()
        with torch.no_grad():
            model(input_ids=torch.tensor([[5]]))
        for hook in hooks:
            hook.remove()
        self.query_key = seen[index] if seen else None

    def _enter(self, module: nn.Module, args: Any, options: Any) -> None:
        self.entered = (args[0] if args else options["hidden_states"]).reshape(1, -1)

    def _exit(self, module: nn.Module, args: Any, out: Any) -> None:
        self.left = (out if isinstance(out, Tensor) else out[0]).reshape(1, -1)

    def _leave(self, module: nn.Module, args: Any, out: Any) -> None:
        if type(module).__name__ in LINEAR:
            self.linears.append((args[0].reshape(1, -1), out.clone().reshape(1, -1)))  # Falcon adds to it in place
        elif "norm" in type(module).__name__.lower():
            self.norms.append((module, args[0].reshape(1, -1), out.reshape(1, -1)))

    def _activate(self, module: nn.Module, args: Any, out: Any) -> None:
        if self.entered.numel() and not self.left.numel():  # GPT-1's blocks share one module
            self.activated = {"in": args[0].reshape(1, -1), "out": out.reshape(1, -1)}


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-5)


def _check_attention(mark: str, layer: Layer, flow: Flow) -> tuple[Tensor, Tensor]:
    """Returns what went into attention and what came out of its last matrix."""
    assert layer.heads is not None
    heads, kv_heads, head_dim = layer.heads.heads, layer.heads.kv_heads, layer.heads.head_dim
    x = flow.linears[0][0]
    with torch.no_grad():
        if flow.query_key is None:
            attention = next(m for n, m in flow.block.named_children() if "attn" in n or "attention" in n)
            query, key = OWN_CODE[mark](attention, x[None])
        else:
            query, key = flow.query_key
    key = key.reshape(-1, head_dim)[:: heads // kv_heads] if key.numel() > kv_heads * head_dim else key
    for kind, actual in {"q": query, "k": key}.items():  # up to a factor where a norm follows
        expected = (x @ layer.weight(kind).T).reshape(-1, head_dim)
        cosines = torch.nn.functional.cosine_similarity(expected, actual.reshape(-1, head_dim))
        torch.testing.assert_close(cosines, torch.ones(len(expected)), rtol=0, atol=1e-4)
    values = (x @ layer.weight("v").T).reshape(kv_heads, head_dim).repeat_interleave(heads // kv_heads, dim=0)
    read, written = next(pair for pair in flow.linears if _same(pair[0], values.reshape(1, -1)))  # one token: a = v
    torch.testing.assert_close(written, read @ layer.weight("o").T, rtol=1e-4, atol=1e-5)
    return x, written


def _check_ffn(layer: Layer, flow: Flow) -> tuple[Tensor, Tensor]:
    """Returns what went into the FFN and what came out."""
    ffn = layer.shape("up")[0]
    x = next(read for read, written in flow.linears if written.shape[1] in (ffn, 2 * ffn))
    read, written = next(pair for pair in flow.linears if pair[0].shape[1] == ffn)
    up, first = x @ layer.weight("up").T, "gate" if "gate" in layer.kinds else "up"
    torch.testing.assert_close(flow.activated["in"], x @ layer.weight(first).T, rtol=1e-4, atol=1e-5)
    inner = flow.activated["out"] * up if "gate" in layer.kinds else flow.activated["out"]
    torch.testing.assert_close(read, inner, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(written, read @ layer.weight("down").T, rtol=1e-4, atol=1e-5)
    return x, written


def _scale(norm: nn.Module) -> Tensor:
    """γ as it multiplies, from how the module answers: x over its root mean square, centred or not."""
    x = torch.randn(1, WIDTH, generator=torch.Generator().manual_seed(3)) * 3
    with torch.no_grad():
        out = norm(x)
    plain, centred = x / x.square().mean().sqrt(), (x - x.mean()) / x.std(correction=0)
    ratios = [(out / plain)[0], (out / centred)[0]]
    again = torch.roll(x, 1)
    with torch.no_grad():
        out = norm(again)
    others = [out * again.square().mean().sqrt() / again, out * again.std(correction=0) / (again - again.mean())]
    steady = [torch.allclose(a, b[0], rtol=1e-3, atol=1e-3) for a, b in zip(ratios, others, strict=True)]
    assert any(steady)
    return ratios[steady.index(True)]


def _places(flow: Flow, attention: tuple[Tensor, Tensor], ffn: tuple[Tensor, Tensor]) -> dict[str, nn.Module]:
    """Kind → the norm of that kind, found by its input and output."""
    found: dict[str, nn.Module] = {}
    norms = [(m, r, w) for m, r, w in flow.norms if getattr(m, "weight", None) is not None and r.shape[1] == WIDTH]
    closed = any(_same(written, flow.left) for _, _, written in norms)  # BERT normalises the stream itself
    for module, read, written in norms:
        for branch, (x, wrote), stream in (("attention", attention, flow.entered), ("ffn", ffn, ffn[0])):
            if _same(read, wrote) or (closed and _same(read, wrote + stream)):
                found[f"post_{branch}"] = module
            elif _same(written, x) and not closed:
                found[f"pre_{branch}"] = module
    return found


@pytest.mark.parametrize(("family", "mark", "sizes"), CASES, ids=[f"{f}-{m}-{i}" for i, (f, m, _) in enumerate(CASES)])
def test_family(tmp_path: Path, family: str, mark: str, sizes: dict[str, Any]) -> None:
    model = build(mark, sizes)
    model.save_pretrained(tmp_path, max_shard_size="30KB" if len(mark) % 2 else "1GB")
    embedding = model.get_input_embeddings().weight.detach().clone()
    silence(model)

    opened = CheckpointModel(tmp_path)
    assert (opened.family_name, opened.assumed, len(opened)) == (family, [], LAYERS)
    assert torch.equal(torch.cat(list(opened.embedding(block=7))), embedding)
    assert opened.embedding_shape == (VOCABULARY, WIDTH)
    for index in (0, LAYERS - 1):
        layer, flow = opened.layer(index), Flow(model, index)
        assert (layer.index, layer.width) == (index, WIDTH)
        for kind in layer.kinds:
            assert tuple(layer.weight(kind).shape) == layer.shape(kind)
        attention, ffn = _check_attention(mark, layer, flow), _check_ffn(layer, flow)
        places = _places(flow, attention, ffn)
        for place in PLACES:
            gamma = layer.norm(place)
            assert (gamma is None) == (place not in places), (place, places)
            if gamma is not None:
                torch.testing.assert_close(gamma, _scale(places[place]), rtol=2e-3, atol=2e-3)


def test_every_mark_and_family_of_the_table_is_tested() -> None:
    tested = {family for family, _, _ in CASES} | {"llama_sandwich"}  # ours: test_anatomy
    elsewhere = {name for name in FAMILIES if Path(__file__).with_name(f"test_{name}.py").exists()}
    assert tested | elsewhere == set(FAMILIES), "add it to CASES, or test it in test_<family>.py"
    families = [family for name, family in FAMILIES.items() if name in tested]
    marks = {mark for family in families for mark in family.declared if not mark.startswith("norm=")}
    assert marks - {mark for _, mark, _ in CASES} == {"gemma3"}  # the multimodal one: test_anatomy


def test_special_entries_stand_before_general_ones() -> None:
    for mark in {mark for family in FAMILIES.values() for mark in family.declared}:
        entries = [family for family in FAMILIES.values() if mark in family.declared]
        assert all(family.when for family in entries[:-1])
        assert not entries[-1].when
        assert find(mark, {}) is not None
    assert find("mystery", {}) is None
