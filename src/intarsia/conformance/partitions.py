"""Laws of a choice of weights: as many as asked for, in its pattern, by its generator alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from ..core import Card, Partition
from .cards import CARD_LAWS, tiny
from .made import require_own_draws, seeded
from .verdict import Law, laws_of, require, require_equal

SHAPES: tuple[dict[str, tuple[int, ...]], ...] = (
    {"a": (4, 8), "b": (8, 4)},
    {"a": (1, 4), "b": (4,)},
    {"a": (12, 4), "b": (0, 4)},
)


class Chooser(Protocol):
    """What the config of a partition's card offers.  density: the share of weights it chooses."""

    @property
    def density(self) -> float: ...

    def build(self, scores: Mapping[str, Tensor], *, generator: torch.Generator) -> Partition: ...


def scores(shapes: Mapping[str, tuple[int, ...]] = SHAPES[0]) -> dict[str, Tensor]:
    draw = seeded(1)
    return {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}


def _chosen(card: Card, given: Mapping[str, Tensor], seed: int = 0) -> Partition:
    config: Chooser = tiny(card)
    return config.build(given, generator=seeded(seed))


def gives_each_weight_a_label(card: Card) -> None:
    """A Partition of the parameters of the scores, in their shapes, which it leaves alone."""
    for shapes in SHAPES:
        given = scores(shapes)
        found = _chosen(card, given)
        labels = {name: tuple(label.shape) for name, label in found.label.items()}
        require_equal(labels, shapes, "Label every weight.")
        same = all(torch.equal(given[n], s) for n, s in scores(shapes).items())
        require(same, "scores written to", "scores as given", "Copy them first.")


def chooses_as_many_as_asked(card: Card) -> None:
    """`density` of all weights, within one weight of each parameter."""
    density = tiny(card).density
    for shapes in SHAPES:
        found = _chosen(card, scores(shapes))
        weights = sum(label.numel() for label in found.label.values())
        got, want = int(found.sizes().sum()), density * weights
        holds, wanted = abs(got - want) <= len(shapes), f"{want:.1f}, density {density}"
        require(holds, f"{got} of {weights} weights", wanted, "Round once, over all of them.")


def keeps_its_pattern(card: Card) -> None:
    """The pattern that the partition names holds everywhere: `check` proves it."""
    for shapes in SHAPES:
        _chosen(card, scores(shapes)).check()


def depends_on_its_generator_only(card: Card) -> None:
    """One seed, one choice, whatever torch's own generator does."""
    fix = "Draw from `generator`."
    require_own_draws(lambda: _chosen(card, scores()).label.values(), "choices that differ", fix)


def balances_its_parts(card: Card) -> None:
    """Parts of one parameter differ by no more than one unit: a weight, a row or a column."""
    found = _chosen(card, scores({"a": (12, 12)})).sizes()
    off = int(found.max() - found.min())
    require(off <= 12, f"parts of {found.tolist()}", "even ones", "Deal like cards.")


def follows_the_scores_or_ignores_them(card: Card) -> None:
    """A choice by score goes with its weight: scores in another order, the choice in that order.

    A choice that draws does not depend on the scores at all.
    """
    given = scores({"a": (6, 4)})
    want = _chosen(card, given)["a"]
    flipped = _chosen(card, {"a": given["a"].flip(0)})["a"]
    followed = torch.equal(flipped.flip(0), want)
    ignored = torch.equal(flipped, want)
    fix = "Rank by the scores alone, or by the generator alone."
    require(followed or ignored, "a choice by place and score", "by one", fix)


LAWS: tuple[Law, ...] = (*CARD_LAWS, *laws_of(__name__))
