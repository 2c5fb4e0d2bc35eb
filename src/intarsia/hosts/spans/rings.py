"""Caches that keep what heads with spans can still see: a sink and a ring for each head."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from ...core.errors import ConfigError
from .windows import HeadGroup, TokenPositions, Windows, attended, grouped, heads_of


class HeadRing:
    """Cache of keys and values for the heads of one span, a ring buffer written in place.

    The first `sink` slots hold the first tokens of a text; slot sink + (p - sink) mod window holds
    the latest token with a place p in the text that has this remainder. Keys are stored with their
    rotations, so that the order of slots does not matter.
    keys, values: (B, heads, sink + window, D).
    """

    def __init__(
        self, group: HeadGroup, sink: int, size: int, like: Tensor, values: Tensor
    ) -> None:
        """Allocate `size` slots for each head of a group, `sink` of them for the first tokens."""
        self.group, self.sink = group, sink
        self.window = size - sink
        # like: keys of a batch, (B, G, Q, D)
        shape = (like.shape[0], len(group.heads), size)
        self.keys = like.new_zeros(*shape, like.shape[-1])
        self.values = values.new_zeros(*shape, values.shape[-1])
        self.index = torch.tensor(group.heads, device=like.device)

    def slots(self, places: Tensor) -> Tensor:
        """Return the slots of tokens at these places of their texts; same shape."""
        return torch.where(
            places < self.sink, places, self.sink + (places - self.sink) % self.window
        )

    def places(self, tokens: Tensor) -> Tensor:
        """Return the place in the text of the token in each slot, -1 for an empty slot.

        tokens: (B,), number of tokens stored so far. Returns (B, slots).
        """
        # sinks stay in the slots of their places; a ring holds the newest token of each remainder
        slot = torch.arange(self.sink + self.window, device=tokens.device)
        last = tokens[:, None] - 1
        # how many tokens ago a slot of the ring was written
        back = (last - self.sink - (slot - self.sink)) % self.window
        ring = torch.where(last - back >= self.sink, last - back, -1)
        return torch.where(slot < self.sink, torch.where(slot <= last, slot, -1), ring)

    def write(self, keys: Tensor, values: Tensor, places: Tensor) -> None:
        """Store keys and values of new tokens, overwriting those that heads no longer see.

        keys, values: (B, G, Q, D) of all heads; places: (B or 1, Q) in the text, -1 for padding.
        """
        # of many new tokens a ring keeps those that no later one overwrites
        last = places.amax(1, keepdim=True)
        stored = (places >= 0) & ((places < self.sink) | (last - places < self.window))
        for buffer, new in ((self.keys, keys), (self.values, values)):
            new = new.index_select(1, self.index)
            if len(places) == 1:
                selected = stored[0]
                buffer.index_copy_(2, self.slots(places[0, selected]), new[:, :, selected])
                continue
            for row, (selected, row_places) in enumerate(zip(stored, places, strict=True)):
                buffer[row].index_copy_(1, self.slots(row_places[selected]), new[row][:, selected])

    def select(self, rows: Tensor) -> None:
        """Keep these rows of the batch, in this order."""
        self.keys, self.values = self.keys[rows], self.values[rows]

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes


class RingLayer(CacheLayerMixin):
    """Cache of one layer with heads of different spans: a ring buffer for each group of heads.

    Raises: ConfigError in `crop`: a token that was overwritten cannot come back.
    """

    is_croppable = False
    is_sliding = False

    def __init__(self, windows: Windows) -> None:
        """Create an empty cache for one layer; windows: how far each of its heads can see."""
        super().__init__()
        self.windows = windows
        self.count = 0  # tokens so far, padding included
        self.rings: list[HeadRing] = []
        self.new: tuple[Tensor, Tensor] | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate a ring buffer for each group of heads with an equal window."""
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
        """Hold the new keys and values until `attend` is called; return this layer for them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.new = key_states, value_states
        self.count += key_states.shape[2]
        return self, self

    def attend(
        self, query: Tensor, positions: TokenPositions, scale: float | None, dropout: float
    ) -> Tensor:
        """Compute attention of the new tokens to earlier ones and to each other, then store them.

        query: (B, H, Q, D); scale: of the scores, None = 1 / sqrt(D). Returns (B, H, Q, D).
        """
        assert self.new is not None
        (keys, values), self.new = self.new, None
        # 1. decoding: one token, the rings are read where they are
        if query.shape[2] == 1:
            return self._attend_one(query, keys, values, positions, scale)
        places = positions.places[:, positions.offset : positions.keys]
        # 2. a prompt: nothing is stored yet; 3. a further chunk: rings and the chunk itself
        if positions.offset == 0:
            out = attended(
                query,
                keys,
                values,
                windows=self.windows,
                positions=positions,
                scale=scale,
                dropout=dropout,
            )
        else:
            out = torch.empty_like(query)
            for ring in self.rings:
                heads = heads_of(query, ring.group.heads, keys.shape[1])
                out[:, heads] = self._attend_ring(
                    ring, query[:, heads], keys, values, positions, places, scale
                )
        # stored after they were read: a chunk may overwrite what its own queries still see
        with torch.no_grad():
            for ring in self.rings:
                ring.write(keys, values, places)
        return out

    def _attend_one(
        self, query: Tensor, keys: Tensor, values: Tensor, positions: TokenPositions, scale: Any
    ) -> Tensor:
        """Store key and value of one new token in each row; compute its attention, (B, H, 1, D)."""
        place = self.count - 1
        out = torch.empty_like(query)
        for ring in self.rings:
            size, mask = min(self.count, ring.sink + ring.window), None
            if positions.real is None:
                slot = place if place < ring.sink else ring.sink + (place - ring.sink) % ring.window
                ring.keys[:, :, slot] = keys[:, ring.index, 0]
                ring.values[:, :, slot] = values[:, ring.index, 0]
            else:
                ring.write(keys, values, positions.places[:, -1:])
                # rows with padding have fewer tokens: slots that they have not filled are masked
                filled = ring.places(positions.tokens + positions.real[:, -1])[:, None, :size] >= 0
                mask = filled | ~filled.any(-1, keepdim=True)  # no row is empty
            heads = heads_of(query, ring.group.heads, keys.shape[1])
            stored = ring.keys[:, :, :size], ring.values[:, :, :size]
            out[:, heads] = grouped(query[:, heads], *stored, mask, scale)
        return out

    def _attend_ring(
        self,
        ring: HeadRing,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        positions: TokenPositions,
        places: Tensor,
        scale: Any,
    ) -> Tensor:
        """Compute attention of new tokens to a group's stored ones, and to each other."""
        # query: (B, heads, Q, D); keys, values: (B, G, Q, D)
        heads = list(ring.group.heads)
        # keys are the ring's, then the new tokens' own
        old = ring.places(positions.tokens).expand(len(places), -1)
        key = torch.cat([old, places], 1)[:, None]
        is_self = torch.zeros(places.shape[1], key.shape[2], dtype=torch.bool, device=query.device)
        # padding sees itself, so that no row is empty
        is_self[:, old.shape[1] :].fill_diagonal_(True)
        mask = self.windows.sees(ring.group, places[:, :, None], key) | is_self
        joined = [
            torch.cat([stored, new[:, heads]], 2)
            for stored, new in ((ring.keys, keys), (ring.values, values))
        ]
        return grouped(query, joined[0], joined[1], mask, scale)

    def get_seq_length(self) -> int:
        return self.count

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.count + query_length, 0

    def get_max_length(self) -> int:
        return self.windows.length

    def reset(self) -> None:
        """Empty the cache, with the same memory."""
        self.count = 0

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep only these rows of the batch."""
        for ring in self.rings:
            ring.select(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row of the batch `repeats` times."""
        if self.rings:
            rows = torch.arange(len(self.rings[0].keys), device=self.device)
            self.batch_select_indices(rows.repeat_interleave(repeats))

    def crop(self, tokens_to_remove: int) -> None:
        """Refuse to remove tokens: overwritten ones cannot come back.  Raises: ConfigError."""
        if tokens_to_remove:
            fix = "Detach the spans for assisted decoding: intarsia.spans.detach_spans(model)."
            want = "tokens that are only added"
            raise ConfigError("cache", got=f"{tokens_to_remove} tokens", want=want, fix=fix)

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values."""
        return sum(ring.nbytes for ring in self.rings)
