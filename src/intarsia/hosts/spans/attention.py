"""transformers' attention with a span for each head, by its registry of attention functions."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import DynamicCache, DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import causal_mask_function

from ...core.errors import ConfigError
from .rings import RingLayer
from .windows import Seen, Windows, attended

NAME = "intarsia_spans"
WINDOWS = "intarsia_windows"  # attribute of an attention module: its Windows
CACHES = ("cache", "past_key_values")  # the argument's names, new and old


def register() -> None:
    """Make attention and mask known to transformers."""
    AttentionInterface.register(NAME, spanned)
    AttentionMaskInterface.register(NAME, seen_of)


def seen_of(**given: Any) -> Seen:
    """What transformers calls for its mask: keeps what is known of the tokens.

    Raises: ConfigError for rows with several texts in one.
    """
    if given.get("mask_function") is not causal_mask_function:
        want, fix = "one text a row", "Pad rows instead, or detach the spans."
        raise ConfigError("rows", got="several packed texts, or a mask", want=want, fix=fix)
    mask, keys = given["attention_mask"], int(given["kv_length"])
    kept = None
    if mask is not None:
        kept = mask[:, :keys].bool()
        if kept.shape[1] < keys:
            kept = nn.functional.pad(kept, (0, keys - kept.shape[1]))
        if bool(kept.all()):
            kept = None
    device = given.get("device", "cpu")
    return Seen(given["q_length"], keys, int(given["q_offset"]), kept, device, given)


def spanned(
    module: nn.Module,
    query: Tensor,
    key: Any,
    value: Any,
    attention_mask: Any,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of a module with windows; without any, or where all is seen, transformers' own.

    query: (B, H, Q, D); key, value: (B, G, K, D), or a `RingLayer` twice.
    Raises: ConfigError for a text that is longer than the spans are for, or a mask of the caller's.
    """
    windows: Windows | None = getattr(module, WINDOWS, None)
    seen = attention_mask
    if not isinstance(seen, Seen):
        want, fix = "input_ids and a mask (B, T), or none", "Leave the mask to transformers."
        got = "a mask (B, 1, Q, K)" if isinstance(seen, Tensor) else type(seen).__name__
        raise ConfigError("attention_mask", got=got, want=want, fix=fix)
    if windows is not None and seen.longest > windows.length:
        fix = "Attach them for longer texts: intarsia.spans.attach_spans(model, spans, length=...)."
        want = f"at most {windows.length}, which the spans are for"
        raise ConfigError("tokens of a text", got=seen.longest, want=want, fix=fix)
    if windows is None or (not isinstance(key, RingLayer) and seen.keys <= windows.reach):
        return sdpa_attention_forward(
            module, query, key, value, seen.stock, dropout, scaling, **kwargs
        )
    if isinstance(key, RingLayer):
        out = key.attend(query, seen, scaling, dropout)
    else:
        how: dict[str, Any] = {"windows": windows, "seen": seen, "scale": scaling}
        out = attended(
            query, key[:, :, : seen.keys], value[:, :, : seen.keys], **how, dropout=dropout
        )
    return out.transpose(1, 2).contiguous(), None


class RingCaches:
    """A hook before the forward of a model's body: rings in the place of an empty cache's layers.

    windows: of each layer.  A cache that was filled before is used as it is.
    """

    def __init__(self, windows: list[Windows]) -> None:
        self.windows = windows

    def __call__(
        self, body: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        name = next((n for n in CACHES if kwargs.get(n) is not None), None)
        config: Any = body.config
        cache = kwargs[name] if name else None
        if cache is None:
            use = kwargs.get("use_cache")
            wanted = config.use_cache if use is None else use
            if not wanted or (body.training and torch.is_grad_enabled()):
                return args, kwargs
            cache = DynamicCache(config=config)
            kwargs = {**kwargs, CACHES[0]: cache}
        if type(cache) is DynamicCache and cache.get_seq_length() == 0:
            fresh = all(type(layer) is DynamicLayer for layer in cache.layers)
            if fresh:
                layers = [DynamicLayer() if w.full else RingLayer(w) for w in self.windows]
                cache.layers = cast(Any, layers)
        return args, kwargs
