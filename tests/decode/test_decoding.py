"""The decode loop's tokens are transformers' greedy ones, and its memory is taken once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

import intarsia
from intarsia.core.errors import ConfigError, ShapeError
from intarsia.decode.decoding import generate
from intarsia.decode.fixed_cache import cache_name, fixed_cache
from intarsia.decode.one_token import one_token
from intarsia.formats import Bitmask
from intarsia.hosts.spans.spans import Spans
from intarsia.kernels import native

from ..refusals import refused

SIZES: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 64, "max_position_embeddings": 64,
    "pad_token_id": 0, "bos_token_id": None, "eos_token_id": None, "initializer_range": 0.15,
}  # fmt: skip
IDS = torch.randint(1, 64, (2, 20), generator=torch.Generator().manual_seed(0))


def made(kind: str) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if kind == "windowed":  # a window of its own
            return MistralForCausalLM(MistralConfig(**SIZES, sliding_window=12)).eval()
        model = LlamaForCausalLM(LlamaConfig(**SIZES)).eval()
    if kind == "sparse":
        intarsia.sparsify(model, intarsia.sparse.Magnitude(0.5))
    if kind == "packed":
        intarsia.compress(model, Bitmask(), force=True)  # exact: int8 inputs would round anew
    if kind == "bfloat16":
        model.bfloat16()
    if kind == "hooked":  # what the short way would leave out
        model.model.layers[0].register_forward_hook(lambda _m, _a, out: 2 * out)
    if kind == "spans":
        spans = Spans.of(torch.tensor([[6, 12], [40, 8]]), sink=2)
        intarsia.spans.attach_spans(model, spans, length=40)
    return model


@pytest.mark.parametrize(
    "kind", ["plain", "bfloat16", "sparse", "packed", "spans", "windowed", "hooked"]
)
def test_greedy_tokens_are_transformers_own(kind: str) -> None:
    model = made(kind)
    mask = torch.ones_like(IDS)
    mask[1, :6] = 0
    for build in ("native", "off"):
        for attention in (torch.ones_like(mask), mask):
            want = model.generate(IDS, attention_mask=attention, max_new_tokens=16, do_sample=False)
            with native.using(build):
                generation = generate(model, IDS, 16, mask=attention)
            assert torch.equal(generation.tokens, want[:, 20:])
        assert generation.rate > 0
        suited = build == "native" and native.load() and kind != "hooked"
        assert generation.path.startswith("native" if suited else "transformers' layers: ")


def test_room_is_made_once_and_not_more(monkeypatch: pytest.MonkeyPatch) -> None:
    model = made("plain")
    cache = fixed_cache(model, 36)
    places: list[int] = []
    from intarsia.decode import decoding

    monkeypatch.setattr(decoding, "fixed_cache", lambda *_: cache)
    with native.using("off"):
        generate(model, IDS, 16, on_token=lambda _: places.append(cache.layers[0].keys.data_ptr()))
    assert len(set(places)) == 1
    assert cache.layers[0].keys.shape == (2, 2, 36, 12)
    with refused(ConfigError, what="tokens", got=55), torch.no_grad():
        model(IDS, cache=cache)


def test_the_short_way_gives_the_bits_of_the_model_s_own_forward() -> None:
    model = made("bfloat16")
    step, name = one_token(model), cache_name(model)
    assert step is not None
    first, second = (fixed_cache(model, 24) for _ in range(2))
    with torch.inference_mode():
        for cache in (first, second):
            model(IDS, **{name: cache}, use_cache=True)
        for index in range(20, 24):
            want = model(IDS[:, index - 20 : index - 19], **{name: second}, use_cache=True).logits
            assert torch.equal(step(IDS[:, index - 20 : index - 19], first, index), want)
    assert one_token(made("windowed")) is None
    assert one_token(made("hooked")) is None


def test_it_stops_when_told_and_refuses_what_is_no_prompt() -> None:
    model = made("plain")
    assert generate(model, IDS, 16, on_token=lambda _: True).tokens.shape == (2, 1)
    with refused(ShapeError, what="ids", got=(20,)):
        generate(model, IDS[0], 4)
    with refused(ConfigError, what="tokens", got=0):
        generate(model, IDS, 0)
