"""What a dense model's attention is worth to its own answers: influence by head and distance."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from ...core.modes import evaluating
from ...scores.influence import by_distance
from ..anatomy.blocks import base_of
from .head_spans import attentions

WATCHED = "intarsia_watched"
LISTENER = "intarsia_heard"  # attribute of an attention module: the function that gets its tensors

Listener = Callable[[Tensor, Tensor, Tensor, Tensor, Any], None]


def watched(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Compute transformers' own attention, and report its tensors to the module's listener.

    query: (B, H, Q, D); key, value: (B, G, K, D).
    """
    out, _ = sdpa_attention_forward(
        module, query, key, value, attention_mask, dropout, scaling, **kwargs
    )
    listener: Listener | None = getattr(module, LISTENER, None)
    if listener is not None and out.requires_grad:
        listener(query, key, value, out, scaling)
    return out, None


@contextmanager
def _watching(model: nn.Module, listener_of: Callable[[int], Listener]) -> Generator[None]:
    """Report each attention's tensors to a listener, inside the `with`; weights get no gradient."""
    host: Any = base_of(model)
    modules = attentions(model).modules
    AttentionInterface.register(WATCHED, watched)
    AttentionMaskInterface.register(WATCHED, sdpa_mask)
    before = host.config._attn_implementation
    flags = [(p, p.requires_grad) for p in model.parameters()]
    embedding: nn.Module = host.get_input_embeddings()
    # gradients start at the embeddings: activations have them, weights need none
    hook = embedding.register_forward_hook(lambda _m, _a, out: out.detach().requires_grad_())
    try:
        host.set_attn_implementation(WATCHED)
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        for layer, module in enumerate(modules):
            setattr(module, LISTENER, listener_of(layer))
        yield
    finally:
        hook.remove()
        for module in modules:
            if hasattr(module, LISTENER):
                delattr(module, LISTENER)
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        host.set_attn_implementation(before)


def profile(
    model: nn.Module, ids: Tensor, answer: int, *, sink: int, block: int, rows: int = 2
) -> Tensor:
    """Compute how much attention influences the loss of each text's last tokens, by distance.

    ids: (B, N) tokens; answer: number of last tokens that count in the loss; sink: number of first
    tokens, which every head sees; block: tokens of a bin of distances; rows: texts at a time.
    Computed layer by layer in the backward pass, so that only one layer's attention matrix is in
    memory.
    Returns (layers, G, bins), the mean over texts and the largest among the query heads of each
    key-value head; see `scores.influence.by_distance`.
    """
    host: Any = base_of(model)
    decoder = attentions(model)
    total: list[Tensor | None] = [None] * len(decoder.modules)

    def listener_of(layer: int) -> Listener:
        """Return the listener of a layer, which adds the influence of its attention to `total`."""

        def of_layer(q: Tensor, k: Tensor, v: Tensor, out: Tensor, scale: Any) -> None:
            """Register a hook that gets the gradient of the attention's output."""
            # the hook runs in the backward pass, where dL / d(A v) is known

            def backward(gradient: Tensor) -> None:  # (B, N, H, D), dL / d(A v)
                tensors = [t.detach() for t in (q, k, v, gradient.transpose(1, 2))]
                influence = by_distance(*tensors, sink=sink, block=block, scale=scale) * len(q)
                before = total[layer]
                total[layer] = influence if before is None else before + influence

            out.register_hook(backward)

        return of_layer

    with evaluating(model), _watching(model, listener_of), torch.enable_grad():
        for part in ids.split(rows):
            # one logit more than answer tokens: each predicts the token behind it
            logits = host(input_ids=part, use_cache=False, logits_to_keep=answer + 1).logits
            flat = logits[:, :-1].float().flatten(0, 1)
            # mean over a row's tokens, sum over rows: each row's gradient is independent of the
            # others
            loss = cross_entropy(flat, part[:, -answer:].flatten(), reduction="sum") / answer
            loss.backward()
    # among the query heads of one key-value head, the largest influence counts
    mean = torch.stack([t for t in total if t is not None]) / len(ids)  # (layers, H, bins)
    return mean.unflatten(1, (decoder.heads, -1)).amax(2)


@torch.no_grad()
def loss_of_end(model: nn.Module, ids: Tensor, share: float = 1 / 3, rows: int = 2) -> float:
    """Return the mean loss of a token in the last part of each text.  ids: (B, N) tokens."""
    host: Any = base_of(model)
    count = max(1, round(ids.shape[1] * share))
    total = 0.0
    with evaluating(model):
        for part in ids.split(rows):
            logits = host(input_ids=part, use_cache=False, logits_to_keep=count + 1).logits
            flat = logits[:, :-1].float().flatten(0, 1)
            total += float(cross_entropy(flat, part[:, -count:].flatten(), reduction="sum"))
    return total / (len(ids) * count)
