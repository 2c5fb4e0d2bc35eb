"""Language models and LoRA as GGUF: read by the `gguf` package, by transformers, by llama.cpp."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    OlmoeConfig,
    OlmoeForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

import intarsia
from intarsia.core.errors import ConfigError, ExportError, UnknownName
from intarsia.folders.out.gguf_adapter import export_gguf_adapter
from intarsia.folders.out.gguf_model import export_gguf
from intarsia.folders.out.gguf_vocab import RULES, vocabulary_of
from intarsia.hosts.folding.fold import fold_whole

from ..toys import quiet

gguf = pytest.importorskip("gguf")

# PEFT asks a transformers model for what transformers has renamed
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

TEXT = [
    "It's 1234 o'clock, WE'LL see.\n\n  The harbour was quiet;  the ships lay still.",
    "naïve café 中文 \U0001f600 x = f(a_b)\t// done\r\n",
]
SIZES: dict[str, Any] = {
    "vocab_size": 400,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}


def rope(kind: str, **settings: Any) -> dict[str, Any]:
    return {"rope_type": kind, "rope_theta": 10000.0, **settings}


LLAMA3 = rope(
    "llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0,
    original_max_position_embeddings=32,
)  # fmt: skip


YARN = rope("yarn", factor=4.0, original_max_position_embeddings=32)


def llama(**settings: Any) -> Any:
    return build(LlamaForCausalLM, LlamaConfig, **settings)


def build(model: Any, config: Any, **settings: Any) -> Any:
    torch.manual_seed(0)
    host = model(config(**SIZES | settings)).eval()
    with torch.no_grad():  # norms and biases that differ from 1 and 0
        for p in host.parameters():
            if p.dim() == 1:
                p.add_(0.2 * torch.randn(p.shape))
    return host


HOSTS: dict[str, Callable[[], Any]] = {
    "llama": llama,
    "tied": lambda: llama(tie_word_embeddings=True),
    "llama3": lambda: llama(rope_parameters=LLAMA3),
    "linear": lambda: llama(rope_parameters=rope("linear", factor=2.0)),
    "yarn": lambda: llama(rope_parameters=YARN),
    "biased": lambda: llama(attention_bias=True, mlp_bias=True),
    "mistral": lambda: build(MistralForCausalLM, MistralConfig, head_dim=32, sliding_window=None),
    "qwen2": lambda: build(Qwen2ForCausalLM, Qwen2Config),
    "qwen3": lambda: build(Qwen3ForCausalLM, Qwen3Config, head_dim=32),
    "phi3": lambda: build(Phi3ForCausalLM, Phi3Config),
}
EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2}
INNER = {"moe_intermediate_size": 32}
MIXTURES: dict[str, Callable[[], Any]] = {
    "mixtral": lambda: build(
        MixtralForCausalLM, MixtralConfig, num_local_experts=4, head_dim=32, sliding_window=None
    ),
    "olmoe": lambda: build(OlmoeForCausalLM, OlmoeConfig, **EXPERTS),
    "qwen2moe": lambda: build(
        Qwen2MoeForCausalLM, Qwen2MoeConfig, **EXPERTS, **INNER, shared_expert_intermediate_size=64
    ),
    "qwen3moe": lambda: build(
        Qwen3MoeForCausalLM, Qwen3MoeConfig, **EXPERTS, **INNER, head_dim=32, norm_topk_prob=True
    ),
}
BYTE_LEVEL = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
SPECIAL = ["<|end|>", "<|user|>"]


def byte_pairs(rule: str) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer that cuts text as the model does of which llama.cpp has the name."""
    pattern, digits, ignore_merges = RULES[rule]
    core = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    steps: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if digits else []
    if pattern is None:
        steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False))
    else:
        steps += [pre_tokenizers.Split(Regex(pattern), "isolated"), BYTE_LEVEL]
    core.pre_tokenizer = pre_tokenizers.Sequence(steps)
    core.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer: Any = trainers.BpeTrainer(
        vocab_size=340, special_tokens=SPECIAL, initial_alphabet=letters, show_progress=False
    )
    core.train_from_iterator(TEXT * 4, trainer)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|end|>")
    wrapped.chat_template = "{{ messages[0].content }}"
    return wrapped


def sentence_pieces() -> PreTrainedTokenizerFast:
    """A tokenizer as Llama 2 has it: bytes for what is unknown, a space before the text, a bos."""
    letters = sorted(set("".join(TEXT)) & set(map(chr, range(33, 127)))) + ["\u2581"]
    learner = Tokenizer(models.BPE())
    learner.normalizer = normalizers.Replace(" ", "\u2581")
    trainer: Any = trainers.BpeTrainer(
        vocab_size=100, initial_alphabet=letters, show_progress=False, limit_alphabet=len(letters)
    )
    learner.train_from_iterator([t.replace("\n", " ").replace("\t", " ") for t in TEXT], trainer)
    vocabulary = json.loads(learner.to_str())["model"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces = [p for p, _ in sorted(vocabulary["vocab"].items(), key=lambda item: item[1])]
    vocab = {text: number for number, text in enumerate([*tokens, *pieces])}
    merges = [tuple(merge) for merge in vocabulary["merges"]]
    core = Tokenizer(
        models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    core.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    core.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    core.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return byte_pairs("qwen2")


def read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The fields of a file, and its tensors as float32."""
    reader = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    tensors = {
        t.name: gguf.quants.dequantize(t.data, t.tensor_type).reshape(t.shape[::-1])
        for t in reader.tensors
    }
    return fields, tensors


def rows(count: int = 12) -> torch.Tensor:
    return torch.randint(300, (1, count), generator=torch.Generator().manual_seed(1))


def logits(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(ids).logits


@pytest.mark.parametrize("name", ["llama", "tied", "qwen2"])
def test_transformers_reads_the_same_model(name: str, tokenizer: Any, tmp_path: Path) -> None:
    """Its reader turns rows and names back by tables of its own, of few sizes."""
    model, lines = HOSTS[name](), []
    export_gguf(model, tmp_path / "m.gguf", tokenizer=tokenizer, quant="f32", report=lines.append)
    again: Any = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf")
    assert torch.allclose(logits(again, rows()), logits(model, rows()), atol=1e-4)
    assert "F32 0 %" in lines[0]


@pytest.mark.parametrize("quant", ["f32", "bf16", "q8_0", "q4_0"])
def test_every_tensor_is_the_model_s(quant: str, tokenizer: Any, tmp_path: Path) -> None:
    model = llama()
    fields, tensors = read(
        export_gguf(model, tmp_path / "m.gguf", tokenizer=tokenizer, quant=quant, report=quiet)
    )
    assert fields["general.architecture"] == "llama" and fields["llama.context_length"] == 128
    state = model.state_dict()
    assert len(tensors) == len(state)
    query = state["model.layers.0.self_attn.q_proj.weight"].numpy()  # (4 x 16, 64)
    pairs = query.reshape(4, 2, 8, 64).transpose(0, 2, 1, 3).reshape(64, 64)
    for name, want in {
        "blk.0.attn_q.weight": pairs,
        "blk.1.ffn_down.weight": state["model.layers.1.mlp.down_proj.weight"].numpy(),
        "output.weight": state["lm_head.weight"].numpy(),
        "output_norm.weight": state["model.norm.weight"].numpy(),
    }.items():
        exact = quant == "f32" or want.ndim == 1
        # a step of a block: an eighth of its largest weight, of 8 bits the 254th part
        wide = {"bf16": 2.0**-8, "q8_0": 1 / 200, "q4_0": 0.14 if "blk" in name else 1 / 200}
        step = 0.0 if exact else wide[quant] * float(np.abs(want).max())
        assert np.abs(tensors[name] - want).max() <= step
        assert exact or not np.array_equal(tensors[name], want)


@pytest.mark.parametrize("quant", ["f32", "q8_0", "q4_0"])
@pytest.mark.parametrize("name", MIXTURES)
def test_every_expert_is_the_model_s(name: str, quant: str, tokenizer: Any, tmp_path: Path) -> None:
    model = MIXTURES[name]()
    path = export_gguf(model, tmp_path / "m.gguf", tokenizer=tokenizer, quant=quant, report=quiet)
    fields, tensors = read(path)
    kind = fields["general.architecture"]
    assert kind == ("llama" if name == "mixtral" else name)
    assert fields[f"{kind}.expert_count"] == 4 and fields[f"{kind}.expert_used_count"] == 2
    types = {t.name: t.tensor_type.name for t in gguf.GGUFReader(path).tensors}
    block = model.model.layers[1].mlp
    both, down = block.experts.gate_up_proj.detach(), block.experts.down_proj.detach()
    inner = both.shape[1] // 2
    matrices = {
        "ffn_gate_exps": both[:, :inner], "ffn_up_exps": both[:, inner:], "ffn_down_exps": down,
        "ffn_gate_inp": block.gate.weight.detach(),
    }  # fmt: skip
    if name == "qwen2moe":
        assert fields["qwen2moe.expert_shared_feed_forward_length"] == 64
        matrices |= {
            "ffn_gate_inp_shexp": block.shared_expert_gate.weight.detach()[0],
            "ffn_down_shexp": block.shared_expert.down_proj.weight.detach(),
        }
    for matrix, numbers in matrices.items():
        want, got = numbers.numpy(), tensors[f"blk.1.{matrix}.weight"]
        exact = quant == "f32" or "gate_inp" in matrix
        assert types[f"blk.1.{matrix}.weight"] == ("F32" if exact else quant.upper())
        step = 0.0 if exact else {"q8_0": 1 / 200, "q4_0": 0.14}[quant] * float(np.abs(want).max())
        assert got.shape == want.shape and np.abs(got - want).max() <= step
    # two stacks for the model's one of gate and up
    assert len(tensors) == len(model.state_dict()) + 2


def test_a_tied_head_is_written_once(tokenizer: Any, tmp_path: Path) -> None:
    model = HOSTS["tied"]()
    _, tensors = read(export_gguf(model, tmp_path / "m.gguf", tokenizer=tokenizer, report=quiet))
    assert "token_embd.weight" in tensors and "output.weight" not in tensors


@pytest.mark.parametrize("rule", sorted(RULES))
def test_the_rule_that_cuts_text_is_named(rule: str) -> None:
    vocabulary = vocabulary_of(byte_pairs(rule), 400)
    assert (vocabulary.model, vocabulary.pre) == ("gpt2", rule)
    assert vocabulary.tokens[399] == "[PAD399]" and vocabulary.types[399] == 5
    assert vocabulary.types[:3] == [3, 3, 1] and vocabulary.special == {"eos": 0}
    assert vocabulary.added == {"bos": False, "eos": False}


def test_sentence_pieces_have_scores_in_the_order_of_merges(tmp_path: Path) -> None:
    pieces = sentence_pieces()
    vocabulary = vocabulary_of(pieces, 400)
    assert vocabulary.added == {"bos": True, "eos": False, "space": True}
    assert vocabulary.types[:4] == [2, 3, 3, 6] and vocabulary.model == "llama"
    merges = json.loads(pieces.backend_tokenizer.to_str())["model"]["merges"]
    first, last = ("".join(merges[i]) for i in (0, -1))
    scores = dict(zip(vocabulary.tokens, vocabulary.order, strict=True))
    assert scores[first] > scores[last] > scores["<s>"]
    export_gguf(llama(), tmp_path / "m.gguf", tokenizer=pieces, report=quiet)
    fields, _ = read(tmp_path / "m.gguf")
    assert fields["tokenizer.ggml.add_space_prefix"] and fields["tokenizer.ggml.bos_token_id"] == 1


def refused(error: type[Exception], make: Callable[[], object]) -> Any:
    with pytest.raises(error) as caught:
        make()
    return caught.value


def test_unknown_tokenizers_are_refused() -> None:
    strange = byte_pairs("gpt-2")
    strange.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Punctuation(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    assert "Punctuation" in refused(ExportError, lambda: vocabulary_of(strange, 400)).got
    lower = byte_pairs("gpt-2")
    lower.backend_tokenizer.normalizer = normalizers.Lowercase()
    assert "Lowercase" in refused(ExportError, lambda: vocabulary_of(lower, 400)).got
    words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, "a")))
    assert "WordLevel" in refused(ExportError, lambda: vocabulary_of(words, 400)).got
    bare = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE({"a": 0}, [])))
    assert refused(ExportError, lambda: vocabulary_of(bare, 400)).got == "no merges"
    pieces = sentence_pieces()
    pieces.backend_tokenizer.normalizer = normalizers.NFKC()
    assert "NFKC" in refused(ExportError, lambda: vocabulary_of(pieces, 400)).got
    error = refused(ExportError, lambda: vocabulary_of(byte_pairs("gpt-2"), 20))
    assert "at most 20" in error.want


def test_what_llama_cpp_has_no_word_for_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    def error(model: Any, kind: type[Exception] = ExportError, **settings: Any) -> Any:
        path = tmp_path / settings.pop("name", "m.gguf")
        settings = {"tokenizer": tokenizer, "report": quiet} | settings
        return refused(kind, lambda: export_gguf(model, path, **settings))

    assert error(llama(hidden_act="gelu")).got == "gelu"
    dynamic = llama(rope_parameters=rope("dynamic", factor=2.0))
    assert error(dynamic).got == "dynamic"
    mixture = intarsia.upcycle(llama(), intarsia.TopK(experts=2))
    assert "Upcycle" in error(mixture).got
    assert "adapters" in error(intarsia.adapt(llama(), "lora")).got
    narrow = llama()
    narrow.model.layers[1].mlp.up_proj = nn.Linear(64, 64, bias=False)
    assert "up_proj" in error(narrow).got
    biased = build(Qwen3ForCausalLM, Qwen3Config, head_dim=16, attention_bias=True)
    assert "bias" in error(biased).got
    assert error(nn.Linear(2, 2)).got == "Linear"
    assert "rows of 48" in error(llama(intermediate_size=48), ConfigError, quant="q4_0").got
    assert error(llama(), ConfigError, name="m.bin").got.endswith("m.bin")
    error(llama(), UnknownName, quant="q2_k")
    summed = build(OlmoeForCausalLM, OlmoeConfig, **EXPERTS, norm_topk_prob=True)
    assert error(summed).got is True and "norm_topk_prob" in error(summed).what
    dense = build(Qwen3MoeForCausalLM, Qwen3MoeConfig, **EXPERTS, **INNER, norm_topk_prob=True,
                  mlp_only_layers=[0])  # fmt: skip
    assert error(dense).got == [0]
    assert error(build(OlmoeForCausalLM, OlmoeConfig, **EXPERTS, clip_qkv=8.0)).got == 8.0
    assert not list(tmp_path.iterdir())


def test_a_weight_beyond_its_type_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    model = llama()
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.mul_(1e8)  # scales of blocks are float16
    with np.errstate(over="ignore", invalid="ignore"):
        error = refused(
            ExportError,
            lambda: export_gguf(
                model, tmp_path / "m.gguf", tokenizer=tokenizer, quant="q8_0", report=quiet
            ),
        )
    assert "ffn_up" in error.got and not list(tmp_path.iterdir())


def test_a_sliding_window_ends_the_context(tokenizer: Any, tmp_path: Path) -> None:
    model, lines = build(MistralForCausalLM, MistralConfig, sliding_window=32), []
    path = export_gguf(model, tmp_path / "m.gguf", tokenizer=tokenizer, report=lines.append)
    assert read(path)[0]["llama.context_length"] == 32 and "32 tokens" in lines[0]


def moved(model: Any) -> Any:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.3 * torch.randn(p.shape, generator=generator))
    return model.eval()


def peft_lora() -> Any:
    config = LoraConfig(r=4, lora_alpha=12, target_modules=["q_proj", "v_proj"])
    return moved(get_peft_model(llama(), config))


ADAPTERS: dict[str, Callable[[], Any]] = {
    "ours": lambda: moved(intarsia.adapt(llama(), intarsia.Lora(4, 12.0))),
    "peft": peft_lora,
    "mos": lambda: moved(intarsia.adapt(llama(), intarsia.adapters.Mos(2, 2, 2))),
}


@pytest.mark.parametrize("make", ADAPTERS.values(), ids=ADAPTERS.keys())
def test_an_adapter_has_the_change_of_each_layer(make: Any, tmp_path: Path) -> None:
    model, lines = make(), []
    path = export_gguf_adapter(model, tmp_path / "a.gguf", report=lines.append)
    fields, tensors = read(path)
    assert fields["general.type"] == "adapter" and fields["adapter.type"] == "lora"
    folded: Any = fold_whole(model, inputs={"input_ids": rows()}, report=quiet)
    base = llama().state_dict()
    for path_of, name in (("q_proj", "attn_q"), ("v_proj", "attn_v")):
        a, b = (tensors[f"blk.1.{name}.weight.lora_{side}"] for side in "ab")
        delta = fields["adapter.lora.alpha"] / len(a) * (b @ a)
        key = f"model.layers.1.self_attn.{path_of}.weight"
        want = (folded.state_dict()[key] - base[key]).numpy()
        if path_of == "q_proj":  # its rows are in llama.cpp's order
            want = want.reshape(4, 2, 8, 64).transpose(0, 2, 1, 3).reshape(64, 64)
        assert np.allclose(delta, want, atol=1e-5) and np.abs(want).max() > 0.01
    assert "layers of llama" in lines[0]


def test_what_is_no_lora_is_refused(tmp_path: Path) -> None:
    def error(model: Any, kind: type[Exception] = ExportError, **settings: Any) -> Any:
        path = tmp_path / "a.gguf"
        return refused(kind, lambda: export_gguf_adapter(model, path, report=quiet, **settings))

    assert "without an adapter" in error(llama()).got
    dora = LoraConfig(r=2, target_modules=["q_proj"], use_dora=True)
    assert "q_proj" in error(get_peft_model(llama(), dora)).got
    head = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"])
    assert error(get_peft_model(llama(), head)).got == "a trained head"
    on_head = LoraConfig(r=2, target_modules=["lm_head"])
    assert "lm_head" in error(get_peft_model(llama(), on_head)).got
    error(intarsia.adapt(llama(), intarsia.Bottleneck(4, "pfeiffer")), ConfigError)
    error(peft_lora(), UnknownName, quant="q8_0")
    assert not list(tmp_path.iterdir())


def evaluated(path: Path, ids: Sequence[int], **settings: Any) -> np.ndarray:
    """Logits (T, V) of llama.cpp."""
    llama_cpp = pytest.importorskip("llama_cpp", reason="pip install llama-cpp-python")
    runner = llama_cpp.Llama(
        str(path),
        n_ctx=64,
        logits_all=True,
        verbose=False,
        n_threads=1,
        type_k=0,
        type_v=0,
        **settings,
    )
    runner.eval(list(ids))  # keys and values in float32
    return np.array(runner.scores[: len(ids)])


@pytest.mark.parametrize("name", [*HOSTS, *MIXTURES])
def test_llama_cpp_says_the_same(name: str, tokenizer: Any, tmp_path: Path) -> None:
    model, ids = (HOSTS | MIXTURES)[name](), rows(40)
    want = logits(model, ids)[0].numpy()
    for quant, tolerance in (("f32", 1e-5), ("bf16", 0.03), ("q8_0", 0.1)):
        export_gguf(model, tmp_path / "m.gguf", tokenizer=tokenizer, quant=quant, report=quiet)
        got = evaluated(tmp_path / "m.gguf", ids[0].tolist())
        assert np.linalg.norm(got - want) <= tolerance * np.linalg.norm(want)


@pytest.mark.parametrize("make", ADAPTERS.values(), ids=ADAPTERS.keys())
def test_llama_cpp_adds_an_adapter(make: Any, tokenizer: Any, tmp_path: Path) -> None:
    model, ids = make(), rows(20)
    export_gguf(llama(), tmp_path / "m.gguf", tokenizer=tokenizer, quant="f32", report=quiet)
    export_gguf_adapter(model, tmp_path / "a.gguf", report=quiet)
    got = evaluated(tmp_path / "m.gguf", ids[0].tolist(), lora_path=str(tmp_path / "a.gguf"))
    want = logits(model, ids)[0].numpy()
    assert np.linalg.norm(got - want) <= 1e-5 * np.linalg.norm(want)


@pytest.mark.parametrize("rule", [*sorted(RULES), "sentencepiece"])
def test_llama_cpp_cuts_the_same_tokens(rule: str, tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp", reason="pip install llama-cpp-python")
    words = sentence_pieces() if rule == "sentencepiece" else byte_pairs(rule)
    path = export_gguf(llama(), tmp_path / "m.gguf", tokenizer=words, report=quiet)
    runner = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    for text in TEXT:
        assert runner.tokenize(text.encode()) == words(text).input_ids
