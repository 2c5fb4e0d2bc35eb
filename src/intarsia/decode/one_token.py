"""One more token through a decoder of Llama's kind: its own modules, and nothing around them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..core.foreign import config_of, model_type_of
from ..hosts.spans.attention import RingCaches
from ..hosts.spans.rings import RingLayer
from ..hosts.spans.windows import TokenPositions, grouped

KINDS = ("llama", "mistral", "qwen2")  # model types with one residual stream and rotated heads
Step = Callable[[Tensor, Any, int], Tensor]


def one_token(model: nn.Module) -> Step | None:
    """Return a fast function that adds one token to a text, for models of Llama's kind.

    The function is (ids (B, 1), cache, tokens in it) -> logits (B, 1, V). It gives the same bits as
    the model's forward, without what transformers does around a layer: masks, the choice of an
    attention, checks, records of outputs. None for models of other kinds, with windows of their
    own, or with hooks that would not be called.
    """
    host: Any = model
    config, body = config_of(host), host._modules.get("model")
    if model_type_of(host) not in KINDS or body is None:
        return None
    layers = list(body.layers)
    # a window of the layers' own needs the masks that this code leaves out
    kinds = getattr(config, "layer_types", None) or []
    if getattr(config, "sliding_window", None) and "full_attention" not in kinds:
        return None
    if any(kind != "full_attention" for kind in kinds):
        return None
    around = [host, body, *layers, *(layer.self_attn for layer in layers)]
    if any(has_hooks(module) for module in around):
        return None

    def step(ids: Tensor, cache: Any, position: int) -> Tensor:
        return _step_logits(host, ids, cache, position)

    return step


def has_hooks(module: nn.Module, *harmless: type) -> bool:
    """Return True if a module's forward does more than its class says.

    harmless: types of hooks before a forward that do not count, as those that put ring buffers into
    caches.
    """
    uncounted = (RingCaches, *harmless)
    before = [h for h in module._forward_pre_hooks.values() if not isinstance(h, uncounted)]
    return bool(before or module._forward_hooks or "forward" in vars(module))


def _step_logits(host: Any, ids: Tensor, cache: Any, position: int) -> Tensor:
    """Compute the logits (B, 1, V) behind one token (B, 1): embedding, layers, norm, head."""
    body, rows = host.model, len(ids)
    x = body.embed_tokens(ids)  # (B, 1, d)
    places = torch.full((1, 1), position, device=ids.device)
    cos, sin = (t[:, None] for t in body.rotary_emb(x, position_ids=places))  # (1, 1, 1, D)
    window = TokenPositions(
        queries=1,
        keys=position + 1,
        offset=position,
        real=None,
        device=ids.device,
        mask_arguments={},  # transformers' mask is not made here
    )
    for layer, store in zip(body.layers, cache.layers, strict=True):
        attention = layer.self_attn
        # attention over the cache, with the residual around it
        h = layer.input_layernorm(x)
        q, k, v = (
            proj(h).view(rows, 1, -1, attention.head_dim).transpose(1, 2)
            for proj in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        # rotary embedding: each pair of channels turns by an angle of its position
        q, k = q * cos + _quarter_turn(q) * sin, k * cos + _quarter_turn(k) * sin
        keys, values = store.update(k, v)
        if isinstance(store, RingLayer):
            out = store.attend(q, window, scale=attention.scaling, dropout=0.0)
        else:
            out = grouped(q, keys, values, mask=None, scale=attention.scaling)
        x = x + attention.o_proj(out.transpose(1, 2).reshape(rows, 1, -1))
        x = x + layer.mlp(layer.post_attention_layernorm(x))
    return host.lm_head(body.norm(x))


def _quarter_turn(x: Tensor) -> Tensor:
    """Rotate pairs of channels by a quarter turn: (a, b) -> (-b, a), a and b the two halves."""
    first, second = x.chunk(2, -1)
    return torch.cat((-second, first), -1)
