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

# a vector, rows of one, and empty tensors
SHAPES: tuple[dict[str, tuple[int, ...]], ...] = (
    {"a": (4, 8), "b": (8, 4)},
    {"a": (1, 4), "b": (4,)},
    {"a": (12, 4), "b": (0, 4)},
)


class Chooser(Protocol):
    """The config of a partition's card.  density: the share of the weights that it selects."""

    @property
    def density(self) -> float: ...

    def build(self, scores: Mapping[str, Tensor], *, generator: torch.Generator) -> Partition: ...


def scores(shapes: Mapping[str, tuple[int, ...]] = SHAPES[0]) -> dict[str, Tensor]:
    """Return random scores of these shapes, the same each time."""
    draw = seeded(1)
    return {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}


def _choose(card: Card, weight_scores: Mapping[str, Tensor], seed: int = 0) -> Partition:
    config: Chooser = tiny(card)
    return config.build(weight_scores, generator=seeded(seed))


def gives_each_weight_a_label(card: Card) -> None:
    """Check that the method gives every weight a label, and does not write to the scores."""
    for shapes in SHAPES:
        weight_scores = scores(shapes)
        partition = _choose(card, weight_scores)
        labels = {name: tuple(label.shape) for name, label in partition.label.items()}
        require_equal(labels, shapes, "Label every weight.")
        unchanged = all(torch.equal(weight_scores[n], s) for n, s in scores(shapes).items())
        require(unchanged, "scores written to", "scores as given", "Copy them first.")


def chooses_as_many_as_asked(card: Card) -> None:
    """Check that the method selects the share `density` of all weights.

    Rounding may change the number of selected weights by one for each parameter.
    """
    density = tiny(card).density
    for shapes in SHAPES:
        partition = _choose(card, scores(shapes))
        weights = sum(label.numel() for label in partition.label.values())
        got, want = int(partition.sizes().sum()), density * weights
        # each parameter may round its own number
        holds, target = abs(got - want) <= len(shapes), f"{want:.1f}, density {density}"
        require(holds, f"{got} of {weights} weights", target, "Round once, over all of them.")


def keeps_its_pattern(card: Card) -> None:
    """Check that the pattern which the partition names holds everywhere."""
    for shapes in SHAPES:
        _choose(card, scores(shapes)).check()


def depends_on_its_generator_only(card: Card) -> None:
    """Check that one seed gives one choice, whatever torch's own generator does."""
    fix = "Draw from `generator`."
    require_own_draws(lambda: _choose(card, scores()).label.values(), "choices that differ", fix)


def balances_its_parts(card: Card) -> None:
    """Check that the sizes of the method's parts differ by one row or column of weights at most."""
    # 12 x 12, so that 12 is a row, or a column
    sizes = _choose(card, scores({"a": (12, 12)})).sizes()
    off = int(sizes.max() - sizes.min())
    require(off <= 12, f"parts of {sizes.tolist()}", "even ones", "Deal like cards.")


def follows_the_scores_or_ignores_them(card: Card) -> None:
    """Check that permuted scores give the permuted choice, or the same if scores are not read."""
    weight_scores = scores({"a": (6, 4)})
    want = _choose(card, weight_scores)["a"]
    # flipped scores tell a choice by score from one by place
    flipped = _choose(card, {"a": weight_scores["a"].flip(0)})["a"]
    followed = torch.equal(flipped.flip(0), want)
    ignored = torch.equal(flipped, want)
    fix = "Rank by the scores alone, or by the generator alone."
    require(followed or ignored, "a choice by place and score", "by one", fix)


LAWS: tuple[Law, ...] = (*CARD_LAWS, *laws_of(__name__))
