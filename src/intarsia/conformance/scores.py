"""Laws of a score: one finite number for each weight, whatever the batches were split into."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..core import Card
from ..scores.statistics import Statistics
from .cards import CARD_LAWS, tiny
from .verdict import Law, require, require_close, require_tag

OUT, IN, ROWS = 5, 7, 12


def weight(out: int = OUT) -> Tensor:
    return torch.randn(out, IN, generator=torch.Generator().manual_seed(1))


def rows(count: int = ROWS) -> Tensor:
    return torch.randn(count, IN, generator=torch.Generator().manual_seed(2))


def _scored(card: Card, w: Tensor, seen: Statistics) -> Tensor:
    """The config's `score(weight, statistics)`.  (out, in) -> (out, in)."""
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
            got, want = tuple(found.shape), tuple(w.shape)
            require(got == want, got=got, want=want, fix="Score every weight.")
            finite = bool(found.isfinite().all())
            require(finite, got="no numbers", want="numbers", fix="Guard the division.")
            require(torch.equal(w, before), got="a weight written to", want="it", fix="Copy it.")


def splits_batches_as_it_likes(card: Card) -> None:
    """Statistics of parts, added up, give the score of the whole."""
    whole = _scored(card, weight(), _seen(rows()))
    for cut in (1, 5):
        parts = _seen(rows()[:cut]) + _seen(rows()[cut:])
        found = _scored(card, weight(), parts)
        require_close(found, whole, what="scores of batches split", fix="Read sums alone.")


def is_the_same_each_time(card: Card) -> None:
    """Two calls, one score, whatever torch's own generator does."""
    one, two = (_scored(card, weight(), _seen(rows())) for _ in range(2))
    require(torch.equal(one, two), got="scores that differ", want="the same", fix="Draw nothing.")


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


LAWS: tuple[Law, ...] = (
    *CARD_LAWS,
    scores_each_weight,
    splits_batches_as_it_likes,
    is_the_same_each_time,
    monotone_exactly_when_tagged,
)
