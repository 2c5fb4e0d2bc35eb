"""Rows of each kind of text that a small mixture was not trained on."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from . import byte_pairs
from .routing_traces import VOCABULARY, texts

LENGTH = 128  # tokens


@lru_cache(maxsize=1)
def rows(seed: int) -> dict[str, Tensor]:
    """Return rows of tokens of each kind of text, on which the small mixture was not trained.

    They are the last tenth of each text. seed: of the mixture, unused otherwise. Returns kind ->
    (n, 128) token ids.
    """
    corpus = texts()
    # the tokenizer of the mixture's own training
    words = byte_pairs.trained((text[:300_000] for text in corpus.values()), VOCABULARY)
    blocks: dict[str, Tensor] = {}
    for name, text in corpus.items():
        ids = torch.tensor(words(text)["input_ids"])
        ids = ids[int(len(ids) * 0.9) :]
        blocks[name] = ids[: len(ids) // LENGTH * LENGTH].view(-1, LENGTH)
    return blocks
