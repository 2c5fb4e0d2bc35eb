"""The memory of the experts that are in: one block with a place for each, read ahead of its use."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

import torch
from torch import Tensor

from ...core.errors import ConfigError
from ...placement.cache import Cache, Key, Residency
from .reader import Reader, Reading
from .store import ExpertStore

ALIGNED = 64  # bytes: slots begin where a tensor of its own would
AHEAD = 2  # reads that are under way while an expert is computed


def stride(size: int) -> int:
    """Bytes from one slot to the next."""
    return -(-size // ALIGNED) * ALIGNED


class Slots:
    """One block of memory with a place for each resident expert, and who stands in it.

    A layer says which experts it computes, in ascending order. From then on a thread reads those
    that come next and are not in, while others are computed. The thread only reads: who gets a slot
    and who gives it is decided by the caller alone, so the same asks have the same decisions.
    """

    def __init__(self, store: ExpertStore, cache: Cache) -> None:
        self.store, self.cache = store, cache
        try:
            self.arena = torch.empty(cache.slots, stride(store.bytes), dtype=torch.uint8)
        except (RuntimeError, MemoryError) as error:
            got = f"no room for {cache.slots} experts of {store.bytes} bytes"
            fix = f"Try slots={max(2, cache.slots // 2)}."
            raise ConfigError("slots", got=got, want="fewer", fix=fix) from error
        self.seconds, self.bytes, self.layer = 0.0, 0, 0
        self.held: Key | None = None
        self.coming: deque[Key] = deque()  # of this layer, not taken yet
        self.taken: deque[tuple[Key, Reading | None]] = deque()  # pinned, perhaps being read
        self.thread = Reader("experts")
        self.parts: dict[tuple[int, int], dict[str, Tensor]] = {}  # layer, slot -> its tensors

    def ask(self, layer: int, experts: list[int]) -> None:
        """A layer's experts are about to be computed, in ascending order."""
        if layer <= self.layer:
            self.cache.begin()
        self.layer = layer
        self.cache.ask(layer, experts)
        self.coming = deque((layer, expert) for expert in experts)
        self._look_ahead()

    def expert(self, layer: int, number: int) -> dict[str, Tensor]:
        """An expert's tensors, in their slot until another one is asked for."""
        key = layer, number
        if self.held != key:
            self._give_held()
            self._skip_to(key)
            if not self.taken:
                self._take(key)
            self._arrived(*self.taken.popleft())
            self.held = key
            self._look_ahead()
        place = layer, self.cache.at[key]
        if (found := self.parts.get(place)) is None:  # views of the slot, whoever stands in it
            found = self.parts[place] = dict(self.store.views(layer, self.arena[place[1]]))
        return found

    def let_go(self) -> None:
        """Nothing is in use, and nothing comes."""
        self._give_held()
        self.coming.clear()
        while self.taken:
            key, reading = self.taken.popleft()
            if reading is not None and reading.exception() is not None:
                self.cache.drop(key)
            else:
                self.cache.give(key)

    def close(self) -> None:
        """End the reading thread and let go of the files."""
        self.thread.shutdown()
        self.store.close()

    def residency(self) -> Residency:
        return Residency(self.cache.hits, self.cache.loads, self.bytes, self.seconds)

    def _give_held(self) -> None:
        if self.held is not None:
            self.cache.give(self.held)
            self.held = None

    def _skip_to(self, key: Key) -> None:
        """Let go of what was expected before this one; a model may leave out what it asked for."""
        if self.taken and self.taken[0][0] != key:
            self.let_go()
        while not self.taken and self.coming and self.coming.popleft() != key:
            pass

    def _take(self, key: Key) -> None:
        """Pin an expert; if it is not in, a thread begins to read it."""
        taken = self.cache.take(key)
        reading = None
        if taken.load:
            into: Any = self.arena[taken.slot].numpy()
            reading = self.thread.submit(self.store.read, *key, memoryview(into))
        self.taken.append((key, reading))

    def _look_ahead(self) -> None:
        """Take what comes next, as long as a slot is free for it."""
        reads = sum(reading is not None for _, reading in self.taken)
        while self.coming and reads < AHEAD and len(self.cache.pinned) < self.cache.slots:
            key = self.coming.popleft()
            self._take(key)
            reads += self.taken[-1][1] is not None

    def _arrived(self, key: Key, reading: Reading | None) -> None:
        """Wait until an expert has been read."""
        if reading is None:
            return
        started = time.perf_counter()
        try:
            self.bytes += reading.result()
        except BaseException:
            self.cache.drop(key)  # what is in the slot is nobody's
            raise
        finally:
            self.seconds += time.perf_counter() - started
