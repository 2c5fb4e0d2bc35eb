"""Base of recommenders in closed form: a weight for each pair of items, and no training step."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np
import scipy.sparse as sp
from torch import Tensor, nn

from ...core.errors import ConfigError
from ...data.interactions import Interactions
from ...train.run import Finish, Run
from .learning import solve_recommender
from .ranker import Ranker
from .recommender import Settings


class ItemWeights(Ranker):
    """Model with a score of item j that is the sum of w_ij over the items i that the user has had.

    It answers for any history: known users get their newest events, also those after the fit.
    columns: width of the table of weights, (items + 1, columns).
    """

    def __init__(self, settings: Settings, events: Interactions, columns: int) -> None:
        super().__init__(settings, events)
        self.weights = nn.Embedding(len(events.item_ids) + 1, columns)
        self.weights.requires_grad_(False)
        nn.init.zeros_(self.weights.weight)

    @abc.abstractmethod
    def solve(self, events: Interactions) -> None:
        """Compute the weights from events, in place."""

    @abc.abstractmethod
    def scores_of_histories(self, histories: Tensor) -> Tensor:
        """Score all items by users' histories.  (B, items + 1), 1 where taken -> the same."""

    def learn(
        self,
        train: Interactions,
        val: Interactions | None = None,
        *,
        finish: Finish = lambda run: run,
        **options: Any,
    ) -> Run:
        """Solve for the weights: there is nothing to choose by `val`, and no step."""
        return solve_recommender(self, lambda: self.solve(train), finish=finish, **options)

    def losses(self, users: Tensor, items: Tensor) -> NoReturn:
        """Raise ConfigError: a model in closed form has no loss."""
        name = type(self.settings).__name__
        fix = f"Call {name}().fit(events), which solves for its weights."
        raise ConfigError(name, got="a training step", want="none: it is solved", fix=fix)

    def all_scores(self, users: Tensor) -> Tensor:
        return self.scores_of_histories(self.seen[users].to(self.weights.weight.dtype))

    def scores_of_history(self, history: Sequence[int]) -> Tensor:
        taken = self.weights.weight.new_zeros(1, len(self.weights.weight))
        taken[0, list(history)] = 1
        return self.scores_of_histories(taken)[0]

    def scores(self, user: int | None, history: Sequence[int]) -> Tensor:
        return self.scores_of_history(history)


def taken_matrix(events: Interactions) -> Any:
    """Return X, which user has taken which item: sparse (users, items), 1 or absent."""
    shape = len(events.user_ids), len(events.item_ids)
    pairs = sp.csr_matrix((np.ones(len(events)), (events.users, events.items)), shape)
    pairs.data[:] = 1  # an item that was taken several times counts once
    return pairs
