"""A cache of transformers with room that is taken once."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache, DynamicLayer

from ..core.errors import ConfigError
from ..hosts.anatomy.blocks import base_of
from ..hosts.spans.head_spans import windows_of
from ..hosts.spans.rings import RingLayer


class FixedLayer(CacheLayerMixin):
    """Layer cache for `length` tokens; its memory is allocated at the first token.

    `update` writes new tokens behind the old ones, and returns views: nothing is copied or grown.
    """

    is_croppable = True
    is_sliding = False

    def __init__(self, length: int) -> None:
        super().__init__()
        self.length, self.count = length, 0

    @classmethod
    def over(cls, keys: Tensor, values: Tensor, count: int) -> FixedLayer:
        """Build a layer's cache on existing memory.  keys, values: (B, heads, length, D)."""
        layer = cls(keys.shape[2])
        layer.dtype, layer.device, layer.count = keys.dtype, keys.device, count
        layer.keys, layer.values, layer.is_initialized = keys, values, True
        return layer

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate keys and values for `length` tokens, (batch, heads, length, width) each."""
        self.dtype, self.device = key_states.dtype, key_states.device
        batch, heads, _, size = key_states.shape
        self.keys = key_states.new_zeros(batch, heads, self.length, size)
        self.values = value_states.new_zeros(batch, heads, self.length, value_states.shape[-1])
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append new keys and values; return views of all, (batch, heads, count, width) each.

        key_states, value_states: (batch, heads, n, width), of n new tokens.
        Raises: ConfigError for more tokens than there is room for.
        """
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
        """Empty the cache and keep its memory."""
        self.count = 0

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last tokens; their memory is overwritten by the next ones."""
        self.count -= abs(tokens_to_remove)


def fixed_cache(model: nn.Module, length: int) -> Cache:
    """Allocate an empty cache with room for `length` tokens in each layer.

    If heads have spans, a layer has ring buffers; layers with windows of their own have the caches
    that transformers gives them.
    """
    host: Any = base_of(model)
    cache = DynamicCache(config=host.config)
    windows = windows_of(host) or [None] * len(cache.layers)
    cache.layers = [
        # heads that see a span need no more than a ring of that length; layers that
        # transformers made for windows of their own stay as they are
        RingLayer(w)
        if w is not None and not w.full
        else FixedLayer(length)
        if type(layer) is DynamicLayer
        else layer
        for layer, w in zip(cache.layers, windows, strict=True)
    ]
    return cache


def cache_name(model: nn.Module) -> str:
    """Return the name of the cache's argument in this version of transformers."""
    body: Any = getattr(base_of(model), "base_model", base_of(model))
    return "cache" if "cache" in inspect.signature(body.forward).parameters else "past_key_values"
