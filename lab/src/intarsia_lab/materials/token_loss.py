"""The mean loss of a token of a language model."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from intarsia.sparse.prune.rows import batched


@torch.no_grad()
def nll(model: nn.Module, rows: Sequence[Any]) -> float:
    """Return the mean loss of a token, in nats.

    model: a causal language model of transformers; rows: with "input_ids".
    """
    losses: list[float] = []
    for batch in batched(rows, 4):
        ids = batch["input_ids"]
        logits = model(input_ids=ids).logits[:, :-1].flatten(0, 1)
        # each token is predicted from those before it
        losses += nn.functional.cross_entropy(
            logits, ids[:, 1:].flatten(), reduction="none"
        ).tolist()
    return statistics.mean(losses)
