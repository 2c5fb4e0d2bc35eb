"""Maximum over a text of each token's logits, without storing all logits.

    with in_chunks(model.documents, megabytes=4):
        model.encoder.encode_document(texts)

A batch of 32 texts of 512 tokens has 2 GB of logits over 30,522 tokens; their maxima are 4 MB. Here
some columns are computed at a time, forward and backward; the vectors stay the same.
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
    """Function max_t (h_t w_v + b_v) for each token v of the vocabulary.

    hidden: (texts, T, d); weight: (V, d); bias: (V,) or None; size: logits in memory at a time.
    -> (texts, V).  The gradient goes to the t of the maximum, and only its non-zero entries cost.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, size: int) -> Tensor:
        """Compute each token's largest logit over a text, some columns of the vocabulary at a time.

        ctx: autograd's, which keeps the position of each maximum if a gradient is wanted; hidden:
          (texts, T, d); weight: (V, d); bias: (V,) or None; size: number of logits in memory at a
          time.  -> (texts, V).
        """
        columns = max(1, size // max(1, hidden.shape[0] * hidden.shape[1]))
        maxima, place = list[Tensor](), list[Tensor]()
        for first in range(0, len(weight), columns):
            part = slice(first, first + columns)
            # (texts, T, columns): the only logits in memory
            logits = F.linear(hidden, weight[part], None if bias is None else bias[part])
            if any(ctx.needs_input_grad):
                values, position = logits.max(1)
                maxima.append(values)
                place.append(position.to(torch.int32))
            else:
                maxima.append(logits.amax(1))  # several times as fast as max with positions
        if place:
            ctx.save_for_backward(hidden, weight, torch.cat(place, 1))
            ctx.size, ctx.has_bias = size, bias is not None
        return torch.cat(maxima, 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor | None, None]:
        """Return the gradients with respect to hidden, weight, bias and size (None).

        grads: one tensor (texts, V), the gradient of the maxima; only its non-zero entries are
          computed. ctx: keeps hidden, weight and the position t of each maximum, (texts, V).
        """
        hidden, weight, place = ctx.saved_tensors
        (grad,) = grads  # (texts, V)
        text, token = grad.nonzero(as_tuple=True)  # few: relu has no gradient below 0
        values = grad[text, token]
        # the row of the flattened hidden states that had the maximum
        row = text * hidden.shape[1] + place[text, token]
        rows = hidden.flatten(0, 1)  # (texts T, d)
        rows_grad, weight_grad = torch.zeros_like(rows), torch.zeros_like(weight)
        for part in torch.arange(len(row), device=row.device).split(
            max(1, ctx.size // weight.shape[1])
        ):
            token_part, source_row, value = token[part], row[part], values[part, None]
            rows_grad.index_add_(0, source_row, value * weight[token_part])
            weight_grad.index_add_(0, token_part, value * rows[source_row])
        bias_grad = grad.sum(0) if ctx.has_bias else None
        return rows_grad.view_as(hidden), weight_grad, bias_grad, None


@contextmanager
def in_chunks(documents: Any, megabytes: int) -> Iterator[None]:
    """Compute a SPLADE model's vectors by `MaxLogits` inside this context.

    SPLADE: a document's vector is the maximum over its tokens of a language model's logits.
      documents: the modules that encode documents, [Transformer, SpladePooling]; megabytes: of
      logits at a time.  Other modules, a sum over tokens, and heads that are no linear layer stay
      as they are.
    """
    head = _head(documents)
    if head is None:
        yield
        return
    pooling = documents[1]
    plain, size = pooling.forward, megabytes * 2**20 // 4

    def forward(features: dict[str, Any]) -> dict[str, Any]:
        """Compute the vectors of texts from states instead of from logits, with the same result.

        features: "token_embeddings" (texts, T, d) and "attention_mask" (texts, T).  -> features and
        "sentence_embedding" (texts, V).
        """
        hidden = features["token_embeddings"]
        if hidden.shape[-1] != head.in_features or "cu_seq_lens_q" in features:
            return plain(features)  # these are logits already, or texts of a packed batch
        present = features["attention_mask"].bool()
        # padding repeats the first token, which adds no new maximum
        first = present.int().argmax(1)
        first_token = hidden.gather(1, first[:, None, None].expand(-1, 1, hidden.shape[-1]))
        hidden = torch.where(present[..., None], hidden, first_token)
        vector: Any = MaxLogits.apply(hidden, head.weight, head.bias, size)
        # SPLADE's activation: log(1 + relu(max)); relu and max commute
        vector = vector.relu().log1p()
        if pooling.activation_function == "log1p_relu":
            vector = vector.log1p()
        return features | {"sentence_embedding": vector}

    # instance attributes hide the methods of these two objects until the context ends
    head.forward, pooling.forward = _identity, forward
    try:
        yield
    finally:
        del head.forward, pooling.forward


def _identity(input: Tensor) -> Tensor:
    return input


def _head(documents: Any) -> nn.Linear | None:
    """Return the linear layer that computes logits; None where `MaxLogits` does not apply."""
    if len(documents) != 2 or getattr(documents[1], "pooling_strategy", "") != "max":
        return None
    model = getattr(documents[0], "auto_model", None)
    head = model.get_output_embeddings() if model is not None else None
    vocabulary = getattr(config_of(model), "vocab_size", None)
    if type(head) is not nn.Linear or head.out_features != vocabulary:
        return None
    return head
