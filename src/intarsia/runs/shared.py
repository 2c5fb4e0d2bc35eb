"""Work that runs have in common, done once: the newest few in memory, all of it on disk."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from torch import Tensor
from torch.utils.data import TensorDataset

from ..core.store import Store, key_of

T = TypeVar("T")
FORMAT = 3  # of the files


class Spent(NamedTuple):
    """Time on the wall, and of all cores of this process."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0

    @classmethod
    def now(cls) -> Spent:
        return cls(time.perf_counter(), time.process_time())

    def since(self, start: Spent) -> Spent:
        return Spent(self.seconds - start.seconds, self.cpu_seconds - start.cpu_seconds)

    def plus(self, extra: Spent) -> Spent:
        return Spent(self.seconds + extra.seconds, self.cpu_seconds + extra.cpu_seconds)


class SharedWork:
    """A memory of `keep` things of each kind, and a folder that several processes share.

    Things are told apart by everything they depend on; whoever asks must not change the result.
    folder: None keeps nothing on disk.
    """

    def __init__(self, folder: Path | None = None, keep: int = 3) -> None:
        self.folder, self.keep = folder, keep
        self._kinds: dict[str, OrderedDict[str, Any]] = {}

    def get(self, kind: str, inputs: Mapping[str, Any], make: Callable[[], T]) -> T:
        """Return the result of `make` for these inputs, from memory if it is there.

        kind: a name for results of this sort; the newest few of them stay in memory.
        """
        memory = self._kinds.setdefault(kind, OrderedDict())
        key = key_of(inputs)
        if key not in memory:
            memory[key] = make()
        # the newest stay: least recently used ones are dropped
        memory.move_to_end(key)
        while len(memory) > self.keep:
            memory.popitem(last=False)
        return memory[key]

    def tensors(
        self, kind: str, inputs: Mapping[str, Any], make: Callable[[], TensorDataset]
    ) -> tuple[TensorDataset, Spent]:
        """Return (x, label) pairs from memory or the folder, and the time that computing them took.

        kind: first part of the file's name. inputs: everything that determines the pairs. make:
        computes them, in one process only; other processes map the file into memory, so that they
        share its pages.
        """
        return self.get(kind, inputs, lambda: self._on_disk(kind, inputs, make))

    def _on_disk(
        self, kind: str, inputs: Mapping[str, Any], make: Callable[[], TensorDataset]
    ) -> tuple[TensorDataset, Spent]:
        """Return stored tensors, computing missing ones, and the time that it took."""
        start = Spent.now()
        if self.folder is None:
            return make(), Spent.now().since(start)

        def compute() -> tuple[dict[str, Tensor], dict[str, Any]]:
            """Compute the pairs, and the time that this took, as the store keeps them."""
            # the time is stored with the tensors: a run that finds them still counts it
            x, y = make().tensors
            return {"x": x, "y": y}, {"spent": Spent.now().since(start)}

        # a new format of the files makes new keys, so that old files are not read
        key = f"{kind}-{key_of({**inputs, 'format': FORMAT})}"
        tensors, facts = Store(self.folder).tensors(key, compute)
        return TensorDataset(tensors["x"], tensors["y"]), Spent(*facts["spent"])
