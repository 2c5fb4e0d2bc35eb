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
from .windows import TokenPositions, Windows, attended

NAME = "intarsia_spans"
WINDOWS = "intarsia_windows"  # attribute of an attention module: its Windows
CACHES = ("cache", "past_key_values")  # the argument's names, new and old


def register() -> None:
    """Register attention and mask with transformers."""
    AttentionInterface.register(NAME, spanned)
    AttentionMaskInterface.register(NAME, positions_of)


def positions_of(**arguments: Any) -> TokenPositions:
    """Collect positions and padding of a forward's tokens, instead of a mask.

    arguments: as transformers passes them to functions that make masks.
    Raises: ConfigError for rows with several texts in one.
    """
    if arguments.get("mask_function") is not causal_mask_function:
        want, fix = "one text a row", "Pad rows instead, or detach the spans."
        raise ConfigError("rows", got="several packed texts, or a mask", want=want, fix=fix)
    # a mask of several texts in one row would need windows of its own
    mask, keys = arguments["attention_mask"], int(arguments["kv_length"])
    real = None
    if mask is not None:
        real = mask[:, :keys].bool()
        if real.shape[1] < keys:
            real = nn.functional.pad(real, (0, keys - real.shape[1]))
        # without padding the paths below need no mask
        if bool(real.all()):
            real = None
    device = arguments.get("device", "cpu")
    return TokenPositions(
        arguments["q_length"], keys, int(arguments["q_offset"]), real, device, arguments
    )


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
    """Compute attention in which each head sees the first tokens and a window of the last ones.

    If all heads see everything, transformers' own attention is computed. attention_mask: from
    `positions_of`.
    query: (B, H, Q, D); key, value: (B, G, K, D), or a `RingLayer` twice. Returns (B, Q, H, D),
    None.
    Raises: ConfigError for a text that is longer than the spans are for, or a mask of the caller's.
    """
    windows: Windows | None = getattr(module, WINDOWS, None)
    positions = attention_mask
    if not isinstance(positions, TokenPositions):
        want, fix = "input_ids and a mask (B, T), or none", "Leave the mask to transformers."
        got = "a mask (B, 1, Q, K)" if isinstance(positions, Tensor) else type(positions).__name__
        raise ConfigError("attention_mask", got=got, want=want, fix=fix)
    if windows is not None and positions.longest > windows.length:
        fix = "Attach them for longer texts: intarsia.spans.attach_spans(model, spans, length=...)."
        want = f"at most {windows.length}, which the spans are for"
        raise ConfigError("tokens of a text", got=positions.longest, want=want, fix=fix)
    # a text within the shortest window: no head leaves anything out
    if windows is None or (not isinstance(key, RingLayer) and positions.keys <= windows.reach):
        return sdpa_attention_forward(
            module, query, key, value, positions.stock, dropout, scaling, **kwargs
        )
    if isinstance(key, RingLayer):
        out = key.attend(query, positions, scaling, dropout)
    else:
        options: dict[str, Any] = {"windows": windows, "positions": positions, "scale": scaling}
        out = attended(
            query,
            key[:, :, : positions.keys],
            value[:, :, : positions.keys],
            **options,
            dropout=dropout,
        )
    return out.transpose(1, 2).contiguous(), None


class RingCaches:
    """Hook before a model's body that replaces the layers of an empty cache by ring buffers.

    windows: of each layer.  A cache that was filled before is used as it is.
    """

    def __init__(self, windows: list[Windows]) -> None:
        self.windows = windows

    def __call__(
        self, body: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Give the forward a cache of ring buffers, one per layer, if its cache is still empty."""
        # the body may be called with a cache, without one, or with none wanted
        name = next((n for n in CACHES if kwargs.get(n) is not None), None)
        config: Any = body.config
        cache = kwargs[name] if name else None
        if cache is None:
            use = kwargs.get("use_cache")
            enabled = config.use_cache if use is None else use
            # in training no keys and values are cached
            if not enabled or (body.training and torch.is_grad_enabled()):
                return args, kwargs
            cache = DynamicCache(config=config)
            kwargs = {**kwargs, CACHES[0]: cache}
        if type(cache) is DynamicCache and cache.get_seq_length() == 0:
            # layers with windows of their own keep their caches
            fresh = all(type(layer) is DynamicLayer for layer in cache.layers)
            if fresh:
                layers = [DynamicLayer() if w.full else RingLayer(w) for w in self.windows]
                cache.layers = cast(Any, layers)
        return args, kwargs
