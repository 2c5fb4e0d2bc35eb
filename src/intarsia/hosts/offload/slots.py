"""The memory of the experts that are in: one block with a place for each, read ahead of its use."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

import torch
from torch import Tensor

from ...core.errors import ConfigError
from ...placement.cache import Cache, Key, Residency
from .reader import BlockReader, PendingRead
from .store import ExpertStore

ALIGNED = 64  # bytes: slots begin where a tensor of its own would
AHEAD = 2  # reads that are under way while an expert is computed
GUESSES = 3  # reads for later layers that are under way while a layer has none of its own


def stride(size: int) -> int:
    """Bytes from one slot to the next."""
    return -(-size // ALIGNED) * ALIGNED


class Slots:
    """One block of memory with a place for each resident expert, and who stands in it.

    A layer says which experts it computes, in ascending order. From then on a thread reads those
    that come next and are not in, while others are computed. Once it has all of them, it reads what
    the policy foresees for later layers; a read of these that has not begun gives way to the next
    layer's own. The thread only reads: who gets a slot and who gives it is decided by the caller
    alone. Without a predictor the same asks have the same decisions.
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
        self.taken: deque[tuple[Key, PendingRead | None]] = deque()  # pinned, perhaps being read
        self.guesses: dict[Key, PendingRead] = {}  # pinned, of later layers
        self.guessing = True
        self.thread = BlockReader("experts")
        self.parts: dict[tuple[int, int], dict[str, Tensor]] = {}  # layer, slot -> its tensors
        raw: Any = self.arena.numpy()
        self.places = [memoryview(row) for row in raw]

    def ask(self, layer: int, experts: list[int]) -> None:
        """A layer's experts are about to be computed, in ascending order."""
        if layer <= self.layer:
            self.cache.begin()
        self.layer = layer
        self._give_way({(layer, expert) for expert in experts})
        self.guessing = True
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
        hits, loads, ahead = self.cache.hits, self.cache.loads, self.cache.ahead
        return Residency(hits, loads, self.bytes, self.seconds, ahead)

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
        reading = self.guesses.pop(key, None)
        if reading is not None:
            self.cache.give(key)  # the guess's own pin
        elif taken.load:
            reading = self._read(key, taken.slot)
        self.taken.append((key, reading))

    def _read(self, key: Key, slot: int) -> PendingRead:
        return self.thread.submit(self.store.read, *key, self.places[slot])

    def _give_way(self, asked: set[Key]) -> None:
        """Let go of guesses: those that are over, and those that have not begun and are not asked.

        One that failed is forgotten: who asks for it is told then.
        """
        for key, reading in list(self.guesses.items()):
            over = reading.done()
            if key in asked or not (over or reading.cancel()):
                continue
            del self.guesses[key]
            if over and reading.exception() is None:
                self.bytes += reading.result()
                self.cache.give(key)
            else:
                self.cache.drop(key)

    def guess(self) -> None:
        """Begin to read what later layers are foreseen to ask for; the thread is about to rest."""
        pinned, room = self.cache.pinned, self.cache.slots - 2  # two are for what is asked
        if not self.guessing or len(self.guesses) == GUESSES or len(pinned) >= room:
            return
        for key in self.cache.policy.coming():
            if key in self.cache.at:
                continue
            brought = self.cache.bring(key)
            if brought is None:
                self.guessing = False  # until the next layer
                return
            self.guesses[key] = self._read(key, brought.slot)
            if len(self.guesses) == GUESSES or len(pinned) >= room:
                return

    def _look_ahead(self) -> None:
        """Take what comes next, as long as a slot is free for it; then guess."""
        reads = sum(reading is not None for _, reading in self.taken)
        while self.coming and reads < AHEAD and len(self.cache.pinned) < self.cache.slots:
            key = self.coming.popleft()
            self._take(key)
            reads += self.taken[-1][1] is not None
        if not self.coming:
            self.guess()

    def _arrived(self, key: Key, reading: PendingRead | None) -> None:
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
