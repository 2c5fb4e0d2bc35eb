"""Decoders of transformers as native steps: logits, texts in slots, reasons against."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch.testing import assert_close

import intarsia
from intarsia.core.errors import ConfigError
from intarsia.decode.native_decoder import KINDS, NativeText, why_not
from intarsia.formats import Bitmask, BlockInt, Dense, GroupSparse, Ternary
from intarsia.kernels import native

needs = pytest.mark.skipif(native.load() is None, reason="no C compiler here, or off")
SIZES: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 67, "max_position_embeddings": 64,
    "pad_token_id": 0, "bos_token_id": None, "eos_token_id": None, "initializer_range": 0.15,
}  # fmt: skip
OWN: dict[str, dict[str, Any]] = {  # what only this kind has
    "llama": {"attention_bias": True, "mlp_bias": True},
    "mistral": {"sliding_window": 7},
    "qwen3": {"head_dim": 10},
    "smollm3": {"no_rope_layer_interval": 2},
    "phi3": {"partial_rotary_factor": 0.5},
    "olmo": {"clip_qkv": 0.5},
    "mixtral": {"sliding_window": 9, "num_local_experts": 5, "num_experts_per_tok": 2},
    "qwen2_moe": {
        "num_experts": 7,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 21,
        "shared_expert_intermediate_size": 33,
        "mlp_only_layers": [1],
        "norm_topk_prob": True,
    },
    "qwen3_moe": {
        "num_experts": 8,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": 19,
        "head_dim": 10,
        "mlp_only_layers": [],
    },
    "gemma": {"head_dim": 10, "initializer_range": 0.1},
    "gemma2": {
        "head_dim": 10,
        "sliding_window": 8,
        "attn_logit_softcapping": 0.7,
        "final_logit_softcapping": 2.0,
        "query_pre_attn_scalar": 17,
    },
    "gemma3_text": {
        "head_dim": 10,
        "sliding_window": 8,
        "sliding_window_pattern": 2,
        "query_pre_attn_scalar": 17,
        "attn_logit_softcapping": 0.1,
    },
    "olmoe": {"num_experts": 6, "num_experts_per_tok": 1, "clip_qkv": 0.5},
}
NAMES = {
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "smollm3": "SmolLM3",
    "phi3": "Phi3",
    "olmo2": "Olmo2",
    "gemma3_text": "Gemma3",
    "qwen2_moe": "Qwen2Moe",
    "qwen3_moe": "Qwen3Moe",
}
IDS = torch.randint(1, 64, (2, 40), generator=torch.Generator().manual_seed(0))


def decoder(kind: str = "llama", **settings: Any) -> Any:
    name = NAMES.get(kind, kind.capitalize())
    config_name = "Gemma3TextConfig" if kind == "gemma3_text" else f"{name}Config"
    config = getattr(transformers, config_name)(**{**SIZES, **OWN.get(kind, {}), **settings})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith("bias"):  # 1 and 0 would hide that they are left out
                torch.nn.init.normal_(parameter, 1.0, 0.2)
    if hasattr(config, "num_experts_per_tok"):
        model.set_experts_implementation("eager")  # the default wants sizes that 4 divides
    return model


@needs
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "gpt_oss"])
def test_logits_are_those_of_the_model_s_own_forward(kind: str) -> None:
    model = decoder(kind)
    with torch.no_grad():
        want = model(IDS).logits
    text = NativeText(model, slots=2, length=40)
    for slot, first in ((1, 18), (0, 3)):  # blocks of 16 and what is left, in any slot
        ids = IDS[slot].tolist()
        assert_close(text.prefill(slot, ids[:first]), want[slot, first - 1], atol=1e-5, rtol=1e-5)
        assert_close(text.prefill(slot, ids[first:20]), want[slot, 19], atol=1e-5, rtol=1e-5)
    for index in range(20, 24):
        got = text.step(IDS[:, index].tolist())
        assert_close(got, want[:, index], atol=1e-5, rtol=1e-5)
    text.clear(0)
    long = text.prefill(0, IDS[1].tolist())  # more than 32: by the model's layers
    assert_close(long, want[1, 39], atol=1e-5, rtol=1e-5)
    alone = text.step([int(IDS[1, 24])], [1])  # slot 0 rests
    assert_close(alone[0], want[1, 24], atol=1e-5, rtol=1e-5)


@needs
@pytest.mark.parametrize(
    "form",
    [
        *(BlockInt(4), BlockInt(8), Bitmask("int8"), Bitmask("bf16"), Dense()),
        *(GroupSparse(), GroupSparse(activations="int8"), Ternary()),
        *(GroupSparse(activations="int8", rows=rows) for rows in (4, 8)),
    ],
    ids=str,
)
def test_products_of_any_format_are_those_of_the_packed_model(form: Any) -> None:
    model = decoder(hidden_size=56, head_dim=14)
    intarsia.compress(model, form, force=True)
    model.bfloat16()  # embedding, head and cache
    text = NativeText(model.float() if not isinstance(form, Dense) else model, length=24)
    with torch.no_grad():
        want = model(IDS[:1, :12]).logits[0, -1].float()
    got = text.prefill(0, IDS[0, :12].tolist())
    # one row's rounding of inputs to int8 may fall the other way
    assert float((got - want).abs().mean() / want.abs().mean()) < 0.02


def gpt_oss() -> Any:
    widths = {"hidden_size": 64, "head_dim": 16, "intermediate_size": 32, "num_hidden_layers": 3}
    experts = {"num_local_experts": 6, "num_experts_per_tok": 2}
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    yarn = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4, "truncate": False,
            "original_max_position_embeddings": 16}  # fmt: skip
    config = transformers.GptOssConfig(
        **{**SIZES, **widths, **experts}, sliding_window=9, layer_types=kinds, rope_parameters=yarn
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.GptOssForCausalLM(config).eval()
        for name, parameter in model.named_parameters():
            if name.endswith(("bias", "sinks")):
                torch.nn.init.normal_(parameter, 0.0, 0.5)
    model.set_experts_implementation("eager")
    return model


@needs
@pytest.mark.parametrize("bits", [4, 8])
def test_packed_experts_with_biases_and_heads_with_sinks(bits: int) -> None:
    """Compare GPT-OSS, with windows in every other layer, with its forward on packed experts."""
    assert "(in, out)" in why_not(gpt_oss())
    model = intarsia.compress(gpt_oss(), BlockInt(bits), force=True)
    assert why_not(model) == ""
    with torch.no_grad():
        want = model(IDS).logits
    text = NativeText(model, slots=2, length=40)
    for slot, first in ((1, 18), (0, 3)):
        ids = IDS[slot].tolist()
        for begin, end in ((0, first), (first, 20)):
            got = text.prefill(slot, ids[begin:end])
            assert_close(got, want[slot, end - 1], atol=1e-4, rtol=1e-4)
    for index in range(20, 40):
        got = text.step(IDS[:, index].tolist())
        # an input that is rounded to int8 may fall the other way
        difference = (got - want[:, index]).abs()
        assert float(difference.mean() / want[:, index].abs().mean()) < 0.01
    for part in ("sinks", "down_proj_bias", "gate_up_proj_bias", "router.bias"):
        changed = intarsia.compress(gpt_oss(), BlockInt(bits), force=True)
        for name, parameter in changed.named_parameters():
            if name.endswith(part):
                torch.nn.init.zeros_(parameter)
        without = NativeText(changed, length=40).prefill(0, IDS[0, :20].tolist())
        assert float((without - want[0, 19]).abs().max()) > 0.01, part


@needs
@pytest.mark.parametrize("sink", [0, 3])
def test_heads_with_spans_see_what_the_torch_path_sees(sink: int) -> None:
    model = decoder(num_hidden_layers=3)
    # two runs of heads, one run, and a head that sees everything
    spans = intarsia.spans.Spans.of(torch.tensor([[6, 20], [9, 9], [40, 4 + sink]]), sink=sink)
    intarsia.spans.attach_spans(model, spans, length=40)
    assert why_not(model) == ""
    with torch.no_grad():
        want = model(IDS, use_cache=False).logits
    text = NativeText(model, slots=3, length=64)  # spans are for 40
    assert [len(runs) for runs in text.heads] == [2, 1, 2]
    for slot, first in ((1, 37), (0, 5)):  # several blocks of 16, and a ring that has gone round
        got = text.prefill(slot, IDS[slot, :first].tolist())
        assert_close(got, want[slot, first - 1], atol=1e-5, rtol=1e-5)
    for index in range(5, 40):
        slots = [0, 1] if index + 32 < 40 else [0]
        new = [int(IDS[s, index + 32 * s]) for s in slots]
        for row, slot in zip(text.step(new, slots), slots, strict=True):
            assert_close(row, want[slot, index + 32 * slot], atol=1e-5, rtol=1e-5)
    with pytest.raises(ConfigError):
        text.step([1], [0])
    assert text.nbytes < NativeText(decoder(num_hidden_layers=3), slots=3, length=40).nbytes


@needs
def test_a_model_that_is_not_suited_says_why_and_is_refused() -> None:
    assert why_not(decoder()) == ""
    hooked = decoder()
    hooked.model.layers[0].mlp.register_forward_hook(lambda *_: None)
    grows = decoder(rope_scaling={"rope_type": "dynamic", "factor": 2.0})
    gpt2 = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_layer=1, n_embd=8, n_head=2))
    adapted = intarsia.adapt(decoder(), "lora")
    for model, part in (
        (hooked, "model.layers.0.mlp"),
        (grows, "dynamic"),
        (gpt2, "gpt2"),
        (decoder(hidden_act="tanh"), "tanh"),
        (decoder().half(), "float16"),
        (adapted, "q_proj"),
    ):
        assert part in why_not(model)
        with pytest.raises(ConfigError) as refused:
            NativeText(model, length=8)
        assert refused.value.got == why_not(model)
    with native.using("off"):
        assert "no kernels" in why_not(decoder())
    for slots in (0, 17):
        with pytest.raises(ConfigError):
            NativeText(decoder(), slots=slots, length=8)


@needs
def test_there_is_room_for_so_many_tokens_and_no_more() -> None:
    text = NativeText(decoder(), length=8)
    for tokens in ([], [1] * 9):
        with pytest.raises(ConfigError):
            text.prefill(0, tokens)
    text.prefill(0, [1] * 8)
    with pytest.raises(ConfigError):
        text.step([1])
    text.clear(0)
    assert text.step([1]).shape == (1, 64) and text.nbytes == 2 * 2 * 2 * 8 * 12 * 4
