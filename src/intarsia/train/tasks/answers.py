"""Answers to questions about pictures and sounds: the loss on the answers' tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..order import IGNORED, Inputs
from .tokens import Tokens

OF_TOKEN = {"input_ids": 0, "attention_mask": 0, "asked": 0, "labels": IGNORED}  # and its padding


def answers_batch(items: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Collate samples with text, pictures and sounds into one batch, for transformers' `Trainer`.

    items: samples as the processor returns them. Tokens are padded on the right; the features of
      all pictures and sounds are joined in one tensor, in the order of their marks in the text.
    """
    longest = max(len(item["input_ids"]) for item in items)
    batch: dict[str, Tensor] = {}
    for name, padding in OF_TOKEN.items():
        rows: list[Tensor] = []
        for item in items:
            ids = item["input_ids"]
            row = item.get(name, torch.ones_like(ids) if name == "attention_mask" else None)
            if row is not None:
                rows.append(F.pad(torch.as_tensor(row), (0, longest - len(ids)), value=padding))
        if len(rows) == len(items):
            batch[name] = torch.stack(rows)
    # pictures and sounds have no place for each token: rows without any add nothing
    for name in dict.fromkeys(n for item in items for n in item if n not in OF_TOKEN):
        batch[name] = torch.cat([item[name] for item in items if name in item])
    return batch


@dataclass(frozen=True)
class Answers(Tokens):
    """`Tokens`, of rows that have pictures and sounds as well.

    A row: {"input_ids", "labels", "asked"} of T tokens, and, where it has some, "image" (views, n,
    width), "image_views" (pictures,) and "audio" (sounds, n, width).
    """

    labelled: ClassVar[bool] = False

    def collate(self, items: Sequence[Any]) -> tuple[Inputs, Any]:
        batch = answers_batch(items)
        return batch, batch.pop("labels")
