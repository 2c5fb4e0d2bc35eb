"""Laws of a score: one finite number for each weight, whatever the batches were split into."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..core import Card
from ..scores.statistics import Statistics
from .cards import CARD_LAWS, tiny
from .made import normal, require_own_draws
from .verdict import (
    Law,
    laws_of,
    require,
    require_close,
    require_equal,
    require_finite,
    require_tag,
)

OUT, IN, ROWS = 5, 7, 12


def weight(out: int = OUT) -> Tensor:
    """Return a random weight, (out, IN)."""
    return normal(out, IN)


def rows(count: int = ROWS) -> Tensor:
    """Return random inputs, (count, IN)."""
    return normal(count, IN, seed=2)


def _scored(card: Card, w: Tensor, statistics: Statistics) -> Tensor:
    """Return a score of each weight of a layer, (out, in).  w: the layer's weight, (out, in)."""
    config: Any = tiny(card)
    return config.score(w, statistics)


def _statistics_of(x: Tensor) -> Statistics:
    return Statistics.of(x, hessian=True)


def scores_each_weight(card: Card) -> None:
    """Check that the score is finite for each weight, also for empty layers and zero inputs."""
    # an ordinary layer, one with a single output, an empty one
    for w in (weight(), weight(1), weight(0)):
        # inputs of 0 and no input at all make a division by their norm fail
        for x in (rows(), 0 * rows(), rows(0), 1e4 * rows()):
            before = w.clone()
            score = _scored(card, w, _statistics_of(x))
            require_equal(tuple(score.shape), tuple(w.shape), "Score every weight.")
            require_finite(score, "scores", "Guard the division.")
            require(torch.equal(w, before), "a weight written to", "it", "Copy it.")


def splits_batches_as_it_likes(card: Card) -> None:
    """Check that statistics of parts of the inputs, added up, give the scores of all inputs."""
    want = _scored(card, weight(), _statistics_of(rows()))
    for cut in (1, 5):
        parts = _statistics_of(rows()[:cut]) + _statistics_of(rows()[cut:])
        score = _scored(card, weight(), parts)
        require_close(score, want, "scores of batches split", "Read sums alone.")


def is_the_same_each_time(card: Card) -> None:
    """Check that two calls give one score, whatever torch's own generator does."""
    # the same weight and inputs in both calls
    score = partial(_scored, card, weight(), _statistics_of(rows()))
    require_own_draws(lambda: [score()], "scores that differ", "Draw nothing.")


def permutes_with_its_columns(card: Card) -> None:
    """Check that with inputs in another order the scores' columns are in that order, too."""
    # the columns in reverse order
    order = torch.arange(IN - 1, -1, -1)
    want = _scored(card, weight(), _statistics_of(rows()))[:, order]
    score = _scored(card, weight()[:, order], _statistics_of(rows()[:, order]))
    require_close(score, want, "scores of permuted inputs", "Treat every column alike.")


def reads_what_it_needs(card: Card) -> None:
    """Check that the score uses no statistics of the inputs but those that its `needs` names."""
    needs = tiny(card).needs
    want = _scored(card, weight(), _statistics_of(rows()))
    score = _scored(card, weight(), Statistics.of(rows(), needs=needs))
    require_equal(score.tolist(), want.tolist(), "Say all that is read.")


def monotone_exactly_when_tagged(card: Card) -> None:
    """Check that the card has the tag "monotone" exactly if a larger |w| never scores lower."""
    monotone, statistics = True, _statistics_of(rows())
    before = _scored(card, weight(), statistics)
    for row in range(OUT):
        for column in range(IN):
            # doubling one weight must not lower its own score
            larger = weight()
            larger[row, column] *= 2
            after = _scored(card, larger, statistics)
            monotone = monotone and bool(after[row, column] >= before[row, column])
    require_tag(card, "monotone", monotone, "a score that grows with its weight")


LAWS: tuple[Law, ...] = (*CARD_LAWS, *laws_of(__name__))
