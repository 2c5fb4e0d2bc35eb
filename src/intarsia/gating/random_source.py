"""Random numbers of a forward: drawn once, the same ones when it is computed again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from ..core.errors import ShapeError
from .context import Context, ReadsContext

_NUMBERS = count()
_SOURCES: WeakValueDictionary[int, RandomSource] = WeakValueDictionary()


class RandomSource(ReadsContext):
    """A source of random numbers for the samples of a batch, one row each.

    Draws come from `generator` (on the CPU, so that every device sees the same ones). How long they
    are held, for how many stacked copies of a batch, and for which rows of a batch that several
    processes share, is set in the `Context`.
    """

    def __init__(
        self, generator: torch.Generator | None = None, context: Context | None = None
    ) -> None:
        super().__init__()
        self.generator = seeded_by(None) if generator is None else generator
        if context is not None:
            self.context = context
        self._register()

    def _register(self) -> None:
        """Register the source under a number, by which a compiled graph finds its generator."""
        self._number = next(_NUMBERS)
        _SOURCES[self._number] = self

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._register()  # a copy has a generator, and so a number, of its own

    def uniform(self, *shape: int) -> Tensor:
        """Draw new numbers from U(0, 1), on the CPU."""
        return self._draw_new("rand", shape)

    def normal(self, *shape: int) -> Tensor:
        """Draw new numbers from N(0, 1), on the CPU."""
        return self._draw_new("randn", shape)

    def gumbel(self, *shape: int) -> Tensor:
        """Draw new numbers from the standard Gumbel law, on the CPU."""
        # -log(-log u); the clamps keep both logarithms finite
        return -(-self.uniform(*shape).clamp_min(1e-20).log()).clamp_min(1e-20).log()

    def _draw_new(self, law: str, shape: Sequence[int]) -> Tensor:
        """Draw numbers of a shape.  law: the name of torch's function, "rand" or "randn"."""
        if torch.compiler.is_compiling():  # a graph cannot hold a generator, but it can its number
            return _draw(self._number, law, shape)
        return getattr(torch, law)(shape, generator=self.generator)

    @property
    def held(self) -> Tensor | None:
        """The draw for this batch, if there is one and draws are held."""
        return self.context.held.get(self) if self.context.hold else None

    def drawn(self, rows: int, draw: Callable[[int], Tensor]) -> Tensor:
        """Return a random row for each row of the batch: new ones, or those stored for this batch.

        With context.passes = p they are p copies of its samples, one after the other, and each copy
        gets random rows of its own. draw: draw(n) returns n new random rows (n, ...). If
        context.hold is True the rows are stored until the next batch, so that a recomputed forward
        gets the same numbers. Returns (rows, ...).
        Raises: ShapeError if `rows` is no multiple of `passes`, or differs from the stored draw's.
        """
        context, held = self.context, self.held
        # nothing stored for this batch: draw now
        if held is None:
            if rows % context.passes:
                got, fix = f"{rows} rows", "Stack whole copies of the batch."
                raise ShapeError("passes", got=got, want=f"a multiple of {context.passes}", fix=fix)
            rank, world = context.shard
            samples = rows // context.passes
            # every rank draws for the joined batch and takes its own rows
            joined = [draw(samples * world) for _ in range(context.passes)]
            held = torch.cat([part[rank * samples : (rank + 1) * samples] for part in joined])
            if context.hold:  # a recomputed forward finds the same numbers
                context.held[self] = held
        if len(held) != rows:
            want = f"{len(held)}, as when it was drawn"
            fix = "Call redraw(model) before every batch."
            raise ShapeError("held draw", got=f"{rows} rows", want=want, fix=fix)
        return held


@torch.library.custom_op(
    "intarsia::draw",
    mutates_args=(),
    schema="(int source, str law, SymInt[] shape) -> Tensor",
    tags=torch.Tag.nondeterministic_seeded,  # two calls are never merged into one
)
def _draw(source: int, law: str, shape: Sequence[int]) -> Tensor:
    """Draw by the generator of source number `source`.  law: "rand" or "randn" of torch."""
    return getattr(torch, law)(tuple(shape), generator=_SOURCES[source].generator)


@_draw.register_fake
def _(source: int, law: str, shape: Sequence[int]) -> Tensor:
    """Return an empty tensor of the shape that `_draw` draws, for tracing without data."""
    return torch.empty(tuple(shape))


def seeded_by(generator: torch.Generator | None) -> torch.Generator:
    """Return a new generator, with the other one's next draw as its seed; None = torch's own."""
    return torch.Generator().manual_seed(int(torch.randint(2**62, (), generator=generator)))


def random_sources(model: nn.Module) -> dict[str, RandomSource]:
    """Return every `RandomSource` inside a model, by path."""
    return {n: m for n, m in model.named_modules() if isinstance(m, RandomSource)}
