"""Laws of methods that prune a layer: density, zeros elsewhere, the statistics they name."""

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
    """Return the weight that the laws prune, (OUT, IN)."""
    return normal(OUT, IN)


def rows() -> Tensor:
    """Return correlated inputs with a third channel that is always 0."""
    # correlated, so that compensation has something to do
    x = normal(ROWS, IN, seed=2) @ normal(IN, IN, seed=3) + 0.5
    x[:, 2] = 0
    return x


def _edit(card: Card, statistics: Statistics | None = None, w: Tensor | None = None) -> Any:
    """Prune a layer by a card's method; return the mask (True = kept) and the new weight."""
    config: Any = tiny(card)
    statistics = Statistics.of(rows(), needs=NEEDS) if statistics is None else statistics
    result: tuple[Partition, Tensor] = config.edit(
        "w", weight() if w is None else w, statistics, seeded()
    )
    return result[0].mask("w", 0), result[1]


def prunes_to_its_density(card: Card) -> None:
    """Check that the method keeps the share `density` of a layer's weights, and sets the rest to 0.

    The number of kept weights may be off by one for each row.
    """
    original = weight()
    mask, new = _edit(card, w=original)
    off = abs(int(mask.sum()) - tiny(card).density * mask.numel())
    require(off <= OUT, f"{int(mask.sum())} of {mask.numel()}", "its density", "Count exactly.")
    require(not bool(new[~mask].any()), "numbers outside the mask", "0", "Mask the weight.")
    require_equal((new.shape, new.dtype), (original.shape, original.dtype), "Keep the type.")
    require(torch.equal(original, weight()), "a weight written to", "it as it was", "Copy it.")


def compensates_exactly_when_tagged(card: Card) -> None:
    """Check that the card has the tag "compensates" exactly if kept weights change."""
    mask, new = _edit(card)
    # only where the mask keeps them
    changed = not torch.equal(new[mask], weight()[mask])
    require_tag(card, "compensates", changed, "kept weights that change")


def prunes_by_what_it_needs(card: Card) -> None:
    """Check that the method reads no statistics of the inputs but those that its `needs` names.

    card: the method's entry in the catalogue; `needs` is an attribute of the method. The edited
    weights must not change if only these statistics are collected.
    """
    want = _edit(card)
    for got, expected in zip(
        _edit(card, Statistics.of(rows(), needs=tiny(card).needs)), want, strict=True
    ):
        require(torch.equal(got, expected), "another result", "the same", "Name all that is read.")


def prunes_alike_in_two_processes(card: Card) -> None:
    """Check that statistics of two halves of the inputs, added up, give the same masks."""
    # each process counts its own half of the calibration rows
    halves = [Statistics.of(part, needs=NEEDS) for part in rows().chunk(2)]
    mask, new = _edit(card, halves[0] + halves[1])
    want = _edit(card)
    require(torch.equal(mask, want[0]), "another mask of two halves", "the same", "Read sums.")
    require_close(new, want[1], "weights of two halves", "Read sums.")


def prunes_by_its_generator(card: Card) -> None:
    """Check that one seed gives one result, whatever torch's own generator does."""
    require_own_draws(lambda: _edit(card), "other results", "Draw from the generator.")


def leaves_a_dense_layer_dense(card: Card) -> None:
    """Check that the method with density 1 changes only weights of inputs that are always 0."""
    config: Any = tiny(card)
    if "density" not in getattr(config, "__dataclass_fields__", {}):
        return
    dense = type(config)(density=1.0)
    _, new = dense.edit("w", weight(), Statistics.of(rows(), needs=NEEDS), seeded())
    # input 2 is always 0: its weights decide nothing
    live = [j for j in range(IN) if j != 2]
    if not torch.equal(new[:, live], weight()[:, live]):
        raise Broken("another weight at density 1", "the same", "Keep them all.")


SPARSIFIER_LAWS: tuple[Law, ...] = laws_of(__name__)
