"""A decode loop with room made once: greedy tokens of any causal language model of transformers."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache, DynamicLayer
from transformers.generation.streamers import BaseStreamer

from ..core.checks import at_least
from ..core.errors import ConfigError, ShapeError
from ..core.modes import evaluating
from .anatomy.blocks import base_of
from .one_token import one_token
from .spans.head_spans import cache_bytes, windows_of
from .spans.rings import RingLayer


class FixedLayer(CacheLayerMixin):
    """Keys and values of a layer in memory for `length` tokens, taken at the first.

    `update` writes new tokens behind the old ones, and returns views: nothing is copied or grown.
    """

    is_croppable = True
    is_sliding = False

    def __init__(self, length: int) -> None:
        super().__init__()
        self.length, self.count = length, 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        batch, heads, _, size = key_states.shape
        self.keys = key_states.new_zeros(batch, heads, self.length, size)
        self.values = value_states.new_zeros(batch, heads, self.length, value_states.shape[-1])
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Raises: ConfigError for more tokens than there is room for."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, stop = self.count, self.count + key_states.shape[2]
        if stop > self.length:
            fix = "Make room for prompt and answer."
            raise ConfigError("tokens", got=stop, want=f"at most {self.length}", fix=fix)
        assert self.keys is not None and self.values is not None
        self.keys[:, :, start:stop] = key_states
        self.values[:, :, start:stop] = value_states
        self.count = stop
        return self.keys[:, :, :stop], self.values[:, :, :stop]

    def get_seq_length(self) -> int:
        return self.count

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.count + query_length, 0

    def get_max_length(self) -> int:
        return self.length

    def reset(self) -> None:
        """Empty, with the same memory."""
        self.count = 0

    def crop(self, tokens_to_remove: int) -> None:
        """Take back the last tokens."""
        self.count -= abs(tokens_to_remove)


def fixed_cache(model: nn.Module, length: int) -> Cache:
    """An empty cache with room for `length` tokens: rings where heads have spans.

    Layers with windows of their own keep what transformers gives them.
    """
    host: Any = base_of(model)
    cache = DynamicCache(config=host.config)
    windows = windows_of(host) or [None] * len(cache.layers)
    cache.layers = [
        RingLayer(w)
        if w is not None and not w.full
        else FixedLayer(length)
        if type(layer) is DynamicLayer
        else layer
        for layer, w in zip(cache.layers, windows, strict=True)
    ]
    return cache


@dataclass(frozen=True)
class Generated:
    """Tokens that were added, (B, tokens); seconds of the prompt, and of all but the first.

    bytes: of keys and values.
    """

    tokens: Tensor
    prompt_seconds: float
    seconds: float
    bytes: int

    @property
    def rate(self) -> float:
        """Tokens a second and row, the first apart."""
        return (self.tokens.shape[1] - 1) / max(self.seconds, 1e-9)


@torch.inference_mode()
def generate(
    model: nn.Module,
    ids: Tensor,
    tokens: int,
    *,
    mask: Tensor | None = None,
    heard: Callable[[Tensor], bool | None] = lambda _: None,
) -> Generated:
    """The most likely continuation of prompts, token by token, as `generate` without sampling.

    ids: (B, T); padded on the left, with mask (B, T).  tokens: to add; the end of a text does not
    stop it.  heard: is given each new token (B,), and stops by True.
    Keys and values have their room from the start. For throughput of many requests see `intarsia
    serve`, which batches; this is for the latency of one.
    Raises: ShapeError for anything but rows of tokens; ConfigError for no token.
    """
    if ids.dim() != 2 or ids.is_floating_point() or not ids.numel():
        fix = "Pass tokenizer(text, return_tensors='pt').input_ids."
        raise ShapeError("ids", got=tuple(ids.shape), want="(B, T) token ids", fix=fix)
    at_least("tokens", tokens, 1)
    length = ids.shape[1] + tokens
    cache, name = fixed_cache(model, length), cache_name(model)
    padded = mask is not None and not bool(mask.all())
    whole = None
    if padded:
        assert mask is not None
        whole = torch.cat([mask, mask.new_ones(len(ids), tokens)], 1)
        places = (whole.cumsum(1) - 1).clamp_min(0)
    step = None if padded else one_token(model)
    made = ids.new_zeros(len(ids), tokens)
    clock = began = time.perf_counter()
    new, count = ids, 0
    with evaluating(model):
        for at in range(tokens):
            first, count = count, count + new.shape[1]
            given: dict[str, Any] = {name: cache, "use_cache": True, "logits_to_keep": 1}
            if whole is not None:
                given["attention_mask"] = whole[:, :count]
                given["position_ids"] = places[:, first:count]
            if step is not None and at:
                logits = step(new, cache, first)
            else:
                logits = model(input_ids=new, **given).logits  # (B, 1, V)
            new = logits.argmax(-1)
            made[:, at] = new[:, 0]
            if at == 0:
                clock = time.perf_counter()
            if heard(new[:, 0]):
                made = made[:, : at + 1]
                break
    ended = time.perf_counter()
    return Generated(made, clock - began, ended - clock, cache_bytes(cache))


class _Clock(BaseStreamer):
    """When the first and the last token came."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: Any) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        return


@torch.inference_mode()
def stock_generate(model: nn.Module, ids: Tensor, tokens: int) -> Generated:
    """The same by transformers' own `generate`, to hold `generate` against.

    ids: (B, T), not padded.  bytes are not counted: 0.
    """
    host: Any = model
    clock, began = _Clock(), time.perf_counter()
    with evaluating(model):
        made = host.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            use_cache=True,
            streamer=clock if len(ids) == 1 else None,
        )
    ended = time.perf_counter()
    first = clock.times[1] if len(clock.times) > 1 else began  # the prompt comes before it
    return Generated(made[:, ids.shape[1] :], first - began, ended - first, 0)


def cache_name(model: nn.Module) -> str:
    """What this version of transformers calls the argument."""
    body: Any = getattr(base_of(model), "base_model", base_of(model))
    return "cache" if "cache" in inspect.signature(body.forward).parameters else "past_key_values"
