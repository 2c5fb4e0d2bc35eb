"""Which keys each head sees: windows of a layer, places of tokens, and masked attention on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers.masking_utils import sdpa_mask

QUERIES = 256  # rows of a mask at a time


@dataclass(frozen=True)
class HeadGroup:
    """Key-value heads of one span.

    heads: their numbers, in order.  window: last keys that they see, themselves included.
    """

    heads: tuple[int, ...]
    window: int


@dataclass(frozen=True)
class Windows:
    """What the heads of a layer see: `sink` first keys, and a window of each group of heads.

    length: of the texts that this is for; a head whose sink and window reach it sees everything.
    """

    sink: int
    groups: tuple[HeadGroup, ...]
    length: int

    @classmethod
    def of(cls, spans: Tensor, sink: int, length: int) -> Windows:
        """spans: (heads,) tokens, sink included. Groups in order of their span."""
        sizes = sorted({int(s) for s in spans})
        every = {s: tuple(i for i, of in enumerate(spans.tolist()) if of == s) for s in sizes}
        return cls(sink, tuple(HeadGroup(every[s], s - sink) for s in sizes), length)

    @property
    def reach(self) -> int:
        """Tokens of a text up to which every head sees everything."""
        return self.length if self.full else self.sink + self.groups[0].window

    @property
    def full(self) -> bool:
        """Whether every head sees everything."""
        return self.sink + self.groups[0].window >= self.length

    def sees(self, group: HeadGroup, query: Tensor, key: Tensor) -> Tensor:
        """Whether places of keys are seen from places of queries.  (..., Q, 1), (..., 1, K)."""
        near = (query - key < group.window) | (key < self.sink)
        return (key <= query) & near & (key >= 0)


@dataclass
class Seen:
    """What a forward knows of its tokens, in the place of transformers' mask.

    kept: (B, keys) bool, False for padding; None where nothing is padded.  offset: keys before the
    first query.  The rest is what transformers' own mask is made of.
    """

    queries: int
    keys: int
    offset: int
    kept: Tensor | None
    device: Any
    given: dict[str, Any]

    @cached_property
    def stock(self) -> Tensor | None:
        """The mask of transformers."""
        return sdpa_mask(**self.given)

    @cached_property
    def places(self) -> Tensor:
        """The place of each key in its row's text, (B or 1, keys); -1 for padding."""
        if self.kept is None:
            return torch.arange(self.keys, device=self.device)[None]
        return (self.kept.long().cumsum(1) - 1).masked_fill(~self.kept, -1)

    @cached_property
    def tokens(self) -> Tensor:
        """How many keys before the first query are no padding, of each row (B or 1,)."""
        if self.kept is None:
            return torch.full((1,), self.offset, device=self.device)
        return self.kept[:, : self.offset].sum(1)

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return self.keys if self.kept is None else int(self.kept.sum(1).max())


def attended(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    windows: Windows,
    seen: Seen,
    scale: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """softmax(q k / sqrt(D) + mask) v with the mask of each head.  (B, H, Q, D) -> (B, H, Q, D).

    keys, values: (B, G, K, D) of all tokens so far, H a multiple of G. In blocks of queries, with
    the keys that a block's heads can see and no others, so that time falls with the span. What a
    padded token gives is of no use to anyone.
    """
    out = torch.empty_like(query)
    parts = [
        (group, heads_of(query, group.heads, keys.shape[1])) for group in windows.groups
    ]  # a head's queries, and which they are
    made: list[tuple[Sequence[int], Tensor]] = []
    for group, heads in parts:
        at = list(group.heads)
        got = _of_group(
            query[:, heads], keys[:, at], values[:, at], group, windows, seen, scale, dropout
        )
        made.append((heads, got))
    if query.requires_grad or keys.requires_grad:
        order = torch.tensor([h for heads, _ in made for h in heads], device=query.device)
        return torch.cat([got for _, got in made], 1)[:, order.argsort()]
    for heads, got in made:
        out[:, heads] = got
    return out


def heads_of(query: Tensor, heads: Sequence[int], of: int) -> list[int]:
    """The query heads of some of so many key-value heads, which serve consecutive ones."""
    share = query.shape[1] // of
    return [h * share + i for h in heads for i in range(share)]


def _of_group(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    group: HeadGroup,
    windows: Windows,
    seen: Seen,
    scale: float | None,
    dropout: float,
) -> Tensor:
    made: list[Tensor] = []
    for start in range(0, seen.queries, QUERIES):
        stop = min(start + QUERIES, seen.queries)
        first, last = seen.offset + start, seen.offset + stop  # keys of these queries themselves
        at = torch.arange(last, device=query.device)
        low = first - group.window + 1  # padding moves places: then no key is left out
        if seen.kept is None and low > windows.sink:
            at = torch.cat([at[: windows.sink], at[low:]])
        own = torch.arange(first, last, device=query.device)
        q, k = seen.places[:, own, None], seen.places[:, None, at]
        mask = windows.sees(group, q, k) | (own[:, None] == at)  # (B or 1, Q, K)
        made.append(
            grouped(query[:, :, start:stop], keys[:, :, at], values[:, :, at], mask, scale, dropout)
        )
    return torch.cat(made, 2)


def grouped(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None,
    scale: float | None,
    dropout: float = 0.0,
) -> Tensor:
    """Attention of H query heads on G key-value heads, whose queries are laid one after another.

    mask: (B or 1, Q, K), for all heads.  Returns (B, H, Q, D).
    """
    batch, heads, count, size = query.shape
    share = heads // keys.shape[1]
    rows = query.reshape(batch, keys.shape[1], share * count, size)
    full = None if mask is None else mask.repeat(1, share, 1)[:, None]
    got = scaled_dot_product_attention(
        rows, keys, values, attn_mask=full, scale=scale, dropout_p=dropout
    )
    return got.reshape(batch, heads, count, values.shape[-1])


def attended_naive(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    windows: Windows,
    seen: Seen,
    scale: float | None = None,
) -> Tensor:
    """`attended`, with one mask of all heads and keys."""
    share = query.shape[1] // keys.shape[1]
    own = torch.arange(seen.offset, seen.offset + seen.queries)
    masks: list[Tensor] = [torch.empty(0)] * keys.shape[1]
    for group in windows.groups:
        q, k = seen.places[:, own, None], seen.places[:, None, :]
        mask = windows.sees(group, q, k) | (own[:, None] == torch.arange(seen.keys))
        for head in group.heads:
            masks[head] = mask
    mask = torch.stack(masks, 1).repeat_interleave(share, 1)  # (B, H, Q, K)
    keys, values = (t.repeat_interleave(share, 1) for t in (keys, values))
    scores = query @ keys.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    return scores.masked_fill(~mask, -torch.inf).softmax(-1) @ values
