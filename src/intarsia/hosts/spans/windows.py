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
    """Group of key-value heads that see equally far.

    heads: their numbers, in order.  window: number of last keys that they see, the query's own
    included.
    """

    heads: tuple[int, ...]
    window: int


@dataclass(frozen=True)
class Windows:
    """Windows of one layer: `sink` first keys for all heads, and a window for each group.

    groups: in ascending order of their windows; length: of the texts that this is for; a head with
    a sink and window that reach it sees everything.
    """

    sink: int
    groups: tuple[HeadGroup, ...]
    length: int

    @classmethod
    def of(cls, spans: Tensor, sink: int, length: int) -> Windows:
        """Group the heads of a layer by their spans, in ascending order.

        spans: (heads,) in tokens, sink included; sink: number of first tokens that all heads see.
        """
        # few different spans: one masked product for each of them, not for each head
        sizes = sorted({int(s) for s in spans})
        heads = {s: tuple(i for i, span in enumerate(spans.tolist()) if span == s) for s in sizes}
        return cls(sink, tuple(HeadGroup(heads[s], s - sink) for s in sizes), length)

    @property
    def reach(self) -> int:
        """Number of tokens of a text up to which every head sees everything."""
        return self.length if self.full else self.sink + self.groups[0].window

    @property
    def full(self) -> bool:
        """True if every head sees everything."""
        return self.sink + self.groups[0].window >= self.length

    def sees(self, group: HeadGroup, query: Tensor, key: Tensor) -> Tensor:
        """Return which keys a query of this group's heads sees, (..., Q, K) bool.

        query, key: their places in the text, (..., Q, 1) and (..., 1, K), -1 for padding.
        """
        near = (query - key < group.window) | (key < self.sink)
        return (key <= query) & near & (key >= 0)


@dataclass
class TokenPositions:
    """Positions of a forward's tokens, in the place of transformers' mask.

    queries, keys: number of each.  offset: number of keys before the first query.  real: (B, keys)
    bool, False for padding; None where nothing is padded.  mask_arguments: of the function by which
    transformers makes its own mask.
    """

    queries: int
    keys: int
    offset: int
    real: Tensor | None
    device: Any
    mask_arguments: dict[str, Any]

    @cached_property
    def stock(self) -> Tensor | None:
        """Mask of transformers."""
        return sdpa_mask(**self.mask_arguments)

    @cached_property
    def places(self) -> Tensor:
        """Place of each key in its row's text, (B or 1, keys); -1 for padding."""
        if self.real is None:
            return torch.arange(self.keys, device=self.device)[None]
        return (self.real.long().cumsum(1) - 1).masked_fill(~self.real, -1)

    @cached_property
    def tokens(self) -> Tensor:
        """Number of keys before the first query that are no padding, for each row (B or 1,)."""
        if self.real is None:
            return torch.full((1,), self.offset, device=self.device)
        return self.real[:, : self.offset].sum(1)

    @cached_property
    def longest(self) -> int:
        """Number of tokens of the longest row."""
        return self.keys if self.real is None else int(self.real.sum(1).max())


def attended(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    windows: Windows,
    positions: TokenPositions,
    scale: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Compute softmax(q k / sqrt(D) + mask) v, where the mask of each head is its window.

    query: (B, H, Q, D); keys, values: (B, G, K, D) of all tokens so far, H a multiple of G. scale:
    of the scores, None = 1 / sqrt(D).
    Returns (B, H, Q, D); rows of padded tokens mean nothing. Computed for some queries at a time,
    with only the keys that they see, so that time falls with the spans.
    """
    out = torch.empty_like(query)
    # each group of key-value heads, with the numbers of its query heads
    parts = [(group, heads_of(query, group.heads, keys.shape[1])) for group in windows.groups]
    outputs: list[tuple[Sequence[int], Tensor]] = []
    for group, heads in parts:
        key_heads = list(group.heads)
        got = _attend_group(
            query[:, heads],
            keys[:, key_heads],
            values[:, key_heads],
            group,
            windows,
            positions,
            scale,
            dropout,
        )
        outputs.append((heads, got))
    # written into slices, `out` would have no gradient: join the heads, and put them in order
    if query.requires_grad or keys.requires_grad:
        order = torch.tensor([h for heads, _ in outputs for h in heads], device=query.device)
        return torch.cat([got for _, got in outputs], 1)[:, order.argsort()]
    for heads, got in outputs:
        out[:, heads] = got
    return out


def heads_of(query: Tensor, heads: Sequence[int], count: int) -> list[int]:
    """Return the numbers of the query heads that use some of `count` key-value heads.

    query: (B, H, Q, D); heads: numbers of key-value heads, each used by H / count consecutive query
    heads.
    """
    share = query.shape[1] // count
    return [h * share + i for h in heads for i in range(share)]


def _attend_group(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    group: HeadGroup,
    windows: Windows,
    positions: TokenPositions,
    scale: float | None,
    dropout: float,
) -> Tensor:
    """Compute the attention of the heads that see equally far, some queries at a time."""
    # query: (B, H, Q, D); keys, values: (B, G, K, D) of those heads
    outputs: list[Tensor] = []
    for start in range(0, positions.queries, QUERIES):
        stop = min(start + QUERIES, positions.queries)
        first, last = (
            positions.offset + start,
            positions.offset + stop,
        )  # range of the keys that belong to these queries
        visible = torch.arange(last, device=query.device)
        # with padding, places differ between rows, and no key is left out
        low = first - group.window + 1
        # a block of queries sees the sink and a band of keys: all others are left out
        if positions.real is None and low > windows.sink:
            visible = torch.cat([visible[: windows.sink], visible[low:]])
        query_index = torch.arange(first, last, device=query.device)
        q, k = positions.places[:, query_index, None], positions.places[:, None, visible]
        mask = windows.sees(group, q, k) | (query_index[:, None] == visible)  # (B or 1, Q, K)
        outputs.append(
            grouped(
                query[:, :, start:stop],
                keys[:, :, visible],
                values[:, :, visible],
                mask,
                scale,
                dropout,
            )
        )
    return torch.cat(outputs, 2)


def grouped(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None,
    scale: float | None,
    dropout: float = 0.0,
) -> Tensor:
    """Compute attention of H query heads on G key-value heads, without repeating keys.

    query: (B, H, Q, D); keys, values: (B, G, K, D); mask: (B or 1, Q, K) bool for all heads, None =
    all is seen. Returns (B, H, Q, D).
    """
    batch, heads, count, size = query.shape
    # the query heads of one key-value head follow each other
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
    positions: TokenPositions,
    scale: float | None = None,
) -> Tensor:
    """Compute `attended` by its definition, slowly, with one mask of all heads and keys."""
    share = query.shape[1] // keys.shape[1]
    query_index = torch.arange(positions.offset, positions.offset + positions.queries)
    masks: list[Tensor] = [torch.empty(0)] * keys.shape[1]
    for group in windows.groups:
        q, k = positions.places[:, query_index, None], positions.places[:, None, :]
        mask = windows.sees(group, q, k) | (query_index[:, None] == torch.arange(positions.keys))
        for head in group.heads:
            masks[head] = mask
    mask = torch.stack(masks, 1).repeat_interleave(share, 1)  # (B, H, Q, K)
    keys, values = (t.repeat_interleave(share, 1) for t in (keys, values))
    scores = query @ keys.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    return scores.masked_fill(~mask, -torch.inf).softmax(-1) @ values
