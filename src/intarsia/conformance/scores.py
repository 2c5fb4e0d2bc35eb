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
    return normal(out, IN)


def rows(count: int = ROWS) -> Tensor:
    return normal(count, IN, seed=2)


def _scored(card: Card, w: Tensor, seen: Statistics) -> Tensor:
    """Return the config's `score(weight, statistics)`.  (out, in) -> (out, in)."""
    config: Any = tiny(card)
    return config.score(w, seen)


def _seen(x: Tensor) -> Statistics:
    return Statistics.of(x, hessian=True)


def scores_each_weight(card: Card) -> None:
    """A finite number for each weight, of odd and empty layers, of inputs of 0 and of no input."""
    for w in (weight(), weight(1), weight(0)):
        for x in (rows(), 0 * rows(), rows(0), 1e4 * rows()):
            before = w.clone()
            found = _scored(card, w, _seen(x))
            require_equal(tuple(found.shape), tuple(w.shape), "Score every weight.")
            require_finite(found, "scores", "Guard the division.")
            require(torch.equal(w, before), "a weight written to", "it", "Copy it.")


def splits_batches_as_it_likes(card: Card) -> None:
    """Statistics of parts, added up, give the score of the whole."""
    whole = _scored(card, weight(), _seen(rows()))
    for cut in (1, 5):
        parts = _seen(rows()[:cut]) + _seen(rows()[cut:])
        found = _scored(card, weight(), parts)
        require_close(found, whole, "scores of batches split", "Read sums alone.")


def is_the_same_each_time(card: Card) -> None:
    """Two calls, one score, whatever torch's own generator does."""
    found = partial(_scored, card, weight(), _seen(rows()))
    require_own_draws(lambda: [found()], "scores that differ", "Draw nothing.")


def permutes_with_its_columns(card: Card) -> None:
    """Inputs in another order, scores in that order."""
    order = torch.arange(IN - 1, -1, -1)
    want = _scored(card, weight(), _seen(rows()))[:, order]
    found = _scored(card, weight()[:, order], _seen(rows()[:, order]))
    require_close(found, want, "scores of permuted inputs", "Treat every column alike.")


def reads_what_it_needs(card: Card) -> None:
    """`needs`: without the other statistics the score is the same."""
    needs = tiny(card).needs
    want = _scored(card, weight(), _seen(rows()))
    found = _scored(card, weight(), Statistics.of(rows(), needs=needs))
    require_equal(found.tolist(), want.tolist(), "Say all that is read.")


def monotone_exactly_when_tagged(card: Card) -> None:
    """ "monotone": with all else as it was, a larger |w| never has a lower score."""
    shown, seen = True, _seen(rows())
    before = _scored(card, weight(), seen)
    for row in range(OUT):
        for column in range(IN):
            larger = weight()
            larger[row, column] *= 2
            after = _scored(card, larger, seen)
            shown = shown and bool(after[row, column] >= before[row, column])
    require_tag(card, "monotone", shown, "a score that grows with its weight")


LAWS: tuple[Law, ...] = (*CARD_LAWS, *laws_of(__name__))
