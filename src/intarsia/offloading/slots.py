"""The memory of the experts that are in: one block with a place for each, read ahead of its use."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

import torch
from torch import Tensor

from ..core.errors import ConfigError
from ..placement.cache import Cache, Key, Residency
from .store import ExpertStore

ALIGNED = 64  # bytes: alignment of each slot, the same as torch's own tensors
AHEAD = 2  # reads that are under way while an expert is computed
GUESSES = 3  # reads for later layers at a time, while the present layer needs none


def stride(size: int) -> int:
    """Return the bytes from one slot to the next."""
    return -(-size // ALIGNED) * ALIGNED


class Slots:
    """Memory with a slot for each resident expert, and a thread that reads experts into it.

    A layer announces the experts that it computes, in ascending order (`ask`). While one is
    computed, the thread reads the next ones that are not in memory. Once all experts of a layer are
    there, the thread reads those that the policy foresees for later layers; such a guess is
    cancelled, if it has not begun, for the next layer's own reads. Only the caller decides which
    experts are evicted, never the thread, so that without a predictor the same requests lead to the
    same decisions.
    """

    def __init__(self, store: ExpertStore, cache: Cache, places: list[Any] | None = None) -> None:
        """Allocate memory for `cache.slots` experts, and start the thread that reads."""
        # places: what the store reads into, for each slot; None = memory of an expert's size
        self.store, self.cache = store, cache
        self.places = self._allocate() if places is None else places
        self.seconds, self.bytes, self.layer = 0.0, 0, 0
        self.turn = threading.Lock()  # held from `ask` to `let_go`, since forwards may overlap
        self.in_use: Key | None = None  # the expert that is computed now
        self.coming: deque[Key] = deque()  # of this layer, not taken yet
        self.taken: deque[tuple[Key, PendingRead | None]] = deque()  # pinned, perhaps being read
        self.guesses: dict[Key, PendingRead] = {}  # pinned, of later layers
        self.guessing = True
        self.thread = BlockReader("experts")
        self.parts: dict[tuple[int, int], dict[str, Tensor]] = {}  # layer, slot -> its tensors

    def _allocate(self) -> list[Any]:
        """Allocate the slots.  Raises: ConfigError where memory has no room for them."""
        count, size = self.cache.slots, self.store.bytes
        try:
            self.arena = torch.empty(count, stride(size), dtype=torch.uint8)
        except (RuntimeError, MemoryError) as error:
            got = f"no room for {count} experts of {size} bytes"
            fix = f"Try slots={max(2, count // 2)}."
            raise ConfigError("slots", got=got, want="fewer", fix=fix) from error
        raw: Any = self.arena.numpy()
        return [memoryview(row) for row in raw]

    def ask(self, layer: int, experts: list[int]) -> None:
        """Announce the experts that a layer is about to compute, and begin to read them."""
        # an earlier layer again: another forward has begun
        if layer <= self.layer:
            self.cache.begin()
        self.layer = layer
        self._clear_guesses({(layer, expert) for expert in experts})
        self.guessing = True
        self.cache.ask(layer, experts)
        self.coming = deque((layer, expert) for expert in experts)
        self._look_ahead()

    def expert(self, layer: int, number: int) -> dict[str, Tensor]:
        """Return an expert's tensors by name, after it was read into its slot.

        The tensors are valid until another expert is requested.
        """
        key = layer, number
        self._bring(key)
        place = layer, self.cache.at[key]
        # views of the slot's memory stay valid for whichever expert is in it
        if (tensors := self.parts.get(place)) is None:
            tensors = self.parts[place] = dict(self.store.views(layer, self.arena[place[1]]))
        return tensors

    def _bring(self, key: Key) -> None:
        """Wait until an expert is in its slot, and begin to read the next ones."""
        if self.in_use != key:
            self._release_in_use()
            self._skip_to(key)
            if not self.taken:
                self._pin_expert(key)
            self._wait_for(*self.taken.popleft())
            self.in_use = key
            self._look_ahead()

    def let_go(self) -> None:
        """Release all experts of the layer: none is in use, and none is expected."""
        self._release_in_use()
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
        """Return hits, loads, bytes and seconds since the model was opened."""
        hits, loads, ahead = self.cache.hits, self.cache.loads, self.cache.ahead
        return Residency(hits, loads, self.bytes, self.seconds, ahead)

    def _release_in_use(self) -> None:
        if self.in_use is not None:
            self.cache.give(self.in_use)
            self.in_use = None

    def _skip_to(self, key: Key) -> None:
        """Drop the announced experts before a given one, which the model did not compute."""
        if self.taken and self.taken[0][0] != key:
            self.let_go()
        while not self.taken and self.coming and self.coming.popleft() != key:
            pass

    def _pin_expert(self, key: Key) -> None:
        """Reserve a slot for an expert until it was used, and queue its read if need be."""
        entry = self.cache.take(key)
        reading = self.guesses.pop(key, None)
        if reading is not None:
            self.cache.give(key)  # the guess's own pin
        elif entry.load:
            reading = self._read(key, entry.slot)
        self.taken.append((key, reading))

    def _read(self, key: Key, slot: int) -> PendingRead:
        return self.thread.submit(self.store.read, *key, self.places[slot])

    def _clear_guesses(self, needed: set[Key]) -> None:
        """Cancel reads for later layers that are not needed, and release those that ended."""
        # needed: (layer, expert) of the layer that comes next
        for key, reading in list(self.guesses.items()):
            over = reading.done()
            if key in needed or not (over or reading.cancel()):
                continue
            del self.guesses[key]
            if over and reading.exception() is None:
                self.bytes += reading.result()
                self.cache.give(key)
            else:
                self.cache.drop(key)

    def guess(self) -> None:
        """Begin to read experts that later layers will probably need, while the thread is idle."""
        # two slots stay free for experts that are requested
        pinned, room = self.cache.pinned, self.cache.slots - 2
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
        """Reserve slots for the next announced experts, up to two reads ahead, then guess."""
        # never more than two reads ahead: a slot that is read into is lost to the cache
        reads = sum(reading is not None for _, reading in self.taken)
        while self.coming and reads < AHEAD and len(self.cache.pinned) < self.cache.slots:
            key = self.coming.popleft()
            self._pin_expert(key)
            reads += self.taken[-1][1] is not None
        if not self.coming:
            self.guess()

    def _wait_for(self, key: Key, reading: PendingRead | None) -> None:
        """Wait until an expert has been read, None = it is in memory; count bytes and seconds."""
        if reading is None:
            return
        started = time.perf_counter()
        try:
            self.bytes += reading.result()
        except BaseException:
            self.cache.drop(key)  # the slot holds a part of an expert at most
            raise
        finally:
            self.seconds += time.perf_counter() - started


class PendingRead:
    """Read that is under way, or waits for those before it; `result` waits for it."""

    __slots__ = ("_arguments", "_begun", "_ended", "_error", "_job", "_size")

    def __init__(self, job: Callable[..., int], arguments: tuple[Any, ...]) -> None:
        """Prepare a read that has not begun; job: reads, and returns the number of bytes."""
        self._job, self._arguments = job, arguments
        self._size, self._error = 0, None
        # _begun is locked once the read begins, _ended until it ends: cheaper than an Event
        self._begun, self._ended = threading.Lock(), threading.Lock()
        self._ended.acquire()

    def run(self) -> None:
        """Carry the read out, on the reading thread; do nothing if it was cancelled."""
        if self._begun.acquire(blocking=False):
            try:
                self._size = self._job(*self._arguments)
            except BaseException as error:  # raised where the result is asked for
                self._error = error
        self._arguments = ()
        self._ended.release()

    def cancel(self) -> bool:
        """Cancel the read; return False if it has begun, and runs to its end."""
        return self._begun.acquire(blocking=False)

    def done(self) -> bool:
        """Return True if the read has ended."""
        return not self._ended.locked()

    def exception(self) -> BaseException | None:
        """Wait for the end, and return the error or None."""
        with self._ended:
            return self._error

    def result(self) -> int:
        """Wait for the end of the read, and return its bytes.  Raises: the error of the read."""
        with self._ended:
            if self._error is not None:
                raise self._error
            return self._size


class BlockReader:
    """Reader that carries out reads in the order of their submission, on a thread of its own.

    An executor's futures take 30 us for each; half of that is more than a small expert's product.
    """

    def __init__(self, name: str) -> None:
        self._jobs: SimpleQueue[PendingRead | None] = SimpleQueue()
        # a thread that is not joined must not keep a program from ending
        self._thread = threading.Thread(target=_work, args=(self._jobs,), name=name, daemon=True)
        self._thread.start()

    def submit(self, job: Callable[..., int], *arguments: Any) -> PendingRead:
        """Queue job(*arguments) behind the reads before it; job returns a number of bytes."""
        reading = PendingRead(job, arguments)
        self._jobs.put(reading)
        return reading

    def shutdown(self) -> None:
        """End the thread once all that was submitted has run."""
        self._jobs.put(None)
        self._thread.join()


def _work(jobs: SimpleQueue[PendingRead | None]) -> None:
    """Run the reads of a queue until it ends with None."""
    while (reading := jobs.get()) is not None:
        reading.run()
