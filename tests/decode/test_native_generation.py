"""transformers' `generate` with native steps: its own tokens, seeds and loop, else its forward."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import DynamicCache, GenerationConfig, LlamaForCausalLM, TextStreamer

import intarsia
from intarsia.core.errors import TargetError
from intarsia.decode import native_generation
from intarsia.decode.native_decoder import NativeText
from intarsia.decode.native_generation import with_native_generate
from intarsia.formats import Bitmask, BlockInt
from intarsia.kernels import native

from ..refusals import refused
from .test_native_decoder import IDS, KINDS, decoder

needs = pytest.mark.skipif(native.load() is None, reason="no C compiler here, or off")
MASK = torch.ones_like(IDS)
MASK[1, :9] = 0  # padding on the left
ROOM = {"max_new_tokens": 7, "pad_token_id": 0}


@pytest.fixture
def texts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The slots of each `NativeText` that `generate` made."""
    counts: list[int] = []

    class Counted(NativeText):
        def __init__(self, model: Any, *, slots: int = 1, length: int) -> None:
            super().__init__(model, slots=slots, length=length)
            counts.append(slots)

    monkeypatch.setattr(native_generation, "NativeText", Counted)
    return counts


def both(model: Any, **settings: Any) -> tuple[Any, Any]:
    """Generate with and without native steps, from the same seed."""
    results: list[Any] = []
    for generate in (model.generate, type(model).generate.__get__(model)):
        torch.manual_seed(3)
        results.append(generate(**{"inputs": IDS[:, :11], **ROOM, **settings}))
    return results[0], results[1]


@needs
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "gpt_oss"])
def test_greedy_and_sampled_tokens_are_those_of_the_torch_path(kind: str, texts: list[int]) -> None:
    model: Any = with_native_generate(decoder(kind))
    for settings in (
        {"do_sample": False},
        {"do_sample": False, "attention_mask": MASK[:, :11]},
        {"do_sample": True, "temperature": 1.3, "top_k": 9, "num_return_sequences": 3},
        {"do_sample": True, "top_p": 0.8, "inputs": IDS[:1], "max_new_tokens": 3},
        {"do_sample": False, "repetition_penalty": 1.4, "no_repeat_ngram_size": 2},
        {"do_sample": False, "eos_token_id": list(range(1, 64, 3))},  # rows end, not all at once
    ):
        got, want = both(model, **settings)
        assert torch.equal(got, want)
    assert texts == [2, 2, 6, 1, 2, 2]


@needs
@pytest.mark.parametrize("form", [Bitmask("fp32"), BlockInt(8), BlockInt(4)], ids=str)
def test_a_compressed_model_has_it_and_a_folded_one_has_not(form: Any, texts: list[int]) -> None:
    model: Any = intarsia.compress(decoder(hidden_size=64, intermediate_size=96), form, force=True)
    got, want = both(model, do_sample=False)
    assert torch.equal(got, want) and texts == [2]
    copied = copy.deepcopy(model)
    assert copied.generate.args[0] is copied  # not the one it was copied from
    plain: Any = intarsia.fold(model)
    assert "generate" not in vars(plain) and type(plain) is LlamaForCausalLM


@needs
def test_what_native_steps_do_not_compute_is_transformers_own(texts: list[int]) -> None:
    model: Any = with_native_generate(decoder())
    right = MASK[:, :11].flip(1)
    for settings in (
        {"num_beams": 3, "do_sample": False},
        {"num_beams": 2, "do_sample": True},
        {"do_sample": False, "attention_mask": right},
        {"do_sample": False, "use_cache": False},
        {"do_sample": False, "cache_implementation": "static", "disable_compile": True},
        {"do_sample": False, "prefill_chunk_size": 4},
        {"do_sample": True, "inputs": IDS[:1, :5], "num_return_sequences": 17},
        {"do_sample": False, "inputs": None, "inputs_embeds": torch.randn(2, 5, 48).mul(0.1)},
        {"do_sample": False, "position_ids": torch.arange(3, 14)[None].expand(2, -1)},
        {"do_sample": False, "prompt_lookup_num_tokens": 2, "inputs": IDS[:1, :9]},
    ):
        got, want = both(model, **settings)
        assert torch.equal(got, want), settings
    outputs, want = both(model, return_dict_in_generate=True, output_scores=True, do_sample=False)
    assert torch.equal(outputs.sequences, want.sequences) and len(outputs.scores) == 7
    cache = DynamicCache(config=model.config)
    model.generate(IDS[:1, :9], cache=cache, **ROOM, do_sample=False)
    assert cache.get_seq_length() == 15  # a cache that somebody holds is filled
    hooked = with_native_generate(decoder())
    hooked.model.layers[0].register_forward_hook(lambda _m, _a, out: 2 * out)  # pyright: ignore
    assert torch.equal(*both(hooked, do_sample=False))
    model.train()
    assert torch.equal(*both(model, do_sample=False))
    assert texts == []
    with native.using("off"):
        assert torch.equal(*both(model.eval(), do_sample=False))
    assert texts == []


@needs
def test_streamers_and_stops_see_each_token(texts: list[int]) -> None:
    model: Any = with_native_generate(decoder())
    chunks: list[Any] = []

    class Heard(TextStreamer):
        def __init__(self) -> None:
            return

        def put(self, value: Any) -> None:
            chunks.append(value.tolist())

        def end(self) -> None:
            chunks.append("end")

    got = model.generate(IDS[:1, :5], streamer=Heard(), do_sample=False, **ROOM)
    assert chunks == [got[:, :5].tolist(), *([t] for t in got[0, 5:].tolist()), "end"]
    short = GenerationConfig(max_length=8, do_sample=False, pad_token_id=0)
    assert model.generate(IDS[:1, :5], generation_config=short).shape == (1, 8)
    assert texts == [1, 1]


def test_only_a_model_that_generates_can_have_it() -> None:
    with refused(TargetError, what="model", got="Linear"):
        with_native_generate(torch.nn.Linear(2, 2))
