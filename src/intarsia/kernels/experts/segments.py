"""Pairs of tokens and experts as sequences: one for an expert and sequence, in order."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Segments:
    """The pairs by expert, then by position, and a segment for each expert and sequence with some.

    order: (N,), where each pair stood in the routing; token: (N,); row, place: (N,), the segment of
    each pair and its place in there; owner, sequence, count: (S,), of each segment its expert, its
    sequence and how many pairs it has; longest: n, the most of them.
    """

    order: Tensor
    token: Tensor
    row: Tensor
    place: Tensor
    owner: Tensor
    sequence: Tensor
    count: Tensor
    longest: int

    @classmethod
    def of(cls, token: Tensor, expert: Tensor, tokens: int, length: int) -> Segments:
        """Group N pairs (token, expert) by expert and sequence; each such group is a segment.

        token, expert: (N,), the numbers of each pair's token and expert; tokens: how many tokens
          all sequences have, numbered one sequence after the other; length: tokens of one sequence.
        """
        # by expert, then by position: pairs of one expert and sequence are consecutive
        order = (expert * tokens + token).argsort()
        token, expert = token[order], expert[order]
        sequence = torch.div(token, max(1, length), rounding_mode="floor")  # (N,)
        sequences = max(1, tokens // max(1, length))
        keys, row, count = torch.unique_consecutive(
            expert * sequences + sequence, return_inverse=True, return_counts=True
        )
        first = count.cumsum(0) - count
        place = torch.arange(len(token), device=token.device) - first[row]
        longest = int(count.max()) if len(count) else 0
        owner = torch.div(keys, sequences, rounding_mode="floor")
        return cls(order, token, row, place, owner, keys % sequences, count, longest)

    @property
    def expert(self) -> Tensor:
        """The expert of each pair, (N,), rising."""
        return self.owner[self.row]

    @property
    def even(self) -> bool:
        """True if all segments have one length, so that no place is empty."""
        return len(self.token) == len(self.count) * self.longest

    def pad(self, x: Tensor, fill: float | bool = 0) -> Tensor:
        """Arrange rows of pairs as S segments, one for each expert and sequence, of one length.

        x: (N, ...), a row for each pair, in the order of these segments; fill: the value of empty
          places.  -> (S, n, ...), n the length of the longest segment.
        """
        shape = (len(self.count), self.longest, *x.shape[1:])
        if self.even:
            return x.view(shape)
        return x.new_full(shape, fill).index_put((self.row, self.place), x)

    def unpad(self, x: Tensor) -> Tensor:
        """Return the rows of the pairs, without padding: the inverse of `pad`."""
        return x.flatten(0, 1) if self.even else x[self.row, self.place]

    def keys(self) -> Tensor | None:
        """Return which places of the padded segments are no padding, (S, 1, 1, n) bool.

        S segments, see `pad`, of n places each: a mask for attention. None = no place is padding.
        """
        if self.even:
            return None
        places = torch.arange(self.longest, device=self.count.device)
        return (places < self.count[:, None])[:, None, None]
