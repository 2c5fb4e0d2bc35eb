"""Random numbers of a forward: drawn once, the same ones when it is computed again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count as counter
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from ..core.errors import ShapeError

_NUMBERS = counter()
_SOURCES: WeakValueDictionary[int, RandomSource] = WeakValueDictionary()


class RandomSource(nn.Module):
    """What a module draws for the samples of a batch, a row each.

    Draws come from `generator` (on the CPU, so that every device sees the same ones). Where `hold`
    is set a draw is kept until `redraw`: a recomputation of the forward, as gradient checkpointing
    does, then meets the same numbers. `passes` is the number of copies of the batch that are
    stacked, each drawn anew. `shard` = (rank, world): each rank takes its rows of the joined
    batch's draws, so that data-parallel training draws what one process would.

    Raises: ShapeError for a batch that the copies do not divide, or of another size than the held
    draw.
    """

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.generator = generator
        self.hold, self.passes, self.shard = False, 1, (0, 1)
        self._held: dict[str, Tensor] = {}
        self._enter()

    def _enter(self) -> None:
        self._number = next(_NUMBERS)
        _SOURCES[self._number] = self

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._enter()  # a copy has a generator, and so a number, of its own

    def uniform(self, *shape: int) -> Tensor:
        """New numbers from U(0, 1), on the CPU."""
        return self._new("rand", shape)

    def normal(self, *shape: int) -> Tensor:
        """New numbers from N(0, 1), on the CPU."""
        return self._new("randn", shape)

    def _new(self, law: str, shape: Sequence[int]) -> Tensor:
        if (
            torch.compiler.is_compiling()
        ):  # a graph cannot hold a generator, but it can hold a number
            return _draw(self._number, law, shape)
        return getattr(torch, law)(shape, generator=self.generator)

    def redraw(self) -> None:
        """Forget what is held."""
        self._held = {}

    def held(self, name: str) -> Tensor | None:
        """What `keep` was given since `redraw`."""
        return self._held.get(name) if self.hold else None

    def keep(self, name: str, value: Tensor) -> None:
        """Hold a value until `redraw`, too, if draws are held."""
        if self.hold:
            self._held[name] = value

    def drawn(self, rows: int, draw: Callable[[int], Tensor]) -> Tensor:
        """A row for each sample, held or new; draw(n) gives n new rows.  Returns (rows, ...)."""
        found = self.held("draw")
        if found is None:
            if rows % self.passes:
                raise ShapeError(
                    "passes", got=f"{rows} rows", want=f"a multiple of {self.passes}",
                    fix="Stack whole copies of the batch.",
                )  # fmt: skip
            rank, world = self.shard
            each = rows // self.passes
            joined = [draw(each * world) for _ in range(self.passes)]
            found = torch.cat([part[rank * each : (rank + 1) * each] for part in joined])
            self.keep("draw", found)
        if len(found) != rows:
            raise ShapeError(
                "held draw", got=f"{rows} rows", want=f"{len(found)}, as when it was drawn",
                fix="Call redraw(model) before every batch.",
            )  # fmt: skip
        return found


@torch.library.custom_op(
    "intarsia::draw",
    mutates_args=(),
    schema="(int source, str law, SymInt[] shape) -> Tensor",
    tags=torch.Tag.nondeterministic_seeded,  # two calls are never merged into one
)
def _draw(source: int, law: str, shape: Sequence[int]) -> Tensor:
    return getattr(torch, law)(tuple(shape), generator=_SOURCES[source].generator)


@_draw.register_fake
def _(source: int, law: str, shape: Sequence[int]) -> Tensor:
    return torch.empty(tuple(shape))


def random_sources(model: nn.Module) -> dict[str, RandomSource]:
    """Everything inside a model that draws, by path."""
    return {n: m for n, m in model.named_modules() if isinstance(m, RandomSource)}


def redraw(model: nn.Module) -> None:
    """Let everything random in the routers of a model be drawn anew at its next call."""
    for draws in random_sources(model).values():
        draws.redraw()


@contextmanager
def passes(model: nn.Module, count: int) -> Iterator[None]:
    """Inside, the model's input is `count` stacked copies of a batch, each drawn apart."""
    found = random_sources(model).values()
    before = [draws.passes for draws in found]
    for draws in found:
        draws.passes = count
    try:
        yield
    finally:
        for draws, old in zip(found, before, strict=True):
            draws.passes = old
