"""The largest logit of each token over a text, without the logits, which are the memory.

    with in_chunks(model.documents, megabytes=4):
        model.encoder.encode_document(texts)

A batch of 32 texts of 512 tokens has 2 GB of logits over 30,522 tokens, of which 4 MB are kept.
Here some columns of them are there at a time, forward and backward; the vectors stay the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.foreign import config_of

MEGABYTES = 4  # of logits at a time: they stay in a processor's cache, and more is slower


class MaxLogits(torch.autograd.Function):
    """max_t (h_t w_v + b_v) for each token v of the vocabulary.

    hidden: (texts, T, d); weight: (V, d); bias: (V,) or None; size: logits at a time.
    -> (texts, V).  The gradient goes to the t of the maximum, and costs what is not 0 of it.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, size: int) -> Tensor:
        columns = max(1, size // max(1, hidden.shape[0] * hidden.shape[1]))
        most, place = list[Tensor](), list[Tensor]()
        for first in range(0, len(weight), columns):
            part = slice(first, first + columns)
            logits = F.linear(hidden, weight[part], None if bias is None else bias[part])
            if any(ctx.needs_input_grad):
                values, at = logits.max(1)
                most.append(values)
                place.append(at.to(torch.int32))
            else:
                most.append(logits.amax(1))  # several times as fast as with the places
        if place:
            ctx.save_for_backward(hidden, weight, torch.cat(place, 1))
            ctx.size, ctx.has_bias = size, bias is not None
        return torch.cat(most, 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor | None, None]:
        hidden, weight, place = ctx.saved_tensors
        (grad,) = grads  # (texts, V)
        text, token = grad.nonzero(as_tuple=True)  # relu leaves few
        values = grad[text, token]
        row = text * hidden.shape[1] + place[text, token]
        rows = hidden.flatten(0, 1)  # (texts T, d)
        to_rows, to_weight = torch.zeros_like(rows), torch.zeros_like(weight)
        for part in torch.arange(len(row), device=row.device).split(
            max(1, ctx.size // weight.shape[1])
        ):
            own, at, value = token[part], row[part], values[part, None]
            to_rows.index_add_(0, at, value * weight[own])
            to_weight.index_add_(0, own, value * rows[at])
        to_bias = grad.sum(0) if ctx.has_bias else None
        return to_rows.view_as(hidden), to_weight, to_bias, None


@contextmanager
def in_chunks(documents: Any, megabytes: int) -> Iterator[None]:
    """Let a masked language model with SPLADE's maximum give its vectors without its logits.

    documents: the modules that a document goes through, [Transformer, SpladePooling].  Other
    modules, a sum over tokens, and heads that are no linear layer stay as they are.
    """
    head = _head(documents)
    if head is None:
        yield
        return
    pooling = documents[1]
    plain, size = pooling.forward, megabytes * 2**20 // 4

    def forward(features: dict[str, Any]) -> dict[str, Any]:
        hidden = features["token_embeddings"]
        if hidden.shape[-1] != head.in_features or "cu_seq_lens_q" in features:
            return plain(features)  # its model makes logits of its own, or has flattened texts
        there = features["attention_mask"].bool()
        first = there.int().argmax(1)  # a padded place repeats the first token: no new maximum
        own = hidden.gather(1, first[:, None, None].expand(-1, 1, hidden.shape[-1]))
        hidden = torch.where(there[..., None], hidden, own)
        vector: Any = MaxLogits.apply(hidden, head.weight, head.bias, size)
        vector = vector.relu().log1p()
        if pooling.activation_function == "log1p_relu":
            vector = vector.log1p()
        return features | {"sentence_embedding": vector}

    # attributes of these two objects: their weights and files stay what they are
    head.forward, pooling.forward = _same, forward
    try:
        yield
    finally:
        del head.forward, pooling.forward


def _same(input: Tensor) -> Tensor:
    return input


def _head(documents: Any) -> nn.Linear | None:
    """The layer that makes logits; None where they cannot be left out."""
    if len(documents) != 2 or getattr(documents[1], "pooling_strategy", "") != "max":
        return None
    model = getattr(documents[0], "auto_model", None)
    head = model.get_output_embeddings() if model is not None else None
    vocabulary = getattr(config_of(model), "vocab_size", None)
    if type(head) is not nn.Linear or head.out_features != vocabulary:
        return None
    return head
