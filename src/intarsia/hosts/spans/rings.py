"""Caches that keep what heads with spans can still see: a sink and a ring for each head."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from ...core.errors import ConfigError
from .windows import HeadGroup, Seen, Windows, attended, grouped, heads_of


class HeadRing:
    """Keys and values of the heads of one span, in place.

    Slot p holds the token at place p < sink of its row's text; slot sink + (p - sink) mod window
    the last one at such a place. Rotations are in the keys, so that slots need no order.
    keys, values: (B, heads, sink + window, D).
    """

    def __init__(
        self, group: HeadGroup, sink: int, size: int, like: Tensor, values: Tensor
    ) -> None:
        self.group, self.sink = group, sink
        self.window = size - sink
        shape = (like.shape[0], len(group.heads), size)
        self.keys = like.new_zeros(*shape, like.shape[-1])
        self.values = values.new_zeros(*shape, values.shape[-1])
        self.index = torch.tensor(group.heads, device=like.device)

    def slots(self, places: Tensor) -> Tensor:
        """Where tokens at these places are."""
        return torch.where(
            places < self.sink, places, self.sink + (places - self.sink) % self.window
        )

    def places(self, tokens: Tensor) -> Tensor:
        """The place of what is in each slot after so many tokens, (B, slots); -1 for nothing."""
        slot = torch.arange(self.sink + self.window, device=tokens.device)
        last = tokens[:, None] - 1
        back = (last - self.sink - (slot - self.sink)) % self.window
        ring = torch.where(last - back >= self.sink, last - back, -1)
        return torch.where(slot < self.sink, torch.where(slot <= last, slot, -1), ring)

    def write(self, keys: Tensor, values: Tensor, places: Tensor) -> None:
        """Take new tokens in.  keys, values: (B, G, Q, D) of all heads; places: (B or 1, Q)."""
        last = places.amax(1, keepdim=True)
        stays = (places >= 0) & ((places < self.sink) | (last - places < self.window))
        for to, new in ((self.keys, keys), (self.values, values)):
            new = new.index_select(1, self.index)
            if len(places) == 1:
                at = stays[0]
                to.index_copy_(2, self.slots(places[0, at]), new[:, :, at])
                continue
            for row, (at, where) in enumerate(zip(stays, places, strict=True)):
                to[row].index_copy_(1, self.slots(where[at]), new[row][:, at])

    def select(self, rows: Tensor) -> None:
        """Other rows of the batch in the place of these."""
        self.keys, self.values = self.keys[rows], self.values[rows]

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes


class RingLayer(CacheLayerMixin):
    """The cache of a layer whose heads have spans; attention reads it by `attend`.

    Raises: ConfigError in `crop`: what left a ring cannot come back.
    """

    is_croppable = False
    is_sliding = False

    def __init__(self, windows: Windows) -> None:
        super().__init__()
        self.windows = windows
        self.count = 0  # tokens so far, padding included
        self.rings: list[HeadRing] = []
        self.new: tuple[Tensor, Tensor] | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        sink, length = self.windows.sink, self.windows.length
        self.rings = [
            HeadRing(g, sink, min(sink + g.window, length), key_states, value_states)
            for g in self.windows.groups
        ]
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Any, Any]:
        """Hold the new keys and values until `attend`; returns the layer in their place."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.new = key_states, value_states
        self.count += key_states.shape[2]
        return self, self

    def attend(self, query: Tensor, seen: Seen, scale: float | None, dropout: float) -> Tensor:
        """Attention of the new tokens on those before and on themselves; then they are stored.

        query: (B, H, Q, D) -> (B, H, Q, D).
        """
        assert self.new is not None
        (keys, values), self.new = self.new, None
        if query.shape[2] == 1:
            return self._decoded(query, keys, values, seen, scale)
        places = seen.places[:, seen.offset : seen.keys]
        if seen.offset == 0:
            out = attended(
                query, keys, values, windows=self.windows, seen=seen, scale=scale, dropout=dropout
            )
        else:
            out = torch.empty_like(query)
            for ring in self.rings:
                heads = heads_of(query, ring.group.heads, keys.shape[1])
                out[:, heads] = self._onto(ring, query[:, heads], keys, values, seen, places, scale)
        with torch.no_grad():
            for ring in self.rings:
                ring.write(keys, values, places)
        return out

    def _decoded(
        self, query: Tensor, keys: Tensor, values: Tensor, seen: Seen, scale: Any
    ) -> Tensor:
        """One token of each row: stored first, then what is stored is read where it is."""
        place = self.count - 1
        out = torch.empty_like(query)
        for ring in self.rings:
            size, mask = min(self.count, ring.sink + ring.window), None
            if seen.kept is None:
                slot = place if place < ring.sink else ring.sink + (place - ring.sink) % ring.window
                ring.keys[:, :, slot] = keys[:, ring.index, 0]
                ring.values[:, :, slot] = values[:, ring.index, 0]
            else:
                ring.write(keys, values, seen.places[:, -1:])
                there = ring.places(seen.tokens + seen.kept[:, -1])[:, None, :size] >= 0
                mask = there | ~there.any(-1, keepdim=True)  # no row is empty
            heads = heads_of(query, ring.group.heads, keys.shape[1])
            stored = ring.keys[:, :, :size], ring.values[:, :, :size]
            out[:, heads] = grouped(query[:, heads], *stored, mask, scale)
        return out

    def _onto(
        self,
        ring: HeadRing,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        seen: Seen,
        places: Tensor,
        scale: Any,
    ) -> Tensor:
        """New tokens on a ring and on themselves."""
        at = list(ring.group.heads)
        old = ring.places(seen.tokens).expand(len(places), -1)
        key = torch.cat([old, places], 1)[:, None]
        own = torch.zeros(places.shape[1], key.shape[2], dtype=torch.bool, device=query.device)
        own[:, old.shape[1] :].fill_diagonal_(True)  # padding sees itself, so that no row is empty
        mask = self.windows.sees(ring.group, places[:, :, None], key) | own
        whole = [
            torch.cat([stored, new[:, at]], 2)
            for stored, new in ((ring.keys, keys), (ring.values, values))
        ]
        return grouped(query, whole[0], whole[1], mask, scale)

    def get_seq_length(self) -> int:
        return self.count

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.count + query_length, 0

    def get_max_length(self) -> int:
        return self.windows.length

    def reset(self) -> None:
        """Empty, with the same memory."""
        self.count = 0

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Only these rows of the batch."""
        for ring in self.rings:
            ring.select(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each row so often."""
        if self.rings:
            rows = torch.arange(len(self.rings[0].keys), device=self.device)
            self.batch_select_indices(rows.repeat_interleave(repeats))

    def crop(self, tokens_to_remove: int) -> None:
        """Nothing can be taken back.  Raises: ConfigError."""
        if tokens_to_remove:
            fix = "Detach the spans for assisted decoding: intarsia.spans.detach_spans(model)."
            want = "tokens that are only added"
            raise ConfigError("cache", got=f"{tokens_to_remove} tokens", want=want, fix=fix)

    @property
    def nbytes(self) -> int:
        """Of all keys and values."""
        return sum(ring.nbytes for ring in self.rings)
