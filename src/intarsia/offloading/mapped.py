"""Packed experts in their mapped file: of as many as there are slots, the pages are in memory."""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Iterator
from typing import Any, cast

from torch import Tensor, nn

from ..core.errors import TargetError
from ..hosts.in_memory import is_mapped, mapped_ranges
from ..kernels.native.pages import advise
from ..mixtures.packed_experts import Packed, PackedStack, packed_experts
from ..placement.cache import Cache, Key
from .slots import Slots

SLOTS = "intarsia_slots"  # the attribute of an experts module that is offloaded
# MADV_DONTNEED, MADV_NOHUGEPAGE, and MADV_POPULATE_READ since Linux 5.14
DROP, SMALL_PAGES, POPULATE = 4, 15, 22


class MappedStore:
    """Packed experts of an opened model, each some runs of bytes of a file that is mapped.

    Nothing is copied: an expert is brought in by asking for its pages, and let go by giving them
    back. Its bytes stay where they are, so that products have the same bits as in memory.
    Raises: TargetError for a model without packed experts, or with such that are in no file.
    """

    def __init__(self, model: nn.Module) -> None:
        self.modules: dict[str, Packed] = packed_experts(model)
        stacks = [list(cast(Any, m.stacks.values())) for m in self.modules.values()]
        want, fix = "packed experts in a file", "Open the folder that `intarsia compress` wrote."
        if not self.modules:
            got = f"a {type(model).__name__} without packed experts"
            raise TargetError("model to offload", got=got, want=want, fix=fix)
        self.paths = list(self.modules)
        # layer -> expert -> its runs of bytes
        self.layers = [[_runs(some, e) for e in range(some[0].sizes[0])] for some in stacks]
        self.experts = max(map(len, self.layers))
        self.total = sum(map(len, self.layers))
        self.bytes = max(sum(size for _, size in runs) for layer in self.layers for runs in layer)
        # addresses are only good while their tensors are there
        self.held = [tensor for some in stacks for stack in some for tensor in stack.buffers()]
        # memory of no file would be lost with its pages
        ranges = mapped_ranges()
        if ranges is None or not all(is_mapped(tensor, ranges) for tensor in self.held):
            got, want = "packed experts in memory", "experts mapped from a file, on Linux"
            raise TargetError("model to offload", got=got, want=want, fix=fix)
        # a large page would bring an expert's neighbours
        for tensor in self.held:
            begin = tensor.data_ptr() - tensor.data_ptr() % mmap.PAGESIZE
            advise(begin, tensor.data_ptr() + tensor.nbytes - begin, SMALL_PAGES)
        for layer in self.layers:
            for runs in layer:
                _drop(runs)

    def read(self, layer: int, expert: int, place: list[Key]) -> int:
        """Bring the pages of an expert, and give back the pages of the one before it.

        place: the slot, a list of the expert that is in it. Returns the expert's bytes.
        """
        for before, number in place:
            _drop(self.layers[before][number])
        place[:] = [(layer, expert)]
        runs = self.layers[layer][expert]
        for first, size in runs:
            begin = first - first % mmap.PAGESIZE
            # refused by an older Linux, where the product itself waits for the pages
            advise(begin, first + size - begin, POPULATE)
        return sum(size for _, size in runs)

    def close(self) -> None:
        """Do nothing: the model keeps its file."""


class MappedSlots(Slots):
    """Slots of experts with their bytes in a mapped file; `store` is a `MappedStore`."""

    def __init__(self, store: MappedStore, cache: Cache) -> None:
        places: list[Any] = [[] for _ in range(cache.slots)]
        super().__init__(cast(Any, store), cache, places)

    def expert(self, layer: int, number: int) -> dict[str, Tensor]:
        """Wait until an expert's pages are there; its tensors are in its stacks."""
        self._bring((layer, number))
        return {}


class InTurn:
    """Order in which a packed layer computes its experts: each is brought before its products."""

    def __init__(self, slots: Slots, layer: int) -> None:
        self.slots, self.layer = slots, layer

    def __call__(self, experts: list[int]) -> Iterator[int]:
        """Yield experts, ascending, each when it is in memory."""
        with self.slots.turn:
            try:
                self.slots.ask(self.layer, experts)
                for expert in experts:
                    self.slots.expert(self.layer, expert)
                    yield expert
            finally:
                self.slots.let_go()
            self.slots.guess()


def attach_mapped(store: MappedStore, slots: MappedSlots) -> None:
    """Let a model's packed layers ask for their experts.  Raises: TargetError for a second time."""
    for layer, (path, module) in enumerate(store.modules.items()):
        if SLOTS in vars(module):
            fix = "Open the folder again."
            got, want = "experts that are offloaded", "a model as it was opened"
            raise TargetError(f"experts {path}", got=got, want=want, fix=fix)
        vars(module)[SLOTS] = slots, layer
        module.turns = InTurn(slots, layer)


def _runs(stacks: Iterable[PackedStack], expert: int) -> list[tuple[int, int]]:
    """Return address and size of each tensor of an expert."""
    parts = (tensor for stack in stacks for tensor in stack.of(expert).values())
    return [(tensor.data_ptr(), tensor.nbytes) for tensor in parts]


def _drop(runs: Iterable[tuple[int, int]]) -> None:
    """Give back the pages that an expert has to itself; they are read again when they are used."""
    for first, size in runs:
        begin, end = -(-first // mmap.PAGESIZE), (first + size) // mmap.PAGESIZE
        if begin < end:
            advise(begin * mmap.PAGESIZE, (end - begin) * mmap.PAGESIZE, DROP)
