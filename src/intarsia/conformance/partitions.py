"""Laws of a choice of weights: as many as asked for, in its pattern, by its generator alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from ..core import Card, Partition
from .cards import CARD_LAWS, tiny
from .verdict import Law, require

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
    draw = torch.Generator().manual_seed(1)
    return {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}


def _chosen(card: Card, given: Mapping[str, Tensor], seed: int = 0) -> Partition:
    config: Chooser = tiny(card)
    return config.build(given, generator=torch.Generator().manual_seed(seed))


def gives_each_weight_a_label(card: Card) -> None:
    """A Partition of the parameters of the scores, in their shapes, which it leaves alone."""
    for shapes in SHAPES:
        given = scores(shapes)
        found = _chosen(card, given)
        labels = {name: tuple(label.shape) for name, label in found.label.items()}
        require(labels == shapes, got=labels, want=shapes, fix="Label every weight.")
        same = all(torch.equal(given[n], s) for n, s in scores(shapes).items())
        require(same, got="scores written to", want="scores as given", fix="Copy them first.")


def chooses_as_many_as_asked(card: Card) -> None:
    """`density` of all weights, within one weight of each parameter."""
    density = tiny(card).density
    for shapes in SHAPES:
        found = _chosen(card, scores(shapes))
        weights = sum(label.numel() for label in found.label.values())
        got, want = int(found.sizes().sum()), density * weights
        require(
            abs(got - want) <= len(shapes),
            got=f"{got} of {weights} weights",
            want=f"{want:.1f}, density {density}",
            fix="Round once, over all of them.",
        )


def keeps_its_pattern(card: Card) -> None:
    """The pattern that the partition names holds everywhere: `check` proves it."""
    for shapes in SHAPES:
        _chosen(card, scores(shapes)).check()


def depends_on_its_generator_only(card: Card) -> None:
    """One seed, one choice, whatever torch's own generator does."""
    found: list[Partition] = []
    for seed in (3, 4):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            found.append(_chosen(card, scores()))
    same = all(torch.equal(found[0][name], found[1][name]) for name in found[0].label)
    require(same, got="choices that differ", want="the same", fix="Draw from `generator`.")


def balances_its_parts(card: Card) -> None:
    """Parts of one parameter differ by no more than one unit: a weight, a row or a column."""
    found = _chosen(card, scores({"a": (12, 12)})).sizes()
    off = int(found.max() - found.min())
    require(off <= 12, got=f"parts of {found.tolist()}", want="even ones", fix="Deal like cards.")


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
    require(followed or ignored, got="a choice by place and score", want="by one", fix=fix)


LAWS: tuple[Law, ...] = (
    *CARD_LAWS,
    gives_each_weight_a_label,
    chooses_as_many_as_asked,
    keeps_its_pattern,
    depends_on_its_generator_only,
    balances_its_parts,
    follows_the_scores_or_ignores_them,
)
