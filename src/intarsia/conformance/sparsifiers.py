"""Laws of what prunes a layer: as dense as it says, 0 elsewhere, by the statistics it names."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..core import Card, Partition
from ..scores.statistics import NEEDS, Statistics
from .cards import tiny
from .made import normal, require_own_draws, seeded
from .verdict import Broken, Law, laws_of, require, require_close, require_equal, require_tag

OUT, IN, ROWS = 6, 16, 60


def weight() -> Tensor:
    return normal(OUT, IN)


def rows() -> Tensor:
    """Correlated inputs; the third channel is always 0."""
    x = normal(ROWS, IN, seed=2) @ normal(IN, IN, seed=3) + 0.5
    x[:, 2] = 0
    return x


def _edit(card: Card, seen: Statistics | None = None, w: Tensor | None = None) -> Any:
    config: Any = tiny(card)
    seen = Statistics.of(rows(), needs=NEEDS) if seen is None else seen
    found: tuple[Partition, Tensor] = config.edit("w", weight() if w is None else w, seen, seeded())
    return found[0].mask("w", 0), found[1]


def prunes_to_its_density(card: Card) -> None:
    """`density` of the layer is kept, within one weight a row, and all else is exactly 0."""
    given = weight()
    kept, new = _edit(card, w=given)
    off = abs(int(kept.sum()) - tiny(card).density * kept.numel())
    require(off <= OUT, f"{int(kept.sum())} of {kept.numel()}", "its density", "Count exactly.")
    require(not bool(new[~kept].any()), "numbers outside the mask", "0", "Mask the weight.")
    require_equal((new.shape, new.dtype), (given.shape, given.dtype), "Keep the type.")
    require(torch.equal(given, weight()), "a weight written to", "it as it was", "Copy it.")


def compensates_exactly_when_tagged(card: Card) -> None:
    """Without the tag kept weights are as they were."""
    kept, new = _edit(card)
    changed = not torch.equal(new[kept], weight()[kept])
    require_tag(card, "compensates", changed, "kept weights that change")


def prunes_by_what_it_needs(card: Card) -> None:
    """Statistics that are not in `needs` are not read."""
    want = _edit(card)
    for found, of in zip(
        _edit(card, Statistics.of(rows(), needs=tiny(card).needs)), want, strict=True
    ):
        require(torch.equal(found, of), "another result", "the same", "Name all that is read.")


def prunes_alike_in_two_processes(card: Card) -> None:
    """Statistics of two halves, added up, give the same masks."""
    halves = [Statistics.of(part, needs=NEEDS) for part in rows().chunk(2)]
    kept, new = _edit(card, halves[0] + halves[1])
    want = _edit(card)
    require(torch.equal(kept, want[0]), "another mask of two halves", "the same", "Read sums.")
    require_close(new, want[1], "weights of two halves", "Read sums.")


def prunes_by_its_generator(card: Card) -> None:
    """One seed, one result, whatever torch's own generator does."""
    require_own_draws(lambda: _edit(card), "other results", "Draw from the generator.")


def leaves_a_dense_layer_dense(card: Card) -> None:
    """With a density of 1 nothing changes, but for inputs that are always 0."""
    config: Any = tiny(card)
    if "density" not in getattr(config, "__dataclass_fields__", {}):
        return
    dense = type(config)(density=1.0)
    _, new = dense.edit("w", weight(), Statistics.of(rows(), needs=NEEDS), seeded())
    seen = [j for j in range(IN) if j != 2]
    if not torch.equal(new[:, seen], weight()[:, seen]):
        raise Broken("another weight at density 1", "the same", "Keep them all.")


SPARSIFIER_LAWS: tuple[Law, ...] = laws_of(__name__)
